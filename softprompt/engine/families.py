"""transformers' attention interface: for the duration of a block, a base's layers attend as the caller says."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from softprompt.engine.attention import Rules

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
    module: nn.Module,
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
