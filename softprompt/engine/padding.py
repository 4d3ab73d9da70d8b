"""Which rows share a padded batch, and encoded rows to padded tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.data.encoding import IGNORE_INDEX, EncodedRow


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
