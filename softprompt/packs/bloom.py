"""BLOOM's layers on packs. BLOOM is the one family here that does not use transformers' attention interface.

The code calls the modules of the base in the order of `BloomBlock.forward`. It differs in the attention, which is
passed in, and in what it leaves out: the first layer computes no gradient for the text, the last layer computes its
output only at the places that predict a label, and GELU keeps its derivative for the backward pass, not its input.
"""

import functools
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import BloomForCausalLM, PreTrainedModel
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from softprompt.packs.attention import Rules
from softprompt.packs.cpu_kernels import gelu


def is_bloom(model: PreTrainedModel) -> TypeGuard[BloomForCausalLM]:
    """Whether a causal LM runs through the functions of this file."""
    return model.config.model_type == "bloom"


def hidden_states(model: BloomForCausalLM, parts: list[Tensor], places: Tensor, attend, recompute: bool):
    """Compute the final hidden states `[N, H]` at `places` of a sequence of S embeddings.

    Args:
        parts: the sequence, cut into `[*, H]` in the base's dtype, so that a part is trained as a whole or not at all.
        places: indices into the sequence, int64 `[N]`.
        attend: a function from a layer's number, query, key and value `[Q, S, D]` and the `Rules` to `[S, Q, D]`.
        recompute: keep only the layers' inputs and compute the rest again in the backward pass.
    """
    base = model.transformer
    rules = attention_rules(model)
    parts = [base.word_embeddings_layernorm(part) for part in parts]
    hidden = torch.cat(parts)  # [S, H]
    last = len(base.h) - 1
    for depth, layer in enumerate(base.h):
        # no token's embedding is trained, so in the first layer autograd can skip the projections of all but the prompt
        inputs = parts if depth == 0 else [hidden]
        arguments = (layer, hidden, inputs, functools.partial(attend, depth), rules, places if depth == last else None)
        hidden = checkpoint(layer_output, *arguments, use_reentrant=False) if recompute else layer_output(*arguments)
    return base.ln_f(hidden)


def attention_rules(model: BloomForCausalLM) -> Rules:
    """The rules of BLOOM's attention: ALiBi's slopes, as transformers computes them, and 1 / sqrt(D) as the scale."""
    heads = model.config.n_head
    two_keys = torch.ones((1, 2), device=model.device)
    slopes = build_alibi_tensor(two_keys, heads, torch.float32)[:, 0, 1]  # slope x position 1
    return Rules(scale=(model.config.hidden_size // heads) ** -0.5, slopes=slopes)


def layer_output(layer: Any, hidden: Tensor, inputs: list[Tensor], attend, rules: Rules, places: Tensor | None):
    """Run one BloomBlock on `hidden` `[S, H]`; returns `[S, H]`, or only the `[N, H]` at `places` if they are given.

    Args:
        layer: a BloomBlock; its type is `Any`, since a type checker cannot tell a module's submodules from its tensors.
        inputs: `hidden`, whole or cut into parts that are projected one by one.
    """
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
    if torch.is_grad_enabled():
        return residual + narrow(gelu(F.linear(normed, widen.weight), widen.bias))
    return residual + narrow(F.gelu(widen(normed), approximate="tanh"))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
