"""Decoding in which rows join and leave between two tokens, each behind a front of its own.

A forward pass adds one id to every row that has its text, and reads the texts of those that join. When a row leaves,
the last row moves to its place, so that the rows that are there are always the first ones of the cache.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.engine.cache import Cache
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches
from softprompt.engine.running import feed, running
from softprompt.errors import UserError
from softprompt.packs.families import can_pack

# from the ids of a row so far, int64 `[1, t]`, and the logits behind them, fp32 `[1, V]`, to the next id
Choose = Callable[[Tensor, Tensor], int]


@dataclass(eq=False)
class RunningRow:
    """A row from when it asks to join until it has its last new id.

    Attributes:
        ids: the ids of the text, at least one.
        front: what stands in front of the text.
        max_new_tokens: how many new ids the row may have.
        end_ids: the ids that end it.
        choose: chooses every new id; None takes the most probable one.
        opening: ids of the text that are a part of the front, which only `choose` is told of.
        new_ids: the new ids so far, the one that ends the row included.
        failed: the row ended because its logits were not finite.
    """

    ids: Sequence[int]
    front: Front
    max_new_tokens: int
    end_ids: Sequence[int] = ()
    choose: Choose | None = None
    opening: Sequence[int] = ()
    new_ids: list[int] = field(default_factory=list)
    failed: bool = False

    @property
    def slots(self) -> int:
        """The slots that the row may need; the last new id is never fed."""
        return len(self.front) + len(self.ids) + self.max_new_tokens - 1

    @property
    def is_finished(self) -> bool:
        """Whether the row has its last new id."""
        ended = bool(self.new_ids) and self.new_ids[-1] in self.end_ids
        return self.failed or ended or len(self.new_ids) >= self.max_new_tokens


class ContinuousDecoding:
    """Rows that are decoded together; one thread at a time may use it, and nothing else may run the base meanwhile."""

    def __init__(
        self, base_model: PreTrainedModel, fronts: FrontCaches, *, max_rows: int, max_slots: int | None = None
    ) -> None:
        """Begin without rows.

        Args:
            fronts: keeps the keys and values of the fronts.
            max_rows: how many rows may run at the same time.
            max_slots: the slots of the cache, rows times the slots of the row that needs most; None means no limit.

        Raises:
            UserError: the base is of a family whose rows run one by one.
        """
        if not can_pack(base_model):
            raise UserError(f"{type(base_model).__name__}: rows of this family do not share passes (docs/packing.md)")
        self.base_model, self.fronts = base_model, fronts
        self.max_rows, self.max_slots = max_rows, max_slots
        self.rows: list[RunningRow] = []
        self._cache = Cache()

    def fits(self, *rows: RunningRow) -> bool:
        """Whether these rows could run beside each other in an empty cache."""
        if len(rows) > self.max_rows:
            return False
        return self.max_slots is None or len(rows) * max(row.slots for row in rows) <= self.max_slots

    def has_room(self, *rows: RunningRow) -> bool:
        """Whether these rows may join now."""
        return self.fits(*self.rows, *rows)

    def join(self, rows: Sequence[RunningRow]) -> None:
        """Let rows take part in the next pass, which reads their texts."""
        self.rows += rows

    @torch.no_grad()
    def step(self) -> list[RunningRow]:
        """Add one id to every row, in one pass, and return the rows, of which the finished ones have left.

        The rows that have joined since the last pass get their first id.
        """
        rows, joining, device = list(self.rows), self.rows[self._cache.rows :], self.base_model.device
        if joining:
            self._cache.join([self.fronts.of(self.base_model, row.front) for row in joining])
        going_on = rows[: len(rows) - len(joining)]
        last = torch.tensor([row.new_ids[-1] for row in going_on], device=device) if going_on else None  # [B]
        with running(self.base_model) as run:
            logits = feed(self.base_model, run, self._cache, last, [row.ids for row in joining])
        _choose(rows, logits)
        for row in rows:
            if row.is_finished:
                self.leave(row)
        return rows

    def answered(self, rows: Iterable[RunningRow]) -> Iterator[RunningRow]:
        """Let rows join one after another, each as soon as there is room, and give every row when it has finished."""
        waiting = deque(rows)
        while waiting or self.rows:
            while waiting and self.has_room(waiting[0]):
                self.join([waiting.popleft()])
            yield from [row for row in self.step() if row.is_finished]

    def leave(self, row: RunningRow) -> None:
        """Take a row out, finished or not."""
        place = self.rows.index(row)
        if place < self._cache.rows:
            self._cache.leave(place, clean=row.failed)
            # the last of the rows that have their text takes its place, as in the cache
            self.rows[place] = self.rows[self._cache.rows]
            place = self._cache.rows
        del self.rows[place]

    def clear(self) -> None:
        """Take all rows out and give the memory back."""
        self.rows, self._cache = [], Cache()


def _choose(rows: Sequence[RunningRow], logits: Tensor) -> None:
    """Choose the next id of every row from logits `[B, V]`."""
    largest, greedy = logits.max(-1)  # the maximum is NaN if one of them is
    for place, (row, id, usable) in enumerate(zip(rows, greedy.tolist(), largest.isfinite().tolist(), strict=True)):
        if not usable:
            row.failed = True
        elif row.choose is None:
            row.new_ids.append(id)
        else:
            so_far = torch.tensor([[*row.opening, *row.ids, *row.new_ids]], device=logits.device)
            row.new_ids.append(row.choose(so_far, logits[place : place + 1].to(torch.float32, copy=True)))
