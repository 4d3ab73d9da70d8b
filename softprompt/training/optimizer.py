"""One update of the prompt from its gradient: unscale, clip, then SOAP or AdamW, all in fp32.

The default learning rate and clipping norm are relative to the prompt's scale, which is the RMS of its initial values.
The output of a base that normalises its input does not depend on that scale, but the gradient is inversely proportional
to it. Both optimizers move a weight by about the learning rate, whatever the size of the gradient. Relative to the
scale, one default therefore fits every base. `benchmarks/quality/defaults.py` compares it with others, and
`docs/experiments.md` has the figures.
"""

import math
from typing import Any

import torch
from torch import nn

from softprompt.config.commands import TrainConfig
from softprompt.errors import Diverged
from softprompt.prompt.embedding import rms
from softprompt.training.soap import SphericalSOAP

RELATIVE_RATES = {"soap": 0.3, "adamw": 1.0}  # the default learning rate is this times the scale
RELATIVE_EPSILON = 1e-8  # AdamW's epsilon is this divided by the scale
# The default clipping norm is this divided by the scale. It clips nearly every step, so that rows with large gradients
# do not dominate the others.
RELATIVE_GRAD_NORM = 0.03


class PromptOptimizer:
    """SOAP or AdamW on one tensor, with gradient clipping and, for fp16, loss scaling."""

    def __init__(self, weight: nn.Parameter, config: TrainConfig, *, scale_loss: bool) -> None:
        """Create the optimizer without any history.

        Args:
            weight: the prompt, fp32 `[P, H]`. Its RMS gives the rate and the clipping norm that `config` leaves open.
            scale_loss: whether to scale losses, so that fp16 gradients do not underflow.
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
        """Add the gradient of `loss` to the gradient of the step so far."""
        self.scaler.scale(loss).backward()

    def discard(self) -> None:
        """Clear the gradient without a step."""
        self.inner.zero_grad()

    def step(self, factor: float, *, where: str) -> float:
        """Update the prompt at `factor` times the learning rate, and clear the gradient.

        Returns:
            The norm of the gradient before clipping.

        Raises:
            Diverged: the gradient or the prompt is not finite; the message begins with `where`.
        """
        self.inner.param_groups[0]["lr"] = self.rate * factor
        self.scaler.unscale_(self.inner)
        gradient = self.weight.grad
        assert gradient is not None  # `backward` was called before
        norm = gradient.norm().item()
        if norm > self.max_grad_norm:  # clip_grad_norm_ adds 1e-6 to the norm, too much for wide embeddings
            gradient *= self.max_grad_norm / norm
        # With fp16, the scaler skips a step whose gradient overflowed and halves the loss scale. Once that scale is
        # below 1, it is not what makes the gradient overflow.
        if not math.isfinite(norm) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise self.diverged(where, "gradient")
        self.scaler.step(self.inner)
        if not torch.isfinite(self.weight).all():
            raise self.diverged(where, "prompt")
        self.scaler.update()
        self.discard()
        return norm

    def diverged(self, where: str, what: str) -> Diverged:
        """Return the exception for a run that cannot go on because `what` is not finite."""
        return Diverged(f"{where}: the {what} is not finite; lower `learning_rate` (it was {self.rate:.3g})")

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the optimizer."""
        return {
            "rate": self.rate,
            "max_grad_norm": self.max_grad_norm,
            "inner": self.inner.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state()` returned."""
        self.rate, self.max_grad_norm = state["rate"], state["max_grad_norm"]
        self.inner.load_state_dict(state["inner"])
        self.scaler.load_state_dict(state["scaler"])
