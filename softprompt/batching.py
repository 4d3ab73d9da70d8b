"""Encoded rows to padded tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.encoding import IGNORE_INDEX, EncodedRow


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
