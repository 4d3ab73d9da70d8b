"""Loss on held-out rows, with the prompt and with the base alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.batching import pad_rows
from softprompt.encoding import IGNORE_INDEX, EncodedRow
from softprompt.loss import summed_cross_entropy
from softprompt.model import SoftPromptModel

# rows of one pass; a fixed number, so that the figure does not depend on the training flags
ROWS_PER_PASS = 8


@torch.no_grad()
def mean_loss(model: SoftPromptModel | PreTrainedModel, rows: Sequence[EncodedRow], *, pad_token_id: int) -> float:
    """Cross-entropy per supervised token over all rows (summed, then divided once).

    Args:
        model: a base with a prompt, or a base alone.
    """
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for start in range(0, len(rows), ROWS_PER_PASS):
        batch = rows[start : start + ROWS_PER_PASS]
        tensors = pad_rows(batch, pad_token_id=pad_token_id, device=device)
        summed = model.summed_loss if isinstance(model, SoftPromptModel) else _base_summed_loss(model)
        total += summed(**tensors).item()
        count += sum(row.num_supervised for row in batch)
    return total / count


def _base_summed_loss(base_model: PreTrainedModel):
    """The base's own loss without any prompt."""

    def summed(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        logits = base_model(input_ids, attention_mask=attention_mask, use_cache=False).logits  # [B, T, V]
        targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)
        return summed_cross_entropy(logits, targets)

    return summed
