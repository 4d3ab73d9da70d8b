"""Which architectures can run packs, and how a caller replaces the attention of a base's layers inside a block.

The attention is replaced through transformers' `AttentionInterface`; gradient checkpointing is here too.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.errors import UserError
from softprompt.packs.attention import Rules

NAME = "softprompt"
# a function from a layer's number, query `[B, Q, L, D]`, key and value `[B, G, L, D]` and the rules to `[B, L, Q, D]`
Attend = Callable[[int, Tensor, Tensor, Tensor, Rules], Tensor]


@contextlib.contextmanager
def own_attention(base_model: PreTrainedModel) -> Iterator[None]:
    """Within this context, the base's layers call the `Attend` that is passed to its forward as `attend=...`.

    The base builds no attention mask of its own.
    """
    AttentionInterface.register(NAME, _attention)
    before = base_model.config._attn_implementation
    base_model.config._attn_implementation = NAME
    try:
        yield
    finally:
        base_model.config._attn_implementation = before


def _attention(
    module: Any,  # an attention module; a type checker would take its `layer_idx` for a tensor
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
    """Call `attend` for transformers, which calls this in every layer with the keyword arguments of the forward."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(module.layer_idx, query, key, value, Rules(scale, window=sliding_window, softcap=softcap)), None


# model types whose packs the tests compare with the unchanged model, row by row
THROUGH_INTERFACE = {
    "cohere", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2", "qwen3",
    "starcoder2",
}  # fmt: skip


# these rotary embeddings have angles that depend on the longest row of a batch, so rows would not be independent
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def can_pack(base_model: PreTrainedModel) -> bool:
    """Whether this base computes packs exactly; if not, its rows run as padded batches."""
    config = base_model.config
    if config.model_type == "bloom":
        return True
    if getattr(config, "use_bidirectional_attention", False) or _rope_types(config) & BATCH_DEPENDENT_ROPE:
        return False
    return config.model_type in THROUGH_INTERFACE


def recomputable_layers(base_model: PreTrainedModel) -> list[nn.Module]:
    """The layers that gradient checkpointing runs twice.

    Raises:
        UserError: the base has no such layers.
    """
    layers: list[nn.Module] = [each for each in base_model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"`gradient_checkpointing`: {type(base_model).__name__} has no layers that can be recomputed")
    return layers


@contextlib.contextmanager
def recomputed_layers(
    base_model: PreTrainedModel, around: Callable[[PreTrainedModel], contextlib.AbstractContextManager] | None = None
) -> Iterator[None]:
    """Use gradient checkpointing for a base in eval mode, where transformers' own switch does nothing.

    Within this context every layer's forward is wrapped, so that its activations are recomputed in the backward pass
    (Chen et al., 2016). All weights and modes stay as they are.

    Args:
        around: makes a context that both runs of a layer need. The second run happens in the backward pass, when this
            context has already ended.

    Raises:
        UserError: the base has no layers that can be recomputed.
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
    """The rope types that a config names, for all of its layer types together."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {entry.get("rope_type", "") for entry in (parameters, *parameters.values()) if isinstance(entry, dict)}
