"""One update of the prompt from its gradient: unscale, clip, SOAP or AdamW. The prompt and its state are fp32.

Rate and clipping are relative to the prompt's scale, the RMS of its initial values. Bases that normalise their input
do not see that scale, but gradients are inversely proportional to it, and both optimizers move a weight by about the
rate whatever the gradient: so relative to the scale, one default fits every base. `benchmarks/quality/defaults.py`
compares it with others; `docs/experiments.md` keeps the figures.
"""

import math
from typing import Any

import torch
from torch import nn

from softprompt.config.commands import TrainConfig
from softprompt.errors import Diverged
from softprompt.prompt.embedding import rms
from softprompt.training.soap import SphericalSOAP

RELATIVE_RATES = {"soap": 0.3, "adamw": 1.0}  # times the scale
RELATIVE_EPSILON = 1e-8  # of AdamW, over the scale
# over the scale; nearly every step is clipped, so that rows with large gradients do not drown the others
RELATIVE_GRAD_NORM = 0.03


class PromptOptimizer:
    """SOAP or AdamW on one tensor, with gradient clipping and, for fp16, loss scaling."""

    def __init__(self, weight: nn.Parameter, config: TrainConfig, *, scale_loss: bool) -> None:
        """Start without any history.

        Args:
            weight: the prompt, fp32 `[P, H]`; a rate or a clipping norm that `config` leaves open follows from its RMS.
            scale_loss: scale losses so that fp16 gradients do not underflow.
        """
        self.weight, self.scale = weight, rms(weight).item() or 1.0
        self.rate = config.learning_rate or RELATIVE_RATES[config.optim] * self.scale
        norm, betas = config.max_grad_norm, (config.adam_beta1, config.adam_beta2)
        self.max_grad_norm = (RELATIVE_GRAD_NORM / self.scale if norm is None else norm) or math.inf
        if config.optim == "soap":
            self.inner: torch.optim.Optimizer = SphericalSOAP(weight, lr=self.rate, betas=betas)
        else:
            epsilon, decay = RELATIVE_EPSILON / self.scale, config.weight_decay
            self.inner = torch.optim.AdamW([weight], lr=self.rate, betas=betas, eps=epsilon, weight_decay=decay)
        self.scaler = torch.amp.GradScaler(weight.device.type, enabled=scale_loss)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss to what has come before."""
        self.scaler.scale(loss).backward()

    def discard(self) -> None:
        """Forget the gradient."""
        self.inner.zero_grad()

    def step(self, factor: float, *, where: str) -> float:
        """Move the prompt at `factor` times the rate and clear its gradient, whose norm before clipping is returned.

        Raises:
            Diverged: the gradient or the prompt is not finite; it begins with `where`.
        """
        self.inner.param_groups[0]["lr"] = self.rate * factor
        self.scaler.unscale_(self.inner)
        gradient = self.weight.grad
        assert gradient is not None  # `backward` comes before
        norm = gradient.norm().item()
        if norm > self.max_grad_norm:  # torch's clipping adds 1e-6 to the norm, which wide embeddings would feel
            gradient *= self.max_grad_norm / norm
        # fp16 skips a step that overflowed and halves the loss's scale; below 1 the scale is not what overflows
        if not math.isfinite(norm) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise self.diverged(where, "gradient")
        self.scaler.step(self.inner)
        if not torch.isfinite(self.weight).all():
            raise self.diverged(where, "prompt")
        self.scaler.update()
        self.discard()
        return norm

    def diverged(self, where: str, what: str) -> Diverged:
        """What is said of a run that cannot go on."""
        return Diverged(f"{where}: the {what} is not finite; lower `learning_rate` (it was {self.rate:.3g})")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "rate": self.rate,
            "max_grad_norm": self.max_grad_norm,
            "inner": self.inner.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to `state()`."""
        self.rate, self.max_grad_norm = state["rate"], state["max_grad_norm"]
        self.inner.load_state_dict(state["inner"])
        self.scaler.load_state_dict(state["scaler"])
