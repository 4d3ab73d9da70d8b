"""Loss on held-out rows, with the prompt and with the base alone."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from softprompt.encoding import EncodedRow
from softprompt.model import SoftPromptModel
from softprompt.passes import pass_losses

# of one pass; fixed numbers, so that the figure does not depend on the training flags
TOKENS_PER_PASS = 2048
ROWS_PER_BATCH = 8


@torch.no_grad()
def mean_loss(model: SoftPromptModel | PreTrainedModel, rows: Sequence[EncodedRow], *, pad_token_id: int) -> float:
    """Cross-entropy per supervised token over all rows (summed, then divided once).

    Args:
        model: a base with a prompt, or a base alone.
    """
    limits = {"max_tokens": TOKENS_PER_PASS, "rows_per_batch": ROWS_PER_BATCH}
    total = sum(loss.item() for loss in pass_losses(model, rows, pad_token_id=pad_token_id, **limits))
    return total / sum(row.num_supervised for row in rows)
