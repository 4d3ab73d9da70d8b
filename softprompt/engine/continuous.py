"""Decoding in which rows join and leave between two tokens, each behind a front of its own.

A row has its slots for itself, one for each of its positions and without pads:

    slot = position   0 .. F-1   F .. F+T-1   F+T ..
    holds             front      text         new tokens

A forward pass adds one token to every row, at a position of its own. A query sees the slots up to its own position, so
what an earlier row left in the slots behind is hidden. Rows that join together are prefilled in one batch, as
`decoding.py` does it, and their keys and values are then copied here. When a row leaves, the last row moves to its
place, so that the rows that are there are always the first ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.engine.cache import Cache, attention, slot_positions
from softprompt.engine.decoding import feed, require_finite, running
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches
from softprompt.errors import NotFiniteLogits, UserError
from softprompt.packs.attention import Rules
from softprompt.packs.families import can_pack

SLOTS_AT_A_TIME = 64  # by which the cache grows

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
        new_ids: the new ids so far, the one that ends the row included.
        failed: the row ended because its logits were not finite.
    """

    ids: Sequence[int]
    front: Front
    max_new_tokens: int
    end_ids: Sequence[int] = ()
    choose: Choose | None = None
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

    def __init__(self, base_model: PreTrainedModel, fronts: FrontCaches, *, max_rows: int, max_slots: int) -> None:
        """Begin without rows.

        Args:
            fronts: keeps the keys and values of the fronts.
            max_rows: how many rows may run at the same time.
            max_slots: the slots of the cache, rows times the slots of the row that needs most.

        Raises:
            UserError: the base is of a family whose rows run one by one.
        """
        if not can_pack(base_model):
            raise UserError(f"{type(base_model).__name__}: rows of this family do not share passes (docs/packing.md)")
        self.base_model, self.fronts = base_model, fronts
        self.max_rows, self.max_slots = max_rows, max_slots
        self.rows: list[RunningRow] = []
        self._cache = RowCache()

    def fits(self, *rows: RunningRow) -> bool:
        """Whether these rows could run beside each other in an empty cache."""
        return len(rows) <= self.max_rows and len(rows) * max(row.slots for row in rows) <= self.max_slots

    def has_room(self, *rows: RunningRow) -> bool:
        """Whether these rows may join now."""
        return self.fits(*self.rows, *rows)

    @torch.no_grad()
    def join(self, rows: Sequence[RunningRow]) -> None:
        """Prefill rows in one batch, and choose the first new id of each; those that are then finished do not stay."""
        device = self.base_model.device
        fronts = [self.fronts.of(self.base_model, row.front) for row in rows]
        lengths, longest = [len(row.front) for row in rows], max(len(row.ids) for row in rows)
        gaps = [longest - len(row.ids) for row in rows]
        ids = torch.tensor([[0] * gap + list(row.ids) for gap, row in zip(gaps, rows, strict=True)], device=device)
        mask = (torch.arange(longest, device=device) >= torch.tensor(gaps, device=device)[:, None]).long()
        cache, start = Cache(slot_positions(mask, lengths, 0), fronts), max(lengths)
        with running(self.base_model) as run:
            slots = torch.arange(start, start + longest, device=device)
            logits = feed(self.base_model, run, cache, ids, slots, start + longest)
        self._choose(rows, logits)
        for place, row in enumerate(rows):
            if not row.is_finished:
                own = [*range(lengths[place]), *range(start + gaps[place], start + longest)]
                self._cache.join(cache, place, own, row.slots)
                self.rows.append(row)

    @torch.no_grad()
    def step(self) -> list[RunningRow]:
        """Add one id to every row, and return the rows, of which the finished ones have left."""
        rows, device = list(self.rows), self.base_model.device
        last = torch.tensor([row.new_ids[-1:] for row in rows], device=device)  # [B, 1]
        self._cache.begin_rows([len(row.front) + len(row.ids) + len(row.new_ids) - 1 for row in rows], device)
        with running(self.base_model) as run:
            logits = run(self._cache, self.base_model.get_input_embeddings()(last))
        self._choose(rows, logits)
        for row in rows:
            if row.is_finished:
                self.leave(row)
        return rows

    def leave(self, row: RunningRow) -> None:
        """Take a row out, finished or not."""
        place = self.rows.index(row)
        self._cache.leave(place, clean=row.failed)
        last = self.rows.pop()
        if last is not row:
            self.rows[place] = last

    def clear(self) -> None:
        """Take all rows out and give the memory back."""
        self.rows, self._cache = [], RowCache()

    def _choose(self, rows: Sequence[RunningRow], logits: Tensor) -> None:
        """Choose the next id of every row from logits `[B, V]`."""
        greedy = logits.argmax(-1).tolist()
        for place, row in enumerate(rows):
            try:
                require_finite(logits[place : place + 1])
            except NotFiniteLogits:
                row.failed = True
                continue
            if row.choose is None:
                row.new_ids.append(greedy[place])
            else:
                so_far = torch.tensor([[*row.ids, *row.new_ids]], device=logits.device)
                row.new_ids.append(row.choose(so_far, logits[place : place + 1].to(torch.float32, copy=True)))


class RowCache(Cache):
    """Keys and values `[R, G, S, D]` of every layer, of which the first B rows are in use; a slot is a position."""

    def __init__(self) -> None:
        """Begin without rows and slots; tensors grow as rows join."""
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.rows = 0

    def join(self, cache: Cache, row: int, own: Sequence[int], slots: int) -> None:
        """Take over a row of another cache.

        Args:
            row: its place there.
            own: which slots of it are filled, in the order of their positions.
            slots: how many slots it may need.
        """
        for mine, given in ((self.keys, cache.keys), (self.values, cache.values)):
            for layer, tensor in given.items():
                mine[layer] = self._room(mine.get(layer), tensor, slots)
                mine[layer][self.rows, :, : len(own)] = tensor[row][:, own]
        self.rows += 1

    def leave(self, row: int, *, clean: bool = False) -> None:
        """Let the last row take the place of a row; `clean` where its values may not be finite, since 0 x NaN is NaN.

        Without rows, the memory is given back.
        """
        self.rows -= 1
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                if row != self.rows:
                    tensor[row] = tensor[self.rows]
                if clean:
                    tensor[self.rows] = 0
        if self.rows == 0:
            self.keys, self.values = {}, {}

    def begin_rows(self, positions: Sequence[int], device: torch.device) -> None:
        """Start a forward pass of one id for every row, at these positions."""
        self.slots = torch.tensor(positions, device=device)
        self.queries = self.slots[:, None]  # [B, 1]
        self.seen = max(positions) + 1
        self.positions = torch.arange(self.seen, device=device)[None]
        self.padded = min(positions) != max(positions)  # then some rows have slots to hide
        self._biases = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Write `key` and `value` `[B, G, 1, D]` into each row's slot, then attend as `Cache.attend` does."""
        keys, values = self.keys[layer][: self.rows], self.values[layer][: self.rows]
        rows = torch.arange(self.rows, device=key.device)
        keys[rows, :, self.slots] = key[:, :, 0]
        values[rows, :, self.slots] = value[:, :, 0]
        return attention(query, keys[:, :, : self.seen], values[:, :, : self.seen], self._bias(rules, query), rules)

    def _room(self, tensor: Tensor | None, like: Tensor, slots: int) -> Tensor:
        """Return `tensor` if it has room for one more row and so many slots, else a larger copy."""
        slots = -(-slots // SLOTS_AT_A_TIME) * SLOTS_AT_A_TIME
        if tensor is None:
            return like.new_zeros(1, like.shape[1], slots, like.shape[3])
        if self.rows < len(tensor) and slots <= tensor.shape[2]:
            return tensor
        rows = len(tensor) if self.rows < len(tensor) else 2 * len(tensor)
        larger = tensor.new_zeros(rows, tensor.shape[1], max(slots, tensor.shape[2]), tensor.shape[3])
        larger[: self.rows, :, : tensor.shape[2]] = tensor[: self.rows]
        return larger
