"""Norms and gated MLPs that keep only their inputs for the backward pass, and compute the rest again there.

For a row of Llama's MLP, autograd keeps the gate, its activation and the other product, and for RMSNorm the hidden
state in fp32. All of it follows from what the linear layers return by operations that cost next to nothing beside a
product, so here it is recomputed.
"""

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
Forward = Callable[[Tensor], Tensor]

_light: weakref.WeakKeyDictionary[PreTrainedModel, list[tuple[nn.Module, Forward]]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def light_modules(base_model: PreTrainedModel) -> Iterator[None]:
    """Within this context, the base's RMS norms and gated MLPs keep only their inputs; they compute the same numbers.

    A module whose forward somebody has replaced already, as `accelerate` does to move weights, is left alone.
    """
    if base_model not in _light:
        _light[base_model] = [*_find(base_model)]
    replaced = [(module, forward) for module, forward in _light[base_model] if "forward" not in vars(module)]
    for module, forward in replaced:
        vars(module)["forward"] = forward  # in front of the method of the class
    try:
        yield
    finally:
        for module, _ in replaced:
            del module.forward


class _Recomputed(torch.autograd.Function):
    """`function(x)` of one tensor, which is computed again in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, function: Forward) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            output = ctx.function(given)
        return torch.autograd.grad(output, given, grad)[0], None


class _Gated(torch.autograd.Function):
    """`activation(gate) * up`, of which the activation is computed again in the backward pass."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, activation: Forward) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            given = gate.detach().requires_grad_()
            active = ctx.activation(given)
        (grad_gate,) = torch.autograd.grad(active, given, grad * up)
        return grad_gate, grad * active.detach(), None


def _find(base_model: PreTrainedModel) -> Iterator[tuple[nn.Module, Forward]]:
    """The modules that can be replaced, each with its new forward."""
    known: dict[type, bool] = {}
    for module in base_model.modules():
        forward = _light_forward(module)
        if forward is None or "forward" in vars(module):
            continue
        if type(module) not in known:
            known[type(module)] = _computes_the_same(module, forward)
        if known[type(module)]:
            yield module, forward


def _light_forward(module: Any) -> Forward | None:
    """The new forward of a module that looks like an RMS norm or a gated MLP; None for any other."""
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return None  # it takes more than `self` and the hidden states
    if type(module).__name__.endswith("RMSNorm") and not [*module.children()] and len([*module.parameters()]) == 1:
        own = functools.partial(type(module).forward, module)
        return lambda x: _Recomputed.apply(x, own)
    if {name for name, _ in module.named_children()} == MLP_PARTS and not [*module.act_fn.parameters()]:
        return functools.partial(_gated_mlp, module)
    return None


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    """`down(act(gate(x)) * up(x))`, as LlamaMLP and its kin compute it."""
    return module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x), module.act_fn))


@torch.no_grad()
def _computes_the_same(module: Any, forward: Forward) -> bool:
    """Whether the new forward gives the module's own output, to the bit, for a few random rows."""
    weight = getattr(module, "weight", None)
    width = weight.shape[-1] if weight is not None else getattr(module.gate_proj, "in_features", None)
    parameter = next(module.parameters(), None)
    if width is None or parameter is None or parameter.is_meta:
        return False
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, width, generator=generator).to(parameter.device, dtype)
    try:
        return torch.equal(module(rows), forward(rows))
    except (RuntimeError, TypeError, ValueError):
        return False  # it wants other arguments, or rows of another dtype
