"""KL divergence from a teacher to a student under one LM head, as a sum over tokens, without whole logits.

Both sides are final hidden states `[N, H]` of the same base. KL(teacher || student) of a token is the sum over the
vocabulary of p log(p / q), where p is the teacher's distribution and q the student's. With a temperature both
distributions are those of the divided logits, and the sum is multiplied by the temperature's square, so that its
gradient keeps its size (Hinton et al., 2015, section 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.engine.loss import CHUNK_LOGITS, FINE_LOGITS, MIN_CHUNK, Head, widened


def head_divergence(
    hidden: Tensor, goal: Tensor, head: Head, targets: Tensor, *, temperature: float = 1.0, ce: float = 0.0
) -> Tensor:
    """Sum (1 - ce) KL(teacher || student) + ce (-log q(target)) without ever holding all `[N, V]` logits of a side.

    As for cross-entropy, the gradient with respect to `hidden` is computed in the forward pass, chunk by chunk.

    Args:
        hidden: the student's states, `[N, H]` in the LM head's dtype; N is at least 1.
        goal: the teacher's states, `[N, H]`, which are constants.
        targets: `[N]`, int64 ids; only the share `ce` looks at them.

    Returns:
        A scalar in fp32 (fp64 for fp64 hidden states).
    """
    return _HeadDivergence.apply(hidden, goal, head, targets, temperature, ce)


@torch.no_grad()
def divergence_of_each(hidden: Tensor, goal: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return KL(teacher || student) of every token, `[N]`, and whether both sides have the same argmax, bool `[N]`.

    The dtype of the first tensor is fp32 (fp64 for fp64); the arguments are those of `head_divergence`.
    """
    size = max(MIN_CHUNK, FINE_LOGITS // head.weight.shape[0])
    divergences, hits = [], []
    for some, other in zip(hidden.split(size), goal.split(size), strict=True):
        student, teacher = (widened(F.linear(x, head.weight, head.bias), head) for x in (some, other))  # [chunk, V]
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
        hits.append(teacher.argmax(-1) == student.argmax(-1))
    return torch.cat(divergences), torch.cat(hits)


class _HeadDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, goal: Tensor, head: Head, targets: Tensor, temperature: float, ce: float
    ) -> Tensor:
        with_gradient = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if with_gradient else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        most = max(MIN_CHUNK, CHUNK_LOGITS // (2 * head.weight.shape[0]))  # two sides exist at a time
        size = -(-len(hidden) // -(-len(hidden) // most))
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            logits, goals = (F.linear(x[chunk], head.weight, head.bias) for x in (hidden, goal))  # [chunk, V]
            total += _sum_into_gradient(logits, goals, head, targets[chunk], temperature, ce, with_gradient)
            if grad is not None:
                torch.mm(logits, head.weight, out=grad[chunk])
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_output, None, None, None, None, None


def _sum_into_gradient(
    logits: Tensor, goals: Tensor, head: Head, targets: Tensor, temperature: float, ce: float, with_gradient: bool
) -> Tensor:
    """Sum the loss of raw logits `[chunk, V]`; `with_gradient` overwrites them with the gradient of the sum."""
    total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    size = len(logits) if logits.is_cuda else max(1, FINE_LOGITS // logits.shape[1])
    for raw, goal, target in zip(logits.split(size), goals.split(size), targets.split(size), strict=True):
        student = widened(raw, head)
        log_p = (widened(goal, head) / temperature).log_softmax(-1)
        log_q = (student / temperature).log_softmax(-1)
        p = log_p.exp()
        total = total + (1 - ce) * temperature**2 * (p * (log_p - log_q)).sum()
        slope = log_q.exp_().sub_(p).mul_((1 - ce) * temperature) if with_gradient else None
        if ce:
            log_one = student.log_softmax(-1)
            picked = target[:, None]
            total = total - ce * log_one.gather(1, picked).sum()
            if slope is not None:
                slope += ce * log_one.exp_().scatter_add_(1, picked, torch.full_like(picked, -1, dtype=log_one.dtype))
        if slope is not None:
            if head.softcap is not None:
                slope *= 1 - (student / head.softcap).square()  # the derivative of the cap, whose value is `student`
            raw.copy_(slope.mul_(head.scale))
    return total
