"""The optimizers that `defaults.py` compares, each a way from a gradient to a step of the prompt."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from variants import Variant

from softprompt.optim.soap import SphericalSOAP, window
from softprompt.prompt.embedding import rms

ROUNDING = 1e-6


@torch.no_grad()
def disturb(weight: Tensor, seed: int) -> None:
    """Change every value by a millionth or so, as other roundings would in time."""
    generator = torch.Generator().manual_seed(seed)
    weight *= 1 + ROUNDING * torch.randn(weight.shape, generator=generator)


class Update:
    """From a gradient to a step: clipping, and then what a subclass does."""

    def __init__(self, weight: nn.Parameter, variant: Variant) -> None:
        self.weight, self.variant = weight, variant
        self.scale = rms(weight)
        if variant.by_token:
            self.scale = weight.detach().square().mean(1, keepdim=True).sqrt()
        self.norm, self.count = 0.0, 0
        self.momentum = torch.zeros_like(weight)
        self.square = torch.zeros_like(weight)

    def step(self, factor: float) -> None:
        """Move the weight, and clear its gradient."""
        grad = self.clipped(self.weight.grad * self.scale)  # of weight / scale
        with torch.no_grad():
            self.weight -= self.scale * self.variant.rate * factor * self.direction(grad)
        self.weight.grad = None

    def clipped(self, grad: Tensor) -> Tensor:
        """The gradient after the variant's clipping."""
        norm, limit = grad.norm().item(), math.inf
        self.count += 1
        if self.variant.clip is not None:
            limit = self.variant.clip
        if self.variant.tame is not None and self.count > 1:
            limit = self.variant.tame * self.norm
        used = min(norm, limit)
        weight = max(0.1, 1 / self.count)
        self.norm = used if self.count == 1 else (1 - weight) * self.norm + weight * min(norm, 2 * self.norm)
        return grad * (used / max(norm, 1e-30))

    def direction(self, grad: Tensor) -> Tensor:
        """Adam's (Kingma and Ba, 2015)."""
        beta1, beta2 = self.variant.beta1, self.variant.beta2
        self.momentum.lerp_(grad, 1 - beta1)
        self.square.lerp_(grad.square(), 1 - beta2)
        mean, square = self.momentum / (1 - beta1**self.count), self.square / (1 - beta2**self.count)
        return mean / (square.sqrt() + 1e-8)


class NAdam(Update):
    def direction(self, grad: Tensor) -> Tensor:
        """Adam's with Nesterov's look ahead (Dozat, 2016)."""
        beta1, beta2 = self.variant.beta1, self.variant.beta2
        self.momentum.lerp_(grad, 1 - beta1)
        self.square.lerp_(grad.square(), 1 - beta2)
        ahead = beta1 * self.momentum / (1 - beta1 ** (self.count + 1)) + (1 - beta1) * grad / (1 - beta1**self.count)
        return ahead / ((self.square / (1 - beta2**self.count)).sqrt() + 1e-8)


class Muon(Update):
    def direction(self, grad: Tensor) -> Tensor:
        """The momentum with all its singular values set to one (Jordan et al., 2024), at the RMS of Adam's step."""
        self.momentum.mul_(0.95).add_(grad)
        u, _, v = torch.linalg.svd(grad + 0.95 * self.momentum, full_matrices=False)
        return 0.2 * math.sqrt(max(grad.shape)) * u @ v


class Soap(Update):
    """`softprompt/optim/soap.py`, which is the default."""

    def __init__(self, weight: nn.Parameter, variant: Variant) -> None:
        super().__init__(weight, variant)
        self.soap = SphericalSOAP(weight, lr=0.0, betas=(variant.beta1, variant.beta2))
        if not variant.sphere:
            self.soap.state[weight]["norms"].zero_()

    def step(self, factor: float) -> None:
        """Clip as all do, and step."""
        self.weight.grad = self.clipped(self.weight.grad * self.scale)
        self.soap.param_groups[0]["lr"] = (self.scale * self.variant.rate * factor).item()
        self.soap.step()
        self.weight.grad = None


class Shampoo(Update):
    """Shampoo with roots of one half (Morwani et al., 2024) on SOAP's window, with its length of a step and its sphere.

    A damped root of a covariance is smooth where its eigenvectors, SOAP's axes, turn with the last digit.
    """

    def __init__(self, weight: nn.Parameter, variant: Variant) -> None:
        super().__init__(weight, variant)
        self.gradients = weight.detach().new_zeros(0, *weight.shape)
        self.norms = weight.detach().norm(dim=1, keepdim=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Clip as all do, step, and give every virtual token its norm back."""
        grad = self.clipped(self.weight.grad * self.scale)
        self.gradients = torch.cat([self.gradients, grad[None]])[-window(len(grad)) :]
        self.weight -= self.scale * self.variant.rate * factor * self.direction(grad)
        self.weight *= self.norms / self.weight.norm(dim=1, keepdim=True)
        self.weight.grad = None

    def direction(self, grad: Tensor) -> Tensor:
        """The mean of the window between the roots of its left and right covariance."""
        ages = torch.arange(len(self.gradients) - 1, -1, -1, dtype=grad.dtype)[:, None, None]
        weights = [beta**ages / (beta**ages).sum() for beta in (self.variant.beta1, self.variant.beta2)]
        mean, weighted = (self.gradients * weights[0]).sum(0), self.gradients * weights[1].sqrt()
        step = whitened(weighted.transpose(1, 2).flatten(0, 1), mean.T, self.variant.damping).T
        step = whitened(weighted.flatten(0, 1), step, self.variant.damping)
        return step * (mean.norm() / weighted.norm() / step.square().mean().sqrt())


def whitened(rows: Tensor, matrix: Tensor, damping: float) -> Tensor:
    """`matrix` `[m, d]`, in the span of `rows` `[n, d]`, times their covariance over its norm plus damping, to -1/2."""
    exact = rows.double()
    values, vectors = torch.linalg.eigh(exact @ exact.T if len(rows) < rows.shape[1] else exact.T @ exact)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    if len(rows) < rows.shape[1]:
        vectors = nn.functional.normalize(exact.T @ vectors, dim=0)
    return ((matrix.double() @ vectors) * (values / values[-1] + damping).rsqrt() @ vectors.T).to(matrix.dtype)


class Reparameterised(Update):
    """Adam on parts of which the prompt is made, and which are folded into it after every step."""

    def __init__(self, weight: nn.Parameter, variant: Variant) -> None:
        super().__init__(weight, variant)
        width, inner = weight.shape[1], variant.mlp or variant.rank
        generator = torch.Generator().manual_seed(0)
        self.start = weight.detach() / self.scale
        first, scale = (inner, width) if variant.mlp else (len(weight), inner), width if variant.mlp else inner
        self.down = (torch.randn(first, generator=generator) / math.sqrt(scale)).requires_grad_()
        self.up = torch.zeros((width, inner) if variant.mlp else (inner, width), requires_grad=True)
        self.vectors = self.start.clone().requires_grad_(variant.mlp is not None)
        parts = [self.down, self.up] + ([self.vectors] if variant.mlp else [])
        self.adamw = torch.optim.AdamW(parts, betas=(variant.beta1, variant.beta2), weight_decay=0.0)

    def step(self, factor: float) -> None:
        """The chain rule by autograd, Adam on all parts, and the fold."""
        self.folded().backward(self.clipped(self.weight.grad * self.scale))
        self.adamw.param_groups[0]["lr"] = self.variant.rate * factor
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            self.weight.copy_(self.folded() * self.scale)
        self.weight.grad = None

    def folded(self) -> Tensor:
        """The prompt over its scale: vectors and a residual MLP of them, or the start plus a low-rank change."""
        if self.variant.mlp:
            return self.vectors + torch.relu(self.vectors @ self.down.T) @ self.up.T
        return self.vectors + self.down @ self.up


UPDATES: dict[str, Callable] = {"adamw": Update, "nadam": NAdam, "muon": Muon, "soap": Soap, "shampoo": Shampoo}
