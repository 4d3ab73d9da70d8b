"""Loss on held-out rows, with the prompt and with the base alone: over all of them, and row by row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.batching import pad_rows, plan_batches
from softprompt.encoding import IGNORE_INDEX, EncodedRow
from softprompt.model import SoftPromptModel
from softprompt.passes import pass_losses

# of one pass; fixed numbers, so that the figure does not depend on the training flags
TOKENS_PER_PASS = 2048
ROWS_PER_BATCH = 8


@dataclass(frozen=True)
class RowScore:
    """One row under a model: cross-entropy summed over its supervised tokens, and how many of them are the argmax."""

    loss_sum: float
    num_correct: int
    num_supervised: int


@torch.no_grad()
def mean_loss(model: SoftPromptModel | PreTrainedModel, rows: Sequence[EncodedRow], *, pad_token_id: int) -> float:
    """Cross-entropy per supervised token over all rows (summed, then divided once).

    Args:
        model: a base with a prompt, or a base alone.
    """
    limits = {"max_tokens": TOKENS_PER_PASS, "rows_per_batch": ROWS_PER_BATCH}
    total = sum(loss.item() for loss in pass_losses(model, rows, pad_token_id=pad_token_id, **limits))
    return total / sum(row.num_supervised for row in rows)


@torch.no_grad()
def row_scores(
    model: SoftPromptModel | PreTrainedModel, rows: Sequence[EncodedRow], *, pad_token_id: int
) -> list[RowScore]:
    """Every row's own score, in the rows' order; a row scores what it scores alone.

    Args:
        model: a base with a prompt, or a base alone, which predicts nothing at a row's first place.
    """
    scores: dict[int, RowScore] = {}
    for places in plan_batches([len(row.input_ids) for row in rows], ROWS_PER_BATCH):
        batch = pad_rows(
            [rows[place] for place in places], pad_token_id=pad_token_id, device=next(model.parameters()).device
        )
        scores |= zip(places, _batch_scores(model, **batch), strict=True)
    return [scores[place] for place in range(len(rows))]


def _batch_scores(
    model: SoftPromptModel | PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> list[RowScore]:
    """Scores of the rows of a padded batch, all tensors `[B, T]`."""
    if isinstance(model, SoftPromptModel):
        front = model.soft_prompt.num_virtual_tokens
        logits = model(input_ids, attention_mask).logits[:, front - 1 : -1]  # [B, T, V]
    else:
        logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]  # [B, T - 1, V]
        labels = labels[:, 1:]
    supervised = labels != IGNORE_INDEX
    picked, targets = logits[supervised], labels[supervised]  # [N, V], [N]
    wide = picked.to(torch.promote_types(picked.dtype, torch.float32))
    losses = F.cross_entropy(wide, targets, reduction="none").double()
    correct = wide.argmax(-1) == targets
    counts = supervised.sum(1).tolist()
    return [
        RowScore(loss.sum().item(), int(right.sum()), count)
        for loss, right, count in zip(losses.split(counts), correct.split(counts), counts, strict=True)
    ]
