"""Which rows share a forward pass, and which place every token has in it. These are pure functions on lists.

A pack is one sequence. It begins with the shared prefix, which is the front (`front.py`) and the ids that all of its
rows begin with (the template's opening words). The rests of the rows follow, one after another, without padding. A
place is an index into this sequence; a position is the position_id that the base gets for it:

    place      0 .. F-1   F .. Z-1     Z ..            ..
    holds      front      opening      rest of row 1   rest of row 2   ...
    position   0 .. F-1   F .. Z-1     Z, Z+1, ..      Z, Z+1, ..

Attention is causal, so the Z places of the shared prefix depend on no row and are computed once for all rows
(`attention.py`). A row ends with the last token that predicts a label: its eos is a target and never an input.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow


@dataclass(frozen=True)
class Pack:
    """Rows behind one front of F positions, as one sequence of S places.

    Attributes:
        front_length: F; it is 0 for the base alone.
        input_ids: the S - F ids behind the front.
        bounds: Z, then the end of every row that has places of its own; the last bound is S.
        places: the N places whose hidden states predict a label, row by row; a place inside the shared prefix is listed
            once for every row that predicts from it.
        targets: the label that each of the N places predicts.
        counts: how many of the N places belong to each row, in the order of the rows.
    """

    front_length: int
    input_ids: list[int]
    bounds: list[int]
    places: list[int]
    targets: list[int]
    counts: list[int]

    @property
    def num_shared(self) -> int:
        """The number of places in the shared prefix, Z."""
        return self.bounds[0]

    @property
    def position_ids(self) -> list[int]:
        """The position_ids of all S places; those of every row's own places begin at Z."""
        own = [range(self.num_shared, self.num_shared + end - start) for start, end in pairwise(self.bounds)]
        return [*range(self.num_shared), *(position for row in own for position in row)]


def pack_rows(rows: Sequence[EncodedRow], *, front_length: int) -> Pack:
    """Put rows behind one front. A row without labels takes no places and has a count of 0.

    Behind an empty front, nothing stands in front of a row's first id to predict it, so its label does not count.
    """
    inputs = [ids for row in rows if (ids := needed_ids(row))]
    opening = common_opening(inputs)
    shared = front_length + len(opening)
    rests = [ids[len(opening) :] for ids in inputs]
    bounds = [*accumulate((len(rest) for rest in rests if rest), initial=shared)]
    places: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    start = shared
    for row in rows:
        before = len(targets)
        end = len(needed_ids(row))
        for token, label in enumerate(row.labels[: end + 1]):
            if label == IGNORE_INDEX or (token == 0 and front_length == 0):
                continue
            place = front_length + token - 1  # the token in front predicts this label
            places.append(place if place < shared else place - shared + start)
            targets.append(label)
        counts.append(len(targets) - before)
        start += max(0, end - len(opening))
    return Pack(front_length, opening + [id for rest in rests for id in rest], bounds, places, targets, counts)


def cut_passes(rows: Sequence[EncodedRow], *, front_length: int, max_tokens: int) -> list[list[EncodedRow]]:
    """Distribute rows over few passes of at most `max_tokens` places each, the front included, as evenly as that goes.

    A row that is longer than `max_tokens` gets a pass of its own. The rows' common opening is counted for every row, so
    a pack may be shorter.
    """
    measured = sorted(((len(needed_ids(row)), row) for row in rows), key=lambda pair: pair[0], reverse=True)
    lengths = [length for length, _ in measured]
    places, used = _first_fit(lengths, max_tokens - front_length)
    evenly, longest = _evenly(lengths, len(used))
    if longest < max(used, default=0):  # the longest pass decides how much memory a step takes
        places = evenly
    passes: list[list[EncodedRow]] = [[] for _ in used]
    for place, (_, row) in zip(places, measured, strict=True):
        passes[place].append(row)
    return passes


def _first_fit(lengths: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """Put each row, the longest first, into the first pass that has room: the pass of every row, and all lengths."""
    places: list[int] = []
    used: list[int] = []
    for length in lengths:
        place = next((place for place, taken in enumerate(used) if taken + length <= room), len(used))
        if place == len(used):
            used.append(0)
        used[place] += length
        places.append(place)
    return places, used


def _evenly(lengths: Sequence[int], count: int) -> tuple[list[int], int]:
    """Put each row, the longest first, into the shortest of `count` passes: the pass of every row, the longest length.

    This is Graham's rule (1969), whose longest pass is at most a third longer than the best one.
    """
    places = []
    passes = [(0, place) for place in range(count)]  # a heap
    for length in lengths:
        used, place = passes[0]
        heapq.heapreplace(passes, (used + length, place))
        places.append(place)
    return places, max(passes, default=(0, 0))[0]


def needed_ids(row: EncodedRow) -> list[int]:
    """The input_ids that the row's predictions depend on, which are all those in front of its last label."""
    last = max((token for token, label in enumerate(row.labels) if label != IGNORE_INDEX), default=0)
    return row.input_ids[:last]


def common_opening(inputs: Sequence[list[int]]) -> list[int]:
    """Return the longest list of ids that every input starts with."""
    if not inputs:
        return []
    # Python compares lists item by item, so the smallest and the largest input are the two that differ earliest
    shortest, longest = min(inputs), max(inputs)
    same = next((i for i, pair in enumerate(zip(shortest, longest, strict=False)) if pair[0] != pair[1]), len(shortest))
    return shortest[:same]


def plan_batches(lengths: Sequence[int], size: int, *, largest_gap: int | None = None) -> list[list[int]]:
    """Group row indices into batches of at most `size` rows of similar length.

    The longest rows come first. A batch that is too large for the memory then fails at the start, and the remaining
    time that a progress bar shows gets shorter rather than longer.

    Args:
        lengths: the number of tokens of every row.
        largest_gap: how many tokens the lengths in a batch may differ by; None means any number.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        last = batches[-1] if batches else []
        fits = largest_gap is None or (last and lengths[last[0]] - lengths[place] <= largest_gap)
        if last and len(last) < size and fits:
            last.append(place)
        else:
            batches.append([place])
    return batches


def pad_rows(rows: Sequence[EncodedRow], *, pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """Right-pad rows to the longest one; returns `input_ids`, `attention_mask` and `labels`, each int64 `[B, T]`."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(sequences: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([ids + [fill] * (longest - len(ids)) for ids in sequences], device=device)

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORE_INDEX),
    }
