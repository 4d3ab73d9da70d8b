"""Cross-entropy as a sum over supervised tokens, to be divided once by their number in the whole step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.encoding import IGNORE_INDEX


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) over the targets that are not -100.

    Args:
        logits: `[..., V]`, any float dtype; half precisions are widened to fp32.
        targets: `[...]`, int64 ids or -100.

    Returns:
        A scalar, fp32 (fp64 for fp64 logits); 0 when nothing is supervised.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
