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
from softprompt.optim.soap import SphericalSOAP
from softprompt.prompt.embedding import rms
from softprompt.prompt.file import MAX_VALUE
from softprompt.system.process import is_out_of_memory
from softprompt.training.state_file import Damaged, from_number, to_number

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

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return what to differentiate in place of `loss`; `step` undoes the scale, which is 1 but for fp16."""
        return self.scaler.scale(loss)

    def discard(self) -> None:
        """Clear the gradient without a step."""
        self.inner.zero_grad()

    def step(self, factor: float, *, where: str) -> float:
        """Update the prompt at `factor` times the learning rate, and clear the gradient.

        Returns:
            The norm of the gradient before clipping.

        Raises:
            Diverged: the gradient or the new prompt is not finite; the message begins with `where`, and the prompt is
                as it was before.
        """
        self.inner.param_groups[0]["lr"] = self.rate * factor
        self.scaler.unscale_(self.inner)
        gradient = self.weight.grad
        assert gradient is not None  # a scaled loss was differentiated before
        norm = gradient.norm().item()
        if norm > self.max_grad_norm:  # clip_grad_norm_ adds 1e-6 to the norm, too much for wide embeddings
            gradient *= self.max_grad_norm / norm
        # With fp16, the scaler skips a step whose gradient overflowed and halves the loss scale. Once that scale is
        # below 1, it is not what makes the gradient overflow.
        usable = math.isfinite(norm) or (self.scaler.is_enabled() and self.scaler.get_scale() >= 1)
        moved = usable and self._move()
        self.scaler.update()
        self.discard()
        if not usable:
            raise self.diverged(where, "gradient")
        if not moved:
            raise self.diverged(where, "prompt")
        return norm

    def _move(self) -> bool:
        """Let the optimizer take its step, or take it back if no base could compute with the prompt; return whether."""
        before = self.weight.detach().clone()
        try:
            self.scaler.step(self.inner)
        except RuntimeError as error:  # a rate or a quotient that fp32 cannot hold, or axes that are not found
            if is_out_of_memory(error):
                raise
            self.weight.data.copy_(before)
            return False
        if self.weight.abs().amax() <= MAX_VALUE:  # which NaN is not
            return True
        self.weight.data.copy_(before)
        return False

    def diverged(self, where: str, what: str) -> Diverged:
        """Return the exception for a step that cannot be taken because `what` is not finite."""
        return Diverged(f"{where}: the {what} is not finite")

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[range, ...]]]:
        """Return the dtype and the possible sizes of the tensors that `tensors` returns."""
        rows, columns = (range(size, size + 1) for size in self.weight.shape)
        if isinstance(self.inner, SphericalSOAP):
            one, kept = range(1, 2), range(self.inner.window + 1)
            return {"gradients": (torch.float32, (kept, rows, columns)), "norms": (torch.float32, (rows, one))}
        moments = {name: (torch.float32, (rows, columns)) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": (torch.float32, ()), **moments}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a checkpoint keeps of the optimizer; AdamW has none before its first step."""
        return dict(self.inner.state[self.weight]) if self.weight in self.inner.state else {}

    def numbers(self) -> dict[str, Any]:
        """Return the numbers that a checkpoint keeps of the optimizer."""
        scaler = self.scaler.state_dict()
        kept = {"scale": to_number(scaler["scale"]), "growth_tracker": scaler["_growth_tracker"]} if scaler else None
        return {"rate": to_number(self.rate), "max_grad_norm": to_number(self.max_grad_norm), "scaler": kept}

    def load(self, numbers: dict[str, Any], tensors: dict[str, torch.Tensor], *, step: int) -> None:
        """Restore what `numbers` and `tensors` returned after `step` steps.

        Raises:
            Damaged: they are not of this optimizer.
        """
        names, scaler = self.layout().keys(), self.scaler.state_dict()
        steps = tensors.get("step")
        fits = tensors.keys() == names or (not tensors and "step" in names)
        fits = fits and (steps is None or steps.item() in range(step + 1))
        if not fits or (numbers["scaler"] is None) != (not scaler):
            raise Damaged("it is of another optimizer")
        self.rate, self.max_grad_norm = from_number(numbers["rate"]), from_number(numbers["max_grad_norm"])
        # torch keeps AdamW's count of steps on the CPU
        kept = {name: value if name == "step" else value.to(self.weight.device) for name, value in tensors.items()}
        if kept:
            self.inner.state[self.weight] = kept
        if scaler:
            growth = {"scale": from_number(numbers["scaler"]["scale"])}
            growth |= {"_growth_tracker": numbers["scaler"]["growth_tracker"]}
            self.scaler.load_state_dict(scaler | growth)
