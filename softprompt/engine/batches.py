"""Which rows share a forward pass, and where every token stands in it. Pure functions on lists.

A pack is one sequence. In front stands what all of its rows begin with: the prompt and the ids that they have in
common (the template's opening words). Behind it come the rests of the rows, one after another, without padding:

    place      0 .. P-1   P .. Z-1     Z ..            ..
    holds      prompt     opening      rest of row 1   rest of row 2   ...
    position   0 .. P-1   P .. Z-1     Z, Z+1, ..      Z, Z+1, ..

Attention is causal, so the first Z places do not depend on any row and are computed once for all of them
(`attention.py`). A row ends with the last token that predicts something: its eos is a target and never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from softprompt.data.encoding import IGNORE_INDEX, EncodedRow


@dataclass(frozen=True)
class Pack:
    """Rows behind one prompt of P virtual tokens, as one sequence of S places.

    Attributes:
        num_virtual_tokens: P; 0 for the base alone.
        input_ids: the S - P ids behind the prompt.
        bounds: Z, then the end of every row that has places of its own, so that the last one is S.
        places: the N places whose hidden states predict something; one in front of Z may stand there for several rows.
        targets: the id that each of them is to predict.
        counts: how many of them belong to each row, in order.
    """

    num_virtual_tokens: int
    input_ids: list[int]
    bounds: list[int]
    places: list[int]
    targets: list[int]
    counts: list[int]

    @property
    def num_shared(self) -> int:
        """Z."""
        return self.bounds[0]

    @property
    def position_ids(self) -> list[int]:
        """Positions of all S places; every row's own begin at Z."""
        own = [range(self.num_shared, self.num_shared + end - start) for start, end in pairwise(self.bounds)]
        return [*range(self.num_shared), *(position for row in own for position in row)]


def pack_rows(rows: Sequence[EncodedRow], *, num_virtual_tokens: int) -> Pack:
    """Put rows behind one prompt. A row without labels leaves nothing behind.

    With no prompt, the first id of a row is predicted from nothing, so its label does not count.
    """
    inputs = [ids for row in rows if (ids := needed_ids(row))]
    opening = _common_opening(inputs)
    shared = num_virtual_tokens + len(opening)
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
            if label == IGNORE_INDEX or (token == 0 and num_virtual_tokens == 0):
                continue
            place = num_virtual_tokens + token - 1  # the token before predicts it
            places.append(place if place < shared else place - shared + start)
            targets.append(label)
        counts.append(len(targets) - before)
        start += max(0, end - len(opening))
    return Pack(num_virtual_tokens, opening + [id for rest in rests for id in rest], bounds, places, targets, counts)


def cut_passes(rows: Sequence[EncodedRow], *, num_virtual_tokens: int, max_tokens: int) -> list[list[EncodedRow]]:
    """Distribute rows over as few passes as `max_tokens` places, prompt included, allow; the longest rows go first.

    A row that is longer than that gets a pass of its own.
    """
    passes: list[tuple[int, list[EncodedRow]]] = []
    for row in sorted(rows, key=lambda row: len(needed_ids(row)), reverse=True):
        length = len(needed_ids(row))
        place = next((i for i, (used, _) in enumerate(passes) if used + length <= max_tokens), None)
        if place is None:
            passes.append((num_virtual_tokens + length, [row]))
        else:
            passes[place] = (passes[place][0] + length, [*passes[place][1], row])
    return [members for _, members in passes]


def needed_ids(row: EncodedRow) -> list[int]:
    """The ids that some prediction of this row rests on: all in front of its last label."""
    last = max((token for token, label in enumerate(row.labels) if label != IGNORE_INDEX), default=0)
    return row.input_ids[:last]


def _common_opening(inputs: Sequence[list[int]]) -> list[int]:
    """The longest list that every input starts with."""
    if not inputs:
        return []
    shortest, longest = min(inputs), max(inputs)  # in the order of lists, the two that differ first
    same = next((i for i, pair in enumerate(zip(shortest, longest, strict=False)) if pair[0] != pair[1]), len(shortest))
    return shortest[:same]


def plan_batches(lengths: Sequence[int], size: int, *, largest_gap: int | None = None) -> list[list[int]]:
    """Places in batches of at most `size` rows of like length.

    The longest come first, so that a batch too large for the memory fails at the start, and the time that the bar
    foretells shrinks.

    Args:
        largest_gap: most tokens by which the lengths in a batch may differ; None is any number.
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
    """Right-pad rows to the longest: `input_ids`, `attention_mask` and `labels`, each int64 `[B, T]`."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(sequences: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([ids + [fill] * (longest - len(ids)) for ids in sequences], device=device)

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORE_INDEX),
    }
