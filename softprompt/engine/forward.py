"""How a pack goes through a base: BLOOM's own layers, transformers' attention interface, or not at all.

Everything here is the same computation as running every row alone behind the prompt; the tests hold it to that.
"""

import contextlib
import functools

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.engine import bloom, flex_attention
from softprompt.engine.attention import Layout, Rules, attend
from softprompt.engine.batches import Pack
from softprompt.engine.families import own_attention, recomputed_layers
from softprompt.engine.loss import Head, head_cross_entropy, head_scores


def attention_note(base_model: PreTrainedModel) -> str | None:
    """What is worth saying about the attention of packs: on CUDA, why it is not the one that was meant."""
    if base_model.device.type != "cuda":
        return None
    config = base_model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    reason = flex_attention.problem(base_model.device, base_model.dtype, heads, groups, width)
    return reason and f"note: rows attend one by one, since FlexAttention does not work here ({reason})"


def pack_loss(base_model: PreTrainedModel, prompt: Tensor | None, pack: Pack, *, recompute: bool = False) -> Tensor:
    """Sum of the cross-entropy over a pack's targets, a scalar in fp32 (fp64 for an fp64 base).

    Arguments as for `pack_hidden_states`.
    """
    hidden = pack_hidden_states(base_model, prompt, pack, recompute=recompute)
    return head_cross_entropy(hidden, Head.of(base_model), torch.tensor(pack.targets, device=base_model.device))


@torch.no_grad()
def pack_scores(base_model: PreTrainedModel, prompt: Tensor | None, pack: Pack) -> tuple[Tensor, Tensor]:
    """-log p of each of a pack's targets, `[N]`, and whether it was the most probable id, bool `[N]`."""
    if not pack.targets:
        return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    hidden = pack_hidden_states(base_model, prompt, pack)
    return head_scores(hidden, Head.of(base_model), torch.tensor(pack.targets, device=base_model.device))


def pack_hidden_states(
    base_model: PreTrainedModel, prompt: Tensor | None, pack: Pack, *, recompute: bool = False
) -> Tensor:
    """What the base's head gets at the places of a pack that predict something: `[N, H]`.

    Args:
        prompt: `[P, H]`, any float dtype; None for the base alone.
        recompute: keep only the layers' inputs for the backward pass (gradient checkpointing).
    """
    ids = torch.tensor(pack.input_ids, dtype=torch.long, device=base_model.device)
    places = torch.tensor(pack.places, device=base_model.device)
    text = base_model.get_input_embeddings()(ids)  # [S - P, H]
    prompt = text[:0] if prompt is None else prompt.to(text.dtype)
    layout = Layout.of(pack, base_model.device)
    if bloom.is_bloom(base_model):
        return bloom.hidden_states(base_model, prompt, text, places, functools.partial(_attend, layout), recompute)
    return _through_interface(base_model, prompt, text, layout, places, recompute)


def _through_interface(
    base_model: PreTrainedModel, prompt: Tensor, text: Tensor, layout: Layout, places: Tensor, recompute: bool
) -> Tensor:
    """Hidden states `[N, H]` at `places`, through a model whose attention can be replaced by name."""

    def attend_row(layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        return _attend(layout, query[0], key[0], value[0], rules)[None]

    embeds = torch.cat([prompt, text])[None]  # [1, S, H]
    settings = {"position_ids": layout.positions[None], "use_cache": False, "attend": attend_row}
    recomputed = recomputed_layers(base_model, own_attention) if recompute else contextlib.nullcontext()
    with recomputed, own_attention(base_model):
        hidden = base_model.base_model(inputs_embeds=embeds, **settings).last_hidden_state
    return hidden[0, places]


def _attend(layout: Layout, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    """With one kernel on CUDA where it works, else row by row."""
    heads = (query.shape[0], key.shape[0], query.shape[-1])
    if query.is_cuda and flex_attention.problem(query.device, query.dtype, *heads) is None:
        return flex_attention.flex_attend(query, key, value, layout, rules)
    return attend(query, key, value, layout, rules)
