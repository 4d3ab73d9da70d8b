"""Why a base alone gives numbers that are not finite: which of its tensors holds them, or which layer makes them."""

import contextlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from softprompt.base.loading import Base
from softprompt.tokens.encoding import EncodedRow

CHUNK = 1 << 24  # elements of a tensor that are looked at together


def describe_fault(base: Base, rows: Iterable[EncodedRow]) -> str:
    """Say in one line why the base alone has no finite loss on rows, and what to do."""
    name = f"`model` {base.name}"
    half = base.precision == "fp16"
    wider = "run it with `precision` fp32 or bf16"
    for tensor, parameter in [*base.model.named_parameters(), *base.model.named_buffers()]:
        if parameter.is_floating_point() and not math.isfinite(worst := _worst(parameter)):
            if half and math.isinf(worst):
                return f"{name}: its tensor {tensor} overflows in fp16; {wider}"
            word = "NaN" if math.isnan(worst) else "infinity"
            return f"{name}: its tensor {tensor} holds {word}, so no prompt can help; fetch or save the base again"
    layers = ((row, _first_overflow(base, row.input_ids)) for row in rows)
    row, layer = next((each for each in layers if each[1]), (None, "its loss"))
    cause = "overflows in fp16" if half else f"is not finite in {base.precision}"
    where = f" on row {row.number}" if row else ""
    return f"{name}: without a prompt, {layer} {cause}{where}; {wider if half else 'take another base'}"


def _worst(tensor: Tensor) -> float:
    """Return NaN or an infinity if the tensor holds one, else a number."""
    worst = 0.0
    for part in tensor.detach().reshape(-1).split(CHUNK):
        largest = part.abs().max().item() if part.numel() else 0.0  # NaN if one is among them
        if math.isnan(largest):
            return largest
        worst = max(worst, largest)
    return worst


def _first_overflow(base: Base, ids: Sequence[int]) -> str | None:
    """Return the first layer of the base whose output on a text is not finite, named with its weight if it has one."""
    found: list[str] = []

    def look(name: str, module: nn.Module, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if not found and isinstance(first, Tensor) and first.is_floating_point() and not first.isfinite().all():
            weight = isinstance(getattr(module, "weight", None), Tensor)
            found.append(f"what {name}.weight gives" if weight else f"the output of {name}")

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in base.model.named_modules():
            if not any(module.children()):
                handle = module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
                hooks.callback(handle.remove)
        base.model(torch.tensor([list(ids)], device=base.device), use_cache=False)
    return found[0] if found else None
