"""transformers' attention interface: for the duration of a block, a base's layers attend as the caller says."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.engine.attention import Rules
from softprompt.errors import UserError

NAME = "softprompt"
# from a layer's number, query `[B, Q, L, D]`, key and value `[B, G, L, D]` and the rules to `[B, L, Q, D]`
Attend = Callable[[int, Tensor, Tensor, Tensor, Rules], Tensor]


@contextlib.contextmanager
def own_attention(base_model: PreTrainedModel) -> Iterator[None]:
    """Let the base's layers call the `attend` that its forward is given, an `Attend`, with no mask of their own."""
    AttentionInterface.register(NAME, _attention)
    before = base_model.config._attn_implementation
    base_model.config._attn_implementation = NAME
    try:
        yield
    finally:
        base_model.config._attn_implementation = before


def _attention(
    module: Any,  # an attention module; a type checker takes its `layer_idx` for a tensor
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attend: Attend,
    **others: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; keyword arguments of the base's forward arrive here."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(module.layer_idx, query, key, value, Rules(scale, window=sliding_window, softcap=softcap)), None


# the families whose packs are tested against the untouched model, row by row
THROUGH_INTERFACE = {
    "cohere", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2", "qwen3",
    "starcoder2",
}  # fmt: skip


# rotary embeddings whose angles depend on the longest row of a batch, so that rows would not be independent
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def can_pack(base_model: PreTrainedModel) -> bool:
    """Whether packs of this base are exact; otherwise rows go through it as padded batches."""
    config = base_model.config
    if config.model_type == "bloom":
        return True
    if getattr(config, "use_bidirectional_attention", False) or _rope_types(config) & BATCH_DEPENDENT_ROPE:
        return False
    return config.model_type in THROUGH_INTERFACE


def recomputable_layers(base_model: PreTrainedModel) -> list[nn.Module]:
    """The layers that gradient checkpointing runs twice.

    Raises:
        UserError: there are none.
    """
    layers: list[nn.Module] = [each for each in base_model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"`gradient_checkpointing`: {type(base_model).__name__} has no layers that can be recomputed")
    return layers


@contextlib.contextmanager
def recomputed_layers(
    base_model: PreTrainedModel, around: Callable[[PreTrainedModel], contextlib.AbstractContextManager] | None = None
) -> Iterator[None]:
    """Gradient checkpointing for a base in eval mode, where transformers' own switch does nothing.

    Every layer's forward is wrapped for the duration of the block: its activations are recomputed in the backward
    pass (Chen et al., 2016), and all weights and modes stay as they are.

    Args:
        around: a context that both runs of a layer need; the second comes when this block has long been left.
    """
    layers = recomputable_layers(base_model)

    def within(forward: Callable, *arguments, **settings):
        with around(base_model) if around else contextlib.nullcontext():
            return forward(*arguments, **settings)

    for layer in layers:
        layer.forward = functools.partial(checkpoint, functools.partial(within, layer.forward), use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _rope_types(config: object) -> set[str]:
    """The kinds of rotary embedding that a config asks for, of all kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {entry.get("rope_type", "") for entry in (parameters, *parameters.values()) if isinstance(entry, dict)}
