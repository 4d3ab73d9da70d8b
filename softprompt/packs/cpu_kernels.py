"""Faster CPU kernels: linear layers on few rows, as decoding has them, and GELU with its derivative."""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THIN = 512  # the most rows for which `thin_linear` was measured to be faster


@contextlib.contextmanager
def thin_linears(model: nn.Module) -> Iterator[None]:
    """Within this context, linear layers in bf16 on a CPU with AMX multiply few rows with the weight on the left.

    A product with few rows spends its time on reading the weight. When the weight is the right operand, oneDNN's AMX
    kernels copy it into a layout of their own on every call; when it is the left operand, they do not. On one core of
    a CPU with AMX, a token of bloom-389m's shape in bf16 took 68 ms instead of 83 for one row, and 84 instead of 99 for
    eight. On a CPU with AVX512-BF16 and no AMX the plain product is faster, so nothing is replaced there
    (docs/experiments.md has both measurements).
    """
    replaced = []
    if cpu_uses_amx():
        # a layer whose forward somebody has replaced already is left alone
        linears = (each for each in model.modules() if type(each) is nn.Linear and "forward" not in vars(each))
        replaced = [each for each in linears if each.weight.dtype == torch.bfloat16 and not each.weight.is_cuda]
    for layer in replaced:
        vars(layer)["forward"] = functools.partial(_linear, layer)  # in front of the method of the class
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    multiply = thin_linear if fits(x, layer.weight) else F.linear
    return multiply(x, layer.weight, layer.bias)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `thin_linear` is faster than `F.linear` for these arguments."""
    few = x.numel() <= THIN * x.shape[-1]
    return few and x.device.type == "cpu" and x.dtype == weight.dtype == torch.bfloat16 and cpu_uses_amx()


def multiplies_with_amx(dtype: torch.dtype) -> bool:
    """Whether products of this dtype run on a CPU's matrix units."""
    return dtype == torch.bfloat16 and cpu_uses_amx()


@functools.cache
def cpu_uses_amx() -> bool:
    """Whether oneDNN multiplies bf16 matrices with AMX: the CPU has it, and no environment variable forbids it.

    The choice depends on the CPU's features and never on a timing, which would make a run's bits depend on noise.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    allowed = limit.upper() in ("DEFAULT", "ALL") or "AMX" in limit.upper()
    return allowed and torch.cpu._is_amx_tile_supported()


def thin_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear` with the weight on the left: x `[..., in]`, weight `[out, in]` -> `[..., out]`."""
    rows = x.reshape(-1, x.shape[-1])
    # a single row is doubled, since a product with one column is slow again
    columns = rows.expand(2 if len(rows) == 1 else -1, -1).t()  # [in, rows]
    output = torch.mm(weight, columns).t()[: len(rows)].contiguous()  # the next reader wants contiguous rows
    return (output if bias is None else output.add_(bias)).reshape(*x.shape[:-1], -1)


SLOPE = 2 * 0.79788456  # 2 sqrt(2 / pi), rounded as in BLOOM's code


CUBIC = 0.044715


GELU_BLOCK = 48  # this many rows of 4,096 fp32 numbers stay in a core's cache over a dozen operations


def gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Compute BLOOM's tanh GELU of u = x + bias, which equals u * sigmoid(SLOPE * (u + CUBIC * u^3)).

    `x` is `[S, F]` and `bias` `[F]`; the result has the shape and the dtype of `x`.
    """
    if torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu":
        return _Gelu.apply(x, bias)
    return F.gelu(x + bias, approximate="tanh")


class _Gelu(torch.autograd.Function):
    """GELU that computes its derivative in the forward pass too, block by block, in fp32 for half precisions.

    A block fits into a core's cache. For [744, 4096] in bf16 on two cores, torch 2.13's tanh GELU takes 2.7 ms forward
    and 2.8 backward, and this one takes 3.6 and 0.7.
    """

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        value, slope = torch.empty_like(x), torch.empty_like(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        one, bias = torch.tensor(SLOPE, dtype=wide), bias.to(wide)
        scratch = torch.empty(3, GELU_BLOCK, x.shape[1], dtype=wide)  # allocating for every block costs more
        for x_block, value_block, slope_block in zip(*(t.split(GELU_BLOCK) for t in (x, value, slope)), strict=True):
            block, square, gate = scratch[:, : len(x_block)]
            torch.mul(block.copy_(x_block).add_(bias), block, out=square)
            torch.add(one, square, alpha=SLOPE * CUBIC, out=gate).mul_(block).sigmoid_()
            value_block.copy_(block.mul_(gate))
            # the derivative of x s(z), with s the sigmoid and z = SLOPE (x + CUBIC x^3), is s + x s (1 - s) z'
            block.addcmul_(block, gate, value=-1)
            torch.add(one, square, alpha=3 * SLOPE * CUBIC, out=square)
            slope_block.copy_(gate.addcmul_(block, square))
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None
