"""Keys and values of one batch, with the soft prompt's in front: memory of a fixed size that grows no tensor.

The slots of a row, B rows of T text tokens, pads included, alike:

    slot       0 .. P-1   P .. P+T-1             P+T ..
    holds      prompt     pads, then the text    new tokens
    position   0 .. P-1   none, then P, P+1, ..  one more each

All rows write the same slots at the same time, whatever their length; what a row sees is told by positions alone.
S slots, L of them filled by one pass, K of them looked at; Q query heads, G key heads, D the width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.engine.attention import Rules

PAD = 1 << 30  # the position of a pad: behind every query, so no token sees it


class Cache:
    """Keys and values `[B, G, S, D]` of every layer, and the slots that the pass under way fills."""

    def __init__(self, positions: Tensor, prompt: "Cache | None" = None) -> None:
        """Room for `positions` `[B, S]`, of which `prompt`, a cache of one row, has computed the first P."""
        self.padded = bool((positions == PAD).any())
        self.positions = positions if self.padded else positions[:1]  # [B or 1, S]
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        if prompt is not None:
            for mine, given in ((self.keys, prompt.keys), (self.values, prompt.values)):
                for layer, tensor in given.items():
                    mine[layer] = _room(tensor, positions.shape[1], len(positions))
                    mine[layer][:, :, : tensor.shape[2]] = tensor

    def begin(self, slots: Tensor, seen: int | None = None) -> None:
        """The pass to come fills `slots` `[L]`, one after another.

        Args:
            seen: the slots up to these, the only ones to look at; None looks at all and hides those not yet filled,
                which is the same with shapes that never change.
        """
        self.slots, self.seen = slots, seen
        self.queries = self.positions[:, slots]  # [B or 1, L]
        self._biases: dict[tuple[bool, int | None], Tensor] = {}

    @property
    def position_ids(self) -> Tensor:
        """Positions of the slots being filled, any that exists at pads. `[B or 1, L]`"""
        return self.queries.masked_fill(self.queries == PAD, 0) if self.padded else self.queries

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Put a layer's `key` and `value` `[B, G, L, D]` into their slots and let `query` `[B, Q, L, D]` look."""
        if layer not in self.keys:
            self.keys[layer], self.values[layer] = (_room(new, self.positions.shape[1]) for new in (key, value))
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        return attention(query, keys[:, :, : self.seen], values[:, :, : self.seen], self._bias(rules, query), rules)

    def _bias(self, rules: Rules, query: Tensor) -> Tensor | None:
        """`bias` for this pass, made once for all layers with the same rules; None if everything looked at counts."""
        plain = rules.slopes is None and rules.window is None
        if plain and not self.padded and query.shape[2] == 1 and self.seen is not None:
            return None
        key = (rules.slopes is None, rules.window)
        if key not in self._biases:
            self._biases[key] = bias(self.queries, self.positions[:, : self.seen], rules).to(query.dtype)
        return self._biases[key]


def slot_positions(mask: Tensor, num_virtual_tokens: int, new_tokens: int) -> Tensor:
    """Positions `[B, P + T + new]` behind a prompt, from the text's mask `[B, T]` with 0 at pads."""
    real = F.pad(mask != 0, (num_virtual_tokens, new_tokens), value=True)
    return (real.cumsum(1) - 1).masked_fill(~real, PAD)


def bias(queries: Tensor, keys: Tensor, rules: Rules) -> Tensor:
    """ALiBi and mask from positions `[B, L]` and `[B, K]`, to be added to scores. fp32 `[B, 1 or Q, L, K]`

    ALiBi counts from the query, where half precisions are finest (see `attention.py`).
    """
    distance = (queries[:, :, None] - keys[:, None, :])[:, None]  # [B, 1, L, K]
    hidden = distance < 0
    if rules.window is not None:
        hidden |= distance >= rules.window
    if rules.slopes is None:
        slanted = torch.zeros_like(distance, dtype=torch.float32)
    else:
        slanted = rules.slopes[:, None, None] * -distance
    return slanted.masked_fill(hidden, -math.inf)


def attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rules: Rules) -> Tensor:
    """Query `[B, Q, L, D]`, keys and values `[B, G, K, D]` -> `[B, Q, L, D]`."""
    heads, groups = query.shape[1], query.shape[1] // keys.shape[1]
    if rules.softcap is not None:
        return _capped_attention(query, keys, values, bias, rules.scale, rules.softcap)
    # the heads that share one query's keys are like several queries of one head
    folded = groups > 1 and query.shape[2] == 1 and (bias is None or bias.shape[1] == 1)
    query = query.reshape(len(query), -1, groups, query.shape[3]) if folded else query
    gqa = groups > 1 and not folded
    output = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=rules.scale, enable_gqa=gqa)
    return output.reshape(len(query), heads, -1, output.shape[3])


def _capped_attention(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """The same with soft-capped scores, which no kernel offers."""
    shape = (len(query), keys.shape[1], -1, query.shape[3])
    scores = (query.reshape(shape) @ keys.transpose(2, 3)).view(*query.shape[:3], -1)  # [B, Q, L, K]
    scores = softcap * torch.tanh(scores * (scale / softcap))
    scores = scores if bias is None else scores + bias
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return (probabilities.view(*shape[:3], keys.shape[2]) @ values).view(query.shape)


def _room(tensor: Tensor, slots: int, rows: int | None = None) -> Tensor:
    """Zeros like `tensor` `[B, G, *, D]` with this many slots and rows: one not yet filled must not hold NaN."""
    return tensor.new_zeros(rows or len(tensor), tensor.shape[1], slots, tensor.shape[3])
