"""How a pack runs through a base: through `bloom.py` for BLOOM, else through transformers' attention interface.

Every result is what the base computes when each row runs alone behind the front; the tests check that.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

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
from softprompt.packs.lanes import LaneLayout, attend_lanes
from softprompt.packs.light_modules import light_modules

# from a layer's number, query `[Q, S, D]`, key and value `[G, S, D]` and the rules to `[S, Q, D]`
Attention = Callable[[int, Tensor, Tensor, Tensor, Rules], Tensor]


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
    if given is None or not given.lengths[0]:
        (hidden,) = lane_hidden_states(base_model, [(front, pack)], recompute=recompute)
        return hidden
    count, device = given.lengths[0], base_model.device
    ids = torch.tensor(pack.input_ids, dtype=torch.long, device=device)
    parts = [part[0] for part in front.embeds(base_model.get_input_embeddings(), ids[None])]
    layout = Layout.of(pack, device, count)
    where = torch.tensor(pack.places, dtype=torch.long, device=device) - count
    attention = functools.partial(_attend_behind, layout, given)
    return _run(base_model, [torch.cat(parts)[count:]], layout.positions[count:], attention, where, recompute)


def lane_losses(
    base_model: PreTrainedModel, lanes: Sequence[tuple[Front, Pack]], *, recompute: bool = False
) -> list[Tensor]:
    """Compute what `pack_loss` computes for every pack behind its front, all of them in one pass."""
    hidden, head = lane_hidden_states(base_model, lanes, recompute=recompute), Head.of(base_model)
    targets = [torch.tensor(pack.targets, device=base_model.device) for _, pack in lanes]
    return [head_cross_entropy(each, head, wanted) for each, wanted in zip(hidden, targets, strict=True)]


def lane_hidden_states(
    base_model: PreTrainedModel, lanes: Sequence[tuple[Front, Pack]], *, recompute: bool = False
) -> tuple[Tensor, ...]:
    """Compute what `pack_hidden_states` computes for every pack behind its front, all of them in one pass."""
    embedding, device = base_model.get_input_embeddings(), base_model.device
    parts, places, start = list[Tensor](), list[int](), 0
    for front, pack in lanes:
        ids = torch.tensor(pack.input_ids, dtype=torch.long, device=device)
        parts += [part[0] for part in front.embeds(embedding, ids[None])]
        places += [start + place for place in pack.places]
        start += pack.bounds[-1]
    layout = LaneLayout([Layout.of(pack, device) for _, pack in lanes])
    attention = functools.partial(_attend_lanes, layout)
    where = torch.tensor(places, dtype=torch.long, device=device)
    hidden = _run(base_model, parts, layout.positions, attention, where, recompute)
    return hidden.split([len(pack.places) for _, pack in lanes])


def _run(
    base_model: PreTrainedModel,
    parts: list[Tensor],
    positions: Tensor,
    attention: Attention,
    places: Tensor,
    recompute: bool,
) -> Tensor:
    """Compute the hidden states `[N, H]` at `places` of a sequence, which is cut as `bloom.hidden_states` says."""
    if bloom.is_bloom(base_model):
        return bloom.hidden_states(base_model, parts, places, attention, recompute)

    def attend_row(layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        return attention(layer, query[0], key[0], value[0], rules)[None]

    embeds = torch.cat(parts)[None]  # [1, S, H]
    settings = {"position_ids": positions[None], "use_cache": False, "attend": attend_row}
    recomputed = recomputed_layers(base_model, _own_modules) if recompute else contextlib.nullcontext()
    with recomputed, _own_modules(base_model):
        hidden = base_model.base_model(inputs_embeds=embeds, **settings).last_hidden_state
    return hidden[0, places]


@contextlib.contextmanager
def _own_modules(base_model: PreTrainedModel) -> Iterator[None]:
    """Within this context the base's layers attend as they are told, and keep less where a gradient is wanted."""
    light = light_modules(base_model) if torch.is_grad_enabled() else contextlib.nullcontext()
    with light, own_attention(base_model):
        yield


def _attend_lanes(lanes: LaneLayout, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    """Attend in batches over all lanes where that pays, and else lane by lane."""
    if len(lanes.layouts) == 1:
        return _attend(lanes.layouts[0], query, key, value, rules)
    if not query.is_cuda and lanes.in_batches:
        return attend_lanes(query, key, value, lanes, rules)
    outputs = []
    for layout, (start, end) in zip(lanes.layouts, pairwise(lanes.edges), strict=True):
        outputs.append(_attend(layout, query[:, start:end], key[:, start:end], value[:, start:end], rules))
    return torch.cat(outputs)


def _attend_behind(
    layout: Layout, given: Cache, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules
) -> Tensor:
    """Attend in the layer of this number, with the given keys and values in front of those of the pack."""
    keys, values = (each[layer][0, :, : layout.given] for each in (given.keys, given.values))
    return _attend(layout, query, torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1), rules)


def _attend(layout: Layout, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    """Attend with one kernel where that works, on CUDA, and tile by tile everywhere else."""
    heads = (query.shape[0], key.shape[0], query.shape[-1])
    few = min(layout.given, 1)  # whether places are given matters to the kernel, and not how many
    if query.is_cuda and flex_attention.problem(query.device, query.dtype, *heads, few) is None:
        return flex_attention.flex_attend(query, key, value, layout, rules)
    return attend(query, key, value, layout, rules)
