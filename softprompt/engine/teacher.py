"""A teacher: the frozen base behind another front, whose final hidden states at the answers are a student's goals.

Answers do not change during a run, and neither does the teacher, so its states `[N, H]` of a row are constants. They
are computed once, in the teacher's own passes, which depend on the rows alone: a row has the same states, to the bit,
at whatever step they are asked for. Those that do not fit into the memory are computed again. The keys and values of
the teacher's front are computed once and given to every pass, which then costs its rows' tokens alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.engine.cache import Cache
from softprompt.engine.divergence import divergence_of_each, head_divergence
from softprompt.engine.forward import pack_hidden_states
from softprompt.engine.front import Front
from softprompt.engine.fronts import front_cache
from softprompt.engine.loss import Head
from softprompt.engine.passes import TOKENS_PER_PASS, Score, free_memory
from softprompt.packs.batches import Pack, cut_passes, pack_rows
from softprompt.tokens.encoding import EncodedRow

KEPT_SHARE = 0.25  # of the main memory that is free at the start, for states


class Teacher:
    """The states of a teacher for the rows that a student learns from or is judged by."""

    def __init__(
        self,
        base_model: PreTrainedModel,
        front: Front,
        rows: Sequence[EncodedRow],
        seen: Sequence[EncodedRow] | None = None,
        *,
        most_bytes: int | None = None,
    ) -> None:
        """Plan the teacher's passes; nothing is computed yet.

        Args:
            front: what the teacher has in front of every row.
            rows: the student's rows, by which states are asked for.
            seen: the same rows as the teacher sees them, which have the same labels that count; None: as they are.
            most_bytes: how many bytes of states are kept; None takes a quarter of the free memory.
        """
        self.base_model, self.front = base_model, front
        self.most_bytes = int(KEPT_SHARE * free_memory()) if most_bytes is None else most_bytes
        self.passes_run = 0
        seen = rows if seen is None else seen
        owners: dict[int, list[EncodedRow]] = {}
        for row, own in zip(rows, seen, strict=True):
            owners.setdefault(id(own), []).append(row)
        distinct = list({id(row): row for row in seen}.values())
        # a fixed length, so that states do not depend on the memory of the machine
        self._passes = cut_passes(distinct, front_length=len(front), max_tokens=len(front) + TOKENS_PER_PASS)
        self._place = {
            id(row): (number, place)
            for number, members in enumerate(self._passes)
            for place, own in enumerate(members)
            for row in owners[id(own)]
        }
        self._given: Cache | None = None  # the front's keys and values, while there are passes to run
        self._kept: dict[int, list[Tensor]] = {}
        self._last: tuple[int, list[Tensor]] | None = None
        self._bytes = 0
        self._width = base_model.get_output_embeddings().weight.shape[1]
        self._rows = list(rows), list(seen)  # held, since their ids are what is looked up

    @property
    def bytes_of_all(self) -> int:
        """How many bytes the states of all rows take."""
        tokens = sum(row.num_supervised for members in self._passes for row in members)
        return tokens * self._width * self.base_model.dtype.itemsize

    @property
    def positions_of_all(self) -> int:
        """How many positions the base computes for the states of all rows, those of the front included."""
        packs = (pack_rows(members, front_length=len(self.front)) for members in self._passes)
        given = max(len(self.front) - 1, 0)
        return given + sum(len(pack.position_ids) - given for pack in packs)

    def teaches(self, row: EncodedRow) -> bool:
        """Whether this row is one of the teacher's."""
        return id(row) in self._place

    def states(self, row: EncodedRow) -> Tensor:
        """The teacher's final hidden states at the labels of a row, `[N, H]` in the base's dtype on the CPU."""
        number, place = self._place[id(row)]
        if number in self._kept:
            return self._kept[number][place]
        if self._last is None or self._last[0] != number:
            self._last = (number, self._compute(self._passes[number]))
            size = sum(each.nbytes for each in self._last[1])
            if self._bytes + size <= self.most_bytes:
                self._kept[number], self._bytes = self._last[1], self._bytes + size
            if len(self._kept) == len(self._passes):
                self._given = None
        return self._last[1][place]

    @torch.no_grad()
    def _compute(self, members: list[EncodedRow]) -> list[Tensor]:
        self.passes_run += 1
        if self._given is None and len(self.front) > 1:
            none = torch.zeros(1, 0, dtype=torch.long, device=self.base_model.device)
            embeds = torch.cat(self.front.embeds(self.base_model.get_input_embeddings(), none), dim=1)[0]
            # the last position is left to the passes, since it may be what predicts the first token of a row
            self._given = front_cache(self.base_model, embeds[:-1])
        pack = pack_rows(members, front_length=len(self.front))
        hidden = pack_hidden_states(self.base_model, self.front, pack, given=self._given).cpu()
        return [each.clone() for each in hidden.split(pack.counts)]


class Teachers:
    """Several teachers, each of rows of its own."""

    def __init__(self, *teachers: Teacher) -> None:
        self.teachers = teachers

    def states(self, row: EncodedRow) -> Tensor:
        """The states that the teacher of this row has."""
        return next(each for each in self.teachers if each.teaches(row)).states(row)


def divergence_losses(
    base_model: PreTrainedModel,
    front: Front,
    rows: Sequence[EncodedRow],
    goals: Sequence[Tensor],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    ce: float = 0.0,
    recompute: bool = False,
) -> Iterator[Tensor]:
    """The summed loss of `rows` under `head_divergence`, pass by pass, each a scalar that can be differentiated.

    Args:
        front: what the student has in front of every row; `Front()` is the base alone.
        goals: the teacher's states for every row.
        max_tokens: most positions of a pack, the front included; a longer row goes alone.
        recompute: keep only the layers' inputs for the backward pass.
    """
    head = Head.of(base_model)
    for _, pack, goal, hidden in _packs(base_model, front, rows, goals, max_tokens, recompute=recompute):
        targets = torch.tensor(pack.targets, device=hidden.device)
        yield head_divergence(hidden, goal, head, targets, temperature=temperature, ce=ce)


@torch.no_grad()
def divergence_tokens(
    base_model: PreTrainedModel,
    front: Front,
    rows: Sequence[EncodedRow],
    goals: Sequence[Tensor],
    *,
    advance: Callable[[int, int], object] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """For every row, KL(teacher || student) of each label that counts, `[N]`, and whether the argmax is the same.

    Args:
        advance: told after every pass how many of the rows are scored, and how many there are.
    """
    head, found = Head.of(base_model), dict[int, tuple[Tensor, Tensor]]()
    for members, pack, goal, hidden in _packs(base_model, front, rows, goals, TOKENS_PER_PASS, recompute=False):
        pairs = zip(*(each.cpu().split(pack.counts) for each in divergence_of_each(hidden, goal, head)), strict=True)
        found |= {id(row): pair for row, pair in zip(members, pairs, strict=True)}
        if advance is not None:
            advance(len(found), len(rows))
    return [found[id(row)] for row in rows]


def divergence_scores(
    base_model: PreTrainedModel,
    front: Front,
    rows: Sequence[EncodedRow],
    goals: Sequence[Tensor],
    *,
    advance: Callable[[int, int], object] | None = None,
) -> list[Score]:
    """The score of every row: its loss is the KL, and a token is correct where it is the teacher's most probable."""
    tokens = divergence_tokens(base_model, front, rows, goals, advance=advance)
    return [Score(math.fsum(each.tolist()), int(hits.sum()), len(each)) for each, hits in tokens]


def _packs(
    base_model: PreTrainedModel,
    front: Front,
    rows: Sequence[EncodedRow],
    goals: Sequence[Tensor],
    max_tokens: int,
    *,
    recompute: bool,
) -> Iterator[tuple[list[EncodedRow], Pack, Tensor, Tensor]]:
    """The student's packs that have labels: their rows, the goals `[N, H]` and the student's states `[N, H]`."""
    goal_of = {id(row): goal for row, goal in zip(rows, goals, strict=True)}
    for members in cut_passes(rows, front_length=len(front), max_tokens=max_tokens):
        pack = pack_rows(members, front_length=len(front))
        if pack.targets:
            goal = torch.cat([goal_of[id(row)] for row in members]).to(base_model.device)
            yield members, pack, goal, pack_hidden_states(base_model, front, pack, recompute=recompute)
