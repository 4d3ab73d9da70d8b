"""Linear layers on few rows, as decoding one token of each text has them."""

import functools
import os

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

THIN = 512  # rows up to which the products below were measured to be faster


class ThinLinear(TorchFunctionMode):
    """In this block, linear layers in bf16 on a CPU with AMX multiply with the weight on the left.

    A product with few rows is a walk through the weight. oneDNN's AMX kernels copy the weight into a layout of their
    own on every call when it stands on the right, but not on the left. Measured on a CPU with AMX, one core, a token of
    bloom-389m's shape in bf16: 68 ms instead of 83 for one row, 84 instead of 99 for eight. On a CPU with AVX512-BF16
    and no AMX the plain product is the faster one (docs/experiments.md has both), so it is left as it is there.
    """

    def __torch_function__(self, function, types, arguments=(), settings=None):
        if function is torch.nn.functional.linear and not settings and fits(*arguments):
            return thin_linear(*arguments)
        return function(*arguments, **(settings or {}))


def fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `thin_linear` is the faster way."""
    few = x.numel() <= THIN * x.shape[-1]
    return few and x.device.type == "cpu" and x.dtype == weight.dtype == torch.bfloat16 and cpu_uses_amx()


@functools.cache
def cpu_uses_amx() -> bool:
    """Whether oneDNN multiplies bf16 matrices with AMX here: the CPU has it, and no environment variable forbids it.

    The choice depends on the hardware's feature and never on a timing, so that a run's bits do not depend on noise.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    allowed = limit.upper() in ("DEFAULT", "ALL") or "AMX" in limit.upper()
    return allowed and torch.cpu._is_amx_tile_supported()


def thin_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., in]`, weight `[out, in]` -> `[..., out]`."""
    rows = x.reshape(-1, x.shape[-1])
    # a lone row is doubled, since a product with one column takes the slow way again
    columns = rows.expand(2 if len(rows) == 1 else -1, -1).t()  # [in, rows]
    output = torch.mm(weight, columns).t()[: len(rows)].contiguous()  # what reads it next wants whole rows
    return (output if bias is None else output.add_(bias)).reshape(*x.shape[:-1], -1)
