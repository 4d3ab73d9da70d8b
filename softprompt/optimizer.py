"""One update of the prompt from its gradient: unscale, clip, AdamW. The prompt and its moments are fp32."""

import math
from typing import Any

import torch
from torch import nn

from softprompt.errors import UserError
from softprompt.prompt import rms

# Adam moves a weight by about its rate per step, so a rate relative to the prompt's scale fits every embedding
RELATIVE_RATE = 0.3


class PromptOptimizer:
    """AdamW on one tensor, with gradient clipping and, for fp16, loss scaling."""

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        learning_rate: float | None,
        weight_decay: float,
        max_grad_norm: float,
        scale_loss: bool,
    ) -> None:
        """Start without any history.

        Args:
            weight: the prompt, fp32 `[P, H]`.
            learning_rate: AdamW's; None is relative to the RMS of `weight` as it is now.
            max_grad_norm: 0 is no clipping.
            scale_loss: scale losses so that fp16 gradients do not underflow.
        """
        self.weight, self.max_grad_norm = weight, max_grad_norm
        self.scale = rms(weight).item()
        self.rate = learning_rate or RELATIVE_RATE * self.scale
        self.adamw = torch.optim.AdamW([weight], lr=self.rate, weight_decay=weight_decay)
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
            UserError: the gradient or the prompt is not finite; it begins with `where`.
        """
        self.adamw.param_groups[0]["lr"] = self.rate * factor
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_([self.weight], self.max_grad_norm or math.inf).item()
        # fp16 skips a step that overflowed and halves the loss's scale; below 1 the scale is not what overflows
        if not math.isfinite(norm) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise self.diverged(where, "gradient")
        self.scaler.step(self.adamw)
        if not torch.isfinite(self.weight).all():
            raise self.diverged(where, "prompt")
        self.scaler.update()
        self.discard()
        return norm

    def diverged(self, where: str, what: str) -> UserError:
        """What is said of a run that cannot go on."""
        return UserError(f"{where}: the {what} is not finite; lower --learning-rate (it was {self.rate:.3g})")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rate": self.rate, "adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to `state()`."""
        self.rate = state["rate"]
        self.adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
