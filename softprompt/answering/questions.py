"""The questions of a file: which there are is found in one walk, and each is written again when its batch is due."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from softprompt.answering.batch import front_of, kind_of
from softprompt.data.row import Row
from softprompt.engine.front import Front
from softprompt.packs.batches import plan_batches
from softprompt.prompt.bank import BankedPrompt
from softprompt.tokens.encoding import Encoder

ROWS_TOGETHER = 1000


@dataclass(frozen=True)
class Question:
    """A row, how it is written, the token ids of its question, and what stands in front of them."""

    row: Row
    encoder: Encoder
    ids: list[int]
    front: Front


@dataclass
class Walk:
    """What a walk through questions finds out, a number for each of them.

    Attributes:
        numbers: the numbers of their rows, and `lengths` how many ids they have.
        kinds: the place in `known_kinds` of what the questions of a batch have in common.
        longest_front: for every kind the length of the longest front.
        largest_id: the largest id of any question.
        sha256: the hash of the rows' columns and of all ids.
    """

    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    kinds: "array[int]" = field(default_factory=lambda: array("q"))
    longest_front: list[int] = field(default_factory=list)
    largest_id: int = 0
    sha256: str = ""


class Questions:
    """The questions of rows, each as its own prompt has them written."""

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[Row],
        prompts: Sequence[BankedPrompt] = (),
        *,
        front: Front,
        ensemble: Sequence[Front] = (),
    ) -> None:
        """Take the rows.

        Args:
            prompts: the prompt of every row, which brings its encoder; empty if all rows have `front` and `encoder`.
            ensemble: the fronts that stand in front of every question together, in place of `front`.
        """
        self.rows, self.mixed, self.ensemble = rows, bool(prompts), ensemble
        self._encoder, self._prompts = encoder, prompts
        self._front = max([front, *ensemble], key=len)  # of an ensemble the longest one decides how much room is left

    def at(self, places: Sequence[int]) -> list[Question]:
        """The questions of the rows at some places."""
        return self._written([self.rows[place] for place in places], places)

    def __iter__(self) -> Iterator[Question]:
        some = list[Row]()
        for place, row in enumerate(self.rows):
            some.append(row)
            if len(some) == ROWS_TOGETHER or place == len(self.rows) - 1:
                yield from self._written(some, range(place + 1 - len(some), place + 1))
                some = []

    def _written(self, rows: Sequence[Row], places: Sequence[int]) -> list[Question]:
        prompts = [self._prompts[place] for place in places] if self._prompts else []
        encoders = [prompt.encoder for prompt in prompts] or [self._encoder] * len(rows)
        fronts = [front_of(prompt) for prompt in prompts] or [self._front] * len(rows)
        ids: dict[int, list[int]] = {}
        for encoder in dict.fromkeys(encoders):
            own = [place for place, each in enumerate(encoders) if each is encoder]
            ids |= dict(zip(own, encoder.questions([rows[place] for place in own]), strict=True))
        parts = enumerate(zip(rows, encoders, fronts, strict=True))
        return [Question(row, encoder, ids[place], front) for place, (row, encoder, front) in parts]

    def walk(self, check: Callable[[Question], None]) -> Walk:
        """Go through all questions once; `check` is called with each."""
        found, kinds = Walk(), dict[tuple[object, ...], int]()
        digest = hashlib.sha256(b"[")
        for question in self:
            check(question)
            kind = kinds.setdefault(kind_of(question.encoder), len(kinds))
            if kind == len(found.longest_front):
                found.longest_front.append(0)
            found.longest_front[kind] = max(found.longest_front[kind], len(question.front))
            content = json.dumps([dict(question.row.columns), question.ids])
            digest.update(f"{', ' if found.numbers else ''}{content}".encode())
            found.numbers.append(question.row.number)
            found.lengths.append(len(question.ids))
            found.kinds.append(kind)
            found.largest_id = max(found.largest_id, max(question.ids, default=0))
        digest.update(b"]")
        found.sha256 = digest.hexdigest()
        return found


def plan(found: Walk, waiting: Sequence[int], size: int, largest_gap: Callable[[int], int | None]) -> list[list[int]]:
    """Group the waiting questions, given by their places, into batches of one kind and of similar length.

    Args:
        size: most questions of a batch.
        largest_gap: from the length of the longest front to how much the lengths within a batch may differ.
    """
    batches = []
    for kind in dict.fromkeys(found.kinds[place] for place in waiting):
        alike = [place for place in waiting if found.kinds[place] == kind]
        lengths = [found.lengths[place] for place in alike]
        parts = plan_batches(lengths, size, largest_gap=largest_gap(found.longest_front[kind]))
        batches += [[alike[place] for place in batch] for batch in parts]
    return batches
