"""One update of the prompt from its gradient: unscale, clip, AdamW. The prompt and its moments are fp32.

Rate and clipping are relative to the prompt's scale, the RMS of its initial values. Bases that normalise their input
do not see that scale, but gradients are inversely proportional to it, and Adam moves a weight by about its rate
whatever the gradient: so relative to the scale, one default fits every base. `benchmarks/defaults.py` compares it with
others; `docs/experiments.md` keeps the figures.
"""

import math
from typing import Any

import torch
from torch import nn

from softprompt.errors import Diverged
from softprompt.prompt import rms

RELATIVE_RATE = 1.0  # times the scale
RELATIVE_EPSILON = 1e-8  # of Adam, over the scale
# over the scale; nearly every step is clipped, so that rows with large gradients do not drown the others
RELATIVE_GRAD_NORM = 0.03


class PromptOptimizer:
    """AdamW on one tensor, with gradient clipping and, for fp16, loss scaling."""

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        learning_rate: float | None,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float | None,
        scale_loss: bool,
    ) -> None:
        """Start without any history.

        Args:
            weight: the prompt, fp32 `[P, H]`.
            learning_rate: AdamW's; None is relative to the RMS of `weight` as it is now.
            max_grad_norm: None is relative to that RMS too, 0 is no clipping.
            scale_loss: scale losses so that fp16 gradients do not underflow.
        """
        self.weight, self.scale = weight, rms(weight).item() or 1.0
        self.rate = learning_rate or RELATIVE_RATE * self.scale
        self.max_grad_norm = (RELATIVE_GRAD_NORM / self.scale if max_grad_norm is None else max_grad_norm) or math.inf
        settings = {"lr": self.rate, "betas": betas, "eps": RELATIVE_EPSILON / self.scale, "weight_decay": weight_decay}
        self.adamw = torch.optim.AdamW([weight], **settings)
        self.scaler = torch.amp.GradScaler(weight.device.type, enabled=scale_loss)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss to what has come before."""
        self.scaler.scale(loss).backward()

    def discard(self) -> None:
        """Forget the gradient."""
        self.adamw.zero_grad()

    def step(self, factor: float, *, where: str) -> float:
        """Move the prompt at `factor` times the rate and clear its gradient, whose norm before clipping is returned.

        Raises:
            Diverged: the gradient or the prompt is not finite; it begins with `where`.
        """
        self.adamw.param_groups[0]["lr"] = self.rate * factor
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_([self.weight], self.max_grad_norm).item()
        # fp16 skips a step that overflowed and halves the loss's scale; below 1 the scale is not what overflows
        if not math.isfinite(norm) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise self.diverged(where, "gradient")
        self.scaler.step(self.adamw)
        if not torch.isfinite(self.weight).all():
            raise self.diverged(where, "prompt")
        self.scaler.update()
        self.discard()
        return norm

    def diverged(self, where: str, what: str) -> Diverged:
        """What is said of a run that cannot go on."""
        return Diverged(f"{where}: the {what} is not finite; lower --learning-rate (it was {self.rate:.3g})")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "rate": self.rate,
            "max_grad_norm": self.max_grad_norm,
            "adamw": self.adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to `state()`."""
        self.rate, self.max_grad_norm = state["rate"], state["max_grad_norm"]
        self.adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
