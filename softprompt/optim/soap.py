"""SOAP on a sphere: Adam along the axes in which a prompt's gradients vary, while every virtual token keeps its norm.

SOAP (Vyas et al., 2024) rotates the gradient matrix into the eigenvectors of its left and right covariance and runs
Adam there. A prompt is so small that running estimates are not needed: the last gradients are kept whole, and means,
axes and squares are weighted sums over them, so a step is a function of that window alone. The length of a step does
not depend on the axes: it is the learning rate while the gradients agree, and shorter the more they cancel out. Bases
normalise their input, so a prompt whose norms grew would only turn more slowly; keeping the norms leaves the pace to
the schedule.
"""

from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 32  # number of gradients that are kept; older ones would weigh below 0.2 of the last
MOST_ROWS = 512  # most rows of all kept gradients together; the time to find the axes grows with their cube
RELATIVE_EPSILON = 1e-3  # Adam's epsilon is this times the RMS over all axes
LEAST_EIGENVALUE = 1e-6  # relative to the largest; along axes below it, gradients are next to zero
TINY = 1e-30  # keeps divisors above zero


class SphericalSOAP(torch.optim.Optimizer):
    """An optimizer for one matrix of virtual tokens, fp32 `[P, H]`, that keeps the row norms of the start."""

    def __init__(self, weight: nn.Parameter, *, lr: float, betas: tuple[float, float]) -> None:
        """Create the optimizer without any history.

        Args:
            lr: the RMS of a step's elements while all gradients are the same.
            betas: decays of the mean gradient and of the squared gradients, as Adam's.
        """
        super().__init__([weight], {"lr": lr, "betas": betas})
        self.window = window(len(weight))
        norms = weight.detach().norm(dim=1, keepdim=True)
        self.state[weight] = {"gradients": weight.detach().new_zeros(0, *weight.shape), "norms": norms}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step and restore the norm of every row; rows that began at zero have none and move freely.

        If a step is so long that the norm of a row overflows, the row becomes NaN and not zero, so that it is noticed.

        Args:
            closure: computes loss and gradient anew, as for every optimizer of torch; the loss is returned.
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
    """Return how many gradients are kept."""
    return max(2, min(WINDOW, MOST_ROWS // num_virtual_tokens))


def direction(gradients: Tensor, betas: tuple[float, float]) -> Tensor:
    """Return the SOAP direction `[P, H]`, before the minus sign and the learning rate.

    Args:
        gradients: the last gradients `[n, P, H]`, oldest first. If all are the same, the RMS of the direction is 1.
        betas: decays of the mean and of the squares.
    """
    mean_weights, square_weights = (_decaying(gradients, beta) for beta in betas)
    # the squares of this carry the weights, so its covariances are the weighted ones
    weighted = gradients * square_weights.sqrt()
    left = principal_axes(weighted.transpose(1, 2).flatten(0, 1))
    right = principal_axes(weighted.flatten(0, 1))
    mean = (gradients * mean_weights).sum(0)
    # Adam between the axes: the rotated mean, divided by the RMS of the rotated gradients plus epsilon
    along = (left.T @ weighted @ right).square().sum(0).sqrt()
    along += RELATIVE_EPSILON * along.square().mean().sqrt() + TINY
    step = left @ (left.T @ mean @ right / along) @ right.T
    # the RMS of the direction: 1 if all gradients are the same, and less the more they cancel out
    agreement = mean.norm() / weighted.norm().clamp_min(TINY)
    return step * (agreement / step.square().mean().sqrt().clamp_min(TINY))


def principal_axes(rows: Tensor) -> Tensor:
    """Return as columns `[d, k]` the eigenvectors of the covariance of `rows` `[n, d]` that are not negligible."""
    # A covariance has squares, which leave half the digits, and a rounding error turns axes of similar eigenvalues.
    exact = rows.double()
    # With fewer rows than columns, the eigenvectors v of rows @ rows.T `[n, n]` are cheaper, and give rows.T @ v.
    wide = len(rows) < rows.shape[1]
    gram = exact @ exact.T if wide else exact.T @ exact
    values, vectors = torch.linalg.eigh(gram / gram.trace().clamp_min(TINY))
    vectors = vectors[:, values > LEAST_EIGENVALUE * values[-1]]
    return (nn.functional.normalize(exact.T @ vectors, dim=0) if wide else vectors).to(rows.dtype)


def _decaying(gradients: Tensor, beta: float) -> Tensor:
    """Return weights `[n, 1, 1]` that decay by `beta` from the last gradient back to the first, and sum to one."""
    ages = torch.arange(len(gradients) - 1, -1, -1, device=gradients.device, dtype=gradients.dtype)
    weights = beta**ages
    return (weights / weights.sum())[:, None, None]
