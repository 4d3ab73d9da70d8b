"""Cross-entropy as a sum over supervised tokens. The caller divides it once, by their number in the whole step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.tokens.encoding import IGNORE_INDEX

CHUNK_LOGITS = 1 << 24  # so many logits exist at a time; chunks should be few, since each one reads the whole LM head
MIN_CHUNK = 128  # rows
FINE_LOGITS = 1 << 19  # so many logits are widened to fp32 at a time, which keeps them in a CPU's cache


@dataclass(frozen=True)
class Head:
    """The LM head, which turns final hidden states into logits: softcap x tanh(scale x (W h + b) / softcap).

    Attributes:
        weight: W, `[V, H]`.
        bias: b, `[V]`; None means no bias.
        softcap: None means no cap, so that the logits are scale x (W h + b).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, base_model: PreTrainedModel) -> "Head":
        """Read the LM head of a base, with what its config applies to the logits (Gemma 2's cap, Cohere's scale)."""
        module, config = base_model.get_output_embeddings(), base_model.config.get_text_config()
        scale, softcap = getattr(config, "logit_scale", None), getattr(config, "final_logit_softcapping", None)
        return cls(module.weight, getattr(module, "bias", None), scale or 1.0, softcap)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum -log p(target) over the targets that are not -100.

    Args:
        logits: `[..., V]`, any float dtype; half precisions are widened to fp32.
        targets: `[...]`, int64 ids or -100.

    Returns:
        A scalar in fp32 (fp64 for fp64 logits), which is 0 when every target is -100.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def head_cross_entropy(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Sum -log p(target) over hidden states without ever holding all `[N, V]` logits.

    The gradient with respect to `hidden` is computed in the forward pass, chunk by chunk while the logits exist. Only
    that `[chunk, H]` gradient is kept of a chunk.

    Args:
        hidden: `[N, H]` in the LM head's dtype; N is at least 1.
        targets: `[N]`, int64 ids; -100 is not allowed.

    Returns:
        A scalar in fp32 (fp64 for fp64 hidden states).
    """
    return _HeadCrossEntropy.apply(hidden, head, targets)


@torch.no_grad()
def head_scores(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p of every target, fp32 `[N]` (fp64 for fp64), and whether it is the argmax, bool `[N]`.

    The arguments are those of `head_cross_entropy`.
    """
    size = max(MIN_CHUNK, FINE_LOGITS // head.weight.shape[0])
    losses, hits = [], []
    for some, target in zip(hidden.split(size), targets.split(size), strict=True):
        logits = widened(F.linear(some, head.weight, head.bias), head)  # [chunk, V]
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        hits.append(logits.argmax(-1) == target)
    return torch.cat(losses), torch.cat(hits)


def widened(logits: Tensor, head: Head) -> Tensor:
    """Apply scale and soft cap to the raw `logits` W h + b, in fp32 (fp64 for fp64)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if head.scale != 1.0:
        wide = wide * head.scale
    return wide if head.softcap is None else head.softcap * torch.tanh(wide / head.softcap)


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
        with_gradient = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if with_gradient else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        most = max(MIN_CHUNK, CHUNK_LOGITS // head.weight.shape[0])
        size = -(-len(hidden) // -(-len(hidden) // most))  # all chunks get about the same size
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            logits = F.linear(hidden[chunk], head.weight, head.bias)  # [chunk, V]
            total += _loss_into_gradient(logits, head, targets[chunk], with_gradient)
            if grad is not None:
                torch.mm(logits, head.weight, out=grad[chunk])
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_output, None, None


def _loss_into_gradient(logits: Tensor, head: Head, targets: Tensor, with_gradient: bool) -> Tensor:
    """Sum the cross-entropy of raw logits `[chunk, V]`; `with_gradient` overwrites them with the sum's gradient."""
    total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    size = len(logits) if logits.is_cuda else max(1, FINE_LOGITS // logits.shape[1])
    for raw, target in zip(logits.split(size), targets.split(size), strict=True):
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if head.scale != 1.0:
            wide = wide * head.scale
        if head.softcap is not None:
            capped = torch.tanh(wide / head.softcap)
            wide = capped * head.softcap
        log_probabilities = wide.log_softmax(-1)
        picked = target[:, None]
        total = total - log_probabilities.gather(1, picked).sum()
        if with_gradient:
            # d loss / d logit = p - 1 at the target and p elsewhere; the cap adds the factor 1 - tanh^2
            slope = log_probabilities.exp_().scatter_add_(1, picked, torch.full_like(picked, -1, dtype=wide.dtype))
            if head.softcap is not None:
                slope *= 1 - capped.square()
            raw.copy_(slope.mul_(head.scale))
    return total
