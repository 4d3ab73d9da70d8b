"""SOAP on a sphere: Adam along the axes in which a prompt's gradients vary, and every virtual token keeps its norm.

SOAP (Vyas et al., 2024) rotates the gradient matrix into the eigenvectors of its left and right covariance and is Adam
there. A prompt is so small that no running estimate is needed: the last gradients are kept whole, and means, axes and
squares are weighted sums over them, so a step is a function of that window alone. The length of a step does not depend
on the axes: it is the rate while gradients agree, and less the more they cancel out. Bases normalise what they are
given, so a prompt that grew would only turn more slowly; keeping the norms leaves the pace to the schedule.
"""

from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 32  # gradients that are kept; older ones would weigh below 0.2 of the last
MOST_ROWS = 512  # of the window's gradients together: the time for the axes grows with their cube
RELATIVE_EPSILON = 1e-3  # added to the RMS along an axis, times that over all axes
LEAST_EIGENVALUE = 1e-6  # over the largest; a gradient has next to nothing along what is below
TINY = 1e-30


class SphericalSOAP(torch.optim.Optimizer):
    """Steps for one matrix of virtual tokens, fp32 `[P, H]`, whose row norms stay as they are at the start."""

    def __init__(self, weight: nn.Parameter, *, lr: float, betas: tuple[float, float]) -> None:
        """Start without any history.

        Args:
            lr: RMS of a step's elements while all gradients point the same way.
            betas: decays of the mean and of the squares, as Adam's.
        """
        super().__init__([weight], {"lr": lr, "betas": betas})
        self.window = window(len(weight))
        norms = weight.detach().norm(dim=1, keepdim=True)
        self.state[weight] = {"gradients": weight.detach().new_zeros(0, *weight.shape), "norms": norms}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move along the sphere; rows that began at zero have no norm to keep and move freely.

        A step so long that a norm overflows leaves values that are not finite, rather than zeros.

        Args:
            closure: computes loss and gradient anew, as every optimizer of torch takes one; the loss is returned.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        (group,) = self.param_groups
        (weight,) = group["params"]
        state = self.state[weight]
        state["gradients"] = torch.cat([state["gradients"], weight.grad[None]])[-self.window :]
        weight -= group["lr"] * direction(state["gradients"], group["betas"])
        norms = weight.norm(dim=1, keepdim=True)
        kept = torch.where(state["norms"] > 0, state["norms"] / norms.clamp_min(TINY), 1.0)
        weight *= torch.where(norms.isfinite(), kept, torch.nan)
        return loss


def window(num_virtual_tokens: int) -> int:
    """How many gradients are kept."""
    return max(2, min(WINDOW, MOST_ROWS // num_virtual_tokens))


def direction(gradients: Tensor, betas: tuple[float, float]) -> Tensor:
    """The way uphill `[P, H]` from the last gradients `[n, P, H]`, oldest first; its RMS is 1 if all are the same."""
    mean_weights, square_weights = (_decaying(gradients, beta) for beta in betas)
    weighted = gradients * square_weights.sqrt()
    left = principal_axes(weighted.transpose(1, 2).flatten(0, 1))
    right = principal_axes(weighted.flatten(0, 1))
    mean = (gradients * mean_weights).sum(0)
    along = (left.T @ weighted @ right).square().sum(0).sqrt()
    along += RELATIVE_EPSILON * along.square().mean().sqrt() + TINY
    step = left @ (left.T @ mean @ right / along) @ right.T
    agreement = mean.norm() / weighted.norm().clamp_min(TINY)
    return step * (agreement / step.square().mean().sqrt().clamp_min(TINY))


def principal_axes(rows: Tensor) -> Tensor:
    """Orthonormal columns `[d, k]`: the eigenvectors of the covariance of `rows` `[n, d]` that are not negligible."""
    exact = rows.double()  # squaring halves the digits, and axes of like length turn by all that is lost
    wide = len(rows) < rows.shape[1]
    gram = exact @ exact.T if wide else exact.T @ exact
    values, vectors = torch.linalg.eigh(gram / gram.trace().clamp_min(TINY))
    vectors = vectors[:, values > LEAST_EIGENVALUE * values[-1]]
    return (nn.functional.normalize(exact.T @ vectors, dim=0) if wide else vectors).to(rows.dtype)


def _decaying(gradients: Tensor, beta: float) -> Tensor:
    """Weights `[n, 1, 1]` that sum to one, the last one largest."""
    ages = torch.arange(len(gradients) - 1, -1, -1, device=gradients.device, dtype=gradients.dtype)
    weights = beta**ages
    return (weights / weights.sum())[:, None, None]
