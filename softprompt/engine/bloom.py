"""BLOOM's layers on packs: the one family that bypasses transformers' attention interface.

The modules' own weights are used, in the order of `BloomBlock.forward`; what changes is who attends to whom, and what
is left out: the first layer's text needs no gradient, the last layer's output only exists where something is
predicted, and GELU's slope is kept instead of its input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BloomForCausalLM
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from softprompt.engine.attention import Rules

SLOPE = 2 * 0.79788456  # as BLOOM rounds sqrt(2 / pi)
CUBIC = 0.044715
GELU_BLOCK = 48  # rows of 4,096 numbers in fp32 that stay in a core's cache over a dozen operations


def hidden_states(model: BloomForCausalLM, prompt: Tensor, text: Tensor, places: Tensor, attend, recompute: bool):
    """Final hidden states `[N, H]` at `places` of `[prompt | text]`.

    Args:
        prompt: embeddings `[P, H]` of the virtual tokens, in the base's dtype.
        text: embeddings `[S - P, H]` of the ids behind them.
        attend: from query, key and value `[Q, S, D]` and the `Rules` to `[S, Q, D]`.
        recompute: keep only the layers' inputs and compute the rest again in the backward pass.
    """
    base = model.transformer
    rules = attention_rules(model)
    parts = [base.word_embeddings_layernorm(part) for part in (prompt, text)]
    hidden = torch.cat(parts)  # [S, H]
    last = len(base.h) - 1
    for depth, layer in enumerate(base.h):
        # the first layer's text depends on nothing that learns, so its projections stay out of the backward pass
        inputs = parts if depth == 0 else [hidden]
        arguments = (layer, hidden, inputs, attend, rules, places if depth == last else None)
        hidden = checkpoint(layer_output, *arguments, use_reentrant=False) if recompute else layer_output(*arguments)
    return base.ln_f(hidden)


def attention_rules(model: BloomForCausalLM) -> Rules:
    """ALiBi's slopes, as transformers computes them, and the scale of a head."""
    heads = model.config.n_head
    two_keys = torch.ones((1, 2), device=model.device)
    slopes = build_alibi_tensor(two_keys, heads, torch.float32)[:, 0, 1]  # slope x position 1
    return Rules(scale=(model.config.hidden_size // heads) ** -0.5, slopes=slopes)


def layer_output(layer: nn.Module, hidden: Tensor, inputs: list[Tensor], attend, rules: Rules, places: Tensor | None):
    """One BloomBlock on `[S, H]`; with `places`, only there: `[N, H]`."""
    attention = layer.self_attention
    normed = [layer.input_layernorm(part) for part in inputs]
    projected = _joined([attention.query_key_value(part) for part in normed])
    heads = projected.view(len(projected), attention.num_heads, 3, attention.head_dim)
    query, key, value = (part.transpose(0, 1) for part in heads.unbind(2))  # [Q, S, D]
    attended = attend(query, key, value, rules).reshape(len(hidden), -1)  # [S, H]
    residual = _joined(normed) if layer.apply_residual_connection_post_layernorm else hidden
    if places is not None:
        attended, residual = attended[places], residual[places]
    hidden = residual + attention.dense(attended)
    normed = layer.post_attention_layernorm(hidden)
    residual = normed if layer.apply_residual_connection_post_layernorm else hidden
    widen, narrow = layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
    return residual + narrow(gelu(F.linear(normed, widen.weight), widen.bias))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gelu(x: Tensor, bias: Tensor) -> Tensor:
    """BLOOM's tanh GELU of x + bias, written as x * sigmoid(SLOPE * (x + CUBIC * x^3)). `[S, *]`"""
    if torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu":
        return _Gelu.apply(x, bias)
    return F.gelu(x + bias, approximate="tanh")


class _Gelu(torch.autograd.Function):
    """Both the value and the slope in one walk over cache-sized blocks, in fp32 for half precisions.

    For [744, 4096] in bf16 on two cores, torch 2.13's tanh GELU takes 2.7 ms forward and 2.8 backward, this 3.6 and
    0.7.
    """

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        value, slope = torch.empty_like(x), torch.empty_like(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        one, bias = torch.tensor(SLOPE, dtype=wide), bias.to(wide)
        scratch = torch.empty(3, GELU_BLOCK, x.shape[1], dtype=wide)  # fresh memory for every block costs more
        for x_block, value_block, slope_block in zip(*(t.split(GELU_BLOCK) for t in (x, value, slope)), strict=True):
            block, square, gate = scratch[:, : len(x_block)]
            torch.mul(block.copy_(x_block).add_(bias), block, out=square)
            torch.add(one, square, alpha=SLOPE * CUBIC, out=gate).mul_(block).sigmoid_()
            value_block.copy_(block.mul_(gate))
            # d/dx x s(z) = s + x s (1 - s) z'
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
