"""How a pack runs through a base: through `bloom.py` for BLOOM, else through transformers' attention interface.

Every result is what the base computes when each row runs alone behind the front; the tests check that.
"""

import contextlib
import functools

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.engine.cache import Cache
from softprompt.engine.front import Front
from softprompt.engine.loss import Head, head_cross_entropy, head_scores
from softprompt.packs import bloom, flex_attention
from softprompt.packs.attention import Layout, Rules, attend
from softprompt.packs.batches import Pack
from softprompt.packs.families import own_attention, recomputed_layers


def attention_note(base_model: PreTrainedModel) -> str | None:
    """A remark for the user when packs on CUDA cannot use FlexAttention, with the reason; otherwise None."""
    if base_model.device.type != "cuda":
        return None
    config = base_model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    reason = flex_attention.problem(base_model.device, base_model.dtype, heads, groups, width)
    return reason and f"note: rows attend one by one, since FlexAttention does not work here ({reason})"


def pack_loss(base_model: PreTrainedModel, front: Front, pack: Pack, *, recompute: bool = False) -> Tensor:
    """Sum the cross-entropy over a pack's targets: a scalar in fp32 (fp64 for an fp64 base).

    The pack must have at least one target. The arguments are those of `pack_hidden_states`.
    """
    hidden = pack_hidden_states(base_model, front, pack, recompute=recompute)
    return head_cross_entropy(hidden, Head.of(base_model), torch.tensor(pack.targets, device=base_model.device))


@torch.no_grad()
def pack_scores(base_model: PreTrainedModel, front: Front, pack: Pack) -> tuple[Tensor, Tensor]:
    """Return -log p of each target of a pack, fp32 `[N]` (fp64 for fp64 bases), and whether it was the argmax.

    The second tensor is bool `[N]`. The arguments are those of `pack_hidden_states`.
    """
    if not pack.targets:
        return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    hidden = pack_hidden_states(base_model, front, pack)
    return head_scores(hidden, Head.of(base_model), torch.tensor(pack.targets, device=base_model.device))


def pack_hidden_states(
    base_model: PreTrainedModel, front: Front, pack: Pack, *, given: Cache | None = None, recompute: bool = False
) -> Tensor:
    """Compute the final hidden states, the input of the LM head, at a pack's `places`: `[N, H]` in the base's dtype.

    Args:
        front: what stands in front of the rows; `Front()` runs the base alone.
        pack: the rows, packed behind a front of this length.
        given: the keys and values of the first positions of this front, which are then not computed: a cache of one row
            that has at least one position less than the front.
        recompute: keep only the layers' inputs for the backward pass (gradient checkpointing).

    Raises:
        UserError: `recompute` is set, and the base has no layers that can be recomputed.
    """
    ids = torch.tensor(pack.input_ids, dtype=torch.long, device=base_model.device)
    count = given.positions.shape[1] if given is not None else 0
    places = torch.tensor(pack.places, device=base_model.device) - count
    parts = [part[0] for part in front.embeds(base_model.get_input_embeddings(), ids[None])]
    parts = [torch.cat(parts)[count:]] if count else parts
    layout = Layout.of(pack, base_model.device, count)
    attend_layer = functools.partial(_attend_layer, layout, given)
    if bloom.is_bloom(base_model):
        return bloom.hidden_states(base_model, parts, places, attend_layer, recompute)
    return _through_interface(base_model, parts, layout, attend_layer, places, recompute)


def _through_interface(
    base_model: PreTrainedModel, parts: list[Tensor], layout: Layout, attend_layer, places: Tensor, recompute: bool
) -> Tensor:
    """Compute the hidden states `[N, H]` at `places` with a base whose attention can be replaced by name."""

    def attend_row(layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        return attend_layer(layer, query[0], key[0], value[0], rules)[None]

    embeds = torch.cat(parts)[None]  # [1, S, H], without the given places
    positions = layout.positions[None, layout.given :]
    settings = {"position_ids": positions, "use_cache": False, "attend": attend_row}
    recomputed = recomputed_layers(base_model, own_attention) if recompute else contextlib.nullcontext()
    with recomputed, own_attention(base_model):
        hidden = base_model.base_model(inputs_embeds=embeds, **settings).last_hidden_state
    return hidden[0, places]


def _attend_layer(
    layout: Layout, given: Cache | None, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules
) -> Tensor:
    """Attend in the layer of this number, with the given keys and values in front of those of the pack."""
    if given is not None and layout.given:
        key, value = torch.cat([given.keys[layer][0], key], 1), torch.cat([given.values[layer][0], value], 1)
    return _attend(layout, query, key, value, rules)


def _attend(layout: Layout, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    """Attend with one kernel where that works, on CUDA, and tile by tile everywhere else."""
    heads = (query.shape[0], key.shape[0], query.shape[-1])
    few = min(layout.given, 1)  # whether places are given matters to the kernel, and not how many
    if query.is_cuda and flex_attention.problem(query.device, query.dtype, *heads, few) is None:
        return flex_attention.flex_attend(query, key, value, layout, rules)
    return attend(query, key, value, layout, rules)
