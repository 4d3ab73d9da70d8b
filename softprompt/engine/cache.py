"""The key/value cache of one batch, with the front's keys and values (`front.py`) first. Its size never changes.

Every row of the batch uses the same slots; T counts its pads too:

    slot       0 .. F-1   F .. F+T-1             F+T ..
    holds      front      pads, then the text    new tokens
    position   0 .. F-1   none, then F, F+1, ..  one more each

All rows fill the same slots in the same forward pass, whatever their length. Only the positions decide which slots a
row sees. Rows may have fronts of their own: F is then the longest, and the slots that a shorter front leaves free are
pads. Letters in shapes: the B rows have S slots each, of which a forward pass fills L and looks at K; there are Q
query heads and G key heads, each D wide.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.packs.attention import Rules

PAD = 1 << 30  # the position of a pad: it comes after every real token, so causality hides the pad from them all


class Cache:
    """Keys and values `[B, G, S, D]` of every layer, and the slots that the current forward pass fills."""

    def __init__(self, positions: Tensor, fronts: "Cache | Sequence[Cache]" = ()) -> None:
        """Make room for slots with these `positions`, int64 `[B, S]`.

        Args:
            fronts: a cache of one row, whose F slots become the first slots of every row; or one such cache for each
                of the B rows.
        """
        self.padded = bool((positions == PAD).any())
        # [B or 1, S]: without pads, all rows have the same positions
        self.positions = positions if self.padded else positions[:1]
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        fronts = [fronts] * len(positions) if isinstance(fronts, Cache) else fronts
        for front in dict.fromkeys(fronts):
            of_front = [row for row, each in enumerate(fronts) if each is front]
            rows = slice(None) if len(of_front) == len(fronts) else of_front
            for mine, given in ((self.keys, front.keys), (self.values, front.values)):
                for layer, tensor in given.items():
                    if layer not in mine:
                        mine[layer] = _room(tensor, positions.shape[1], len(positions))
                    mine[layer][rows, :, : tensor.shape[2]] = tensor

    def begin(self, slots: Tensor, seen: int | None = None) -> None:
        """Start a forward pass that fills `slots`, consecutive indices, int64 `[L]`.

        Args:
            seen: how many slots, counted from the first, the queries look at. None means all of them: those that are
                not filled yet are hidden by their positions, so the result is the same and no shape ever changes.
        """
        self.slots, self.seen = slots, seen
        self.queries = self.positions[:, slots]  # [B or 1, L]
        self._biases: dict[tuple[bool, int | None], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values."""
        return sum(each.nbytes for kept in (self.keys, self.values) for each in kept.values())

    @property
    def position_ids(self) -> Tensor:
        """The position_ids of the slots being filled, int64 `[B or 1, L]`; a pad gets 0, but any valid one would do."""
        return self.queries.masked_fill(self.queries == PAD, 0) if self.padded else self.queries

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Write `key` and `value` `[B, G, L, D]` of layer number `layer` into the slots, then attend to what is there.

        `query` is `[B, Q, L, D]`, and so is the result.
        """
        if layer not in self.keys:
            self.keys[layer], self.values[layer] = (_room(new, self.positions.shape[1]) for new in (key, value))
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        return attention(query, keys[:, :, : self.seen], values[:, :, : self.seen], self._bias(rules, query), rules)

    def _bias(self, rules: Rules, query: Tensor) -> Tensor | None:
        """The `bias` of this forward pass, computed once for all layers with the same rules; None if it would be 0."""
        plain = rules.slopes is None and rules.window is None
        if plain and not self.padded and query.shape[2] == 1 and self.seen is not None:
            return None
        key = (rules.slopes is None, rules.window)
        if key not in self._biases:
            self._biases[key] = bias(self.queries, self.positions[:, : self.seen], rules).to(query.dtype)
        return self._biases[key]


def slot_positions(mask: Tensor, front_length: int | Sequence[int], new_tokens: int) -> Tensor:
    """The positions of all slots, int64 `[B, F + T + new]`, from the attention_mask `[B, T]` of a left-padded text.

    Real tokens are counted from 0, the front's first; pads get `PAD`.

    Args:
        front_length: F, or the length of every row's own front, of which F is the largest.
    """
    lengths = [front_length] if isinstance(front_length, int) else front_length
    ends = torch.tensor(lengths, device=mask.device)[:, None]  # [1 or B, 1]
    in_front = torch.arange(max(lengths), device=mask.device) < ends
    real = torch.cat([in_front.expand(len(mask), -1), F.pad(mask != 0, (0, new_tokens), value=True)], dim=1)
    return (real.cumsum(1) - 1).masked_fill(~real, PAD)


def bias(queries: Tensor, keys: Tensor, rules: Rules) -> Tensor:
    """What is added to the scores of queries and keys at positions `[B, L]` and `[B, K]`: fp32 `[B, 1 or Q, L, K]`.

    It holds ALiBi, and -inf where a key is hidden. ALiBi counts from the query, as `Layout._bias` in `attention.py`
    explains.
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
    """Compute the attention of query `[B, Q, L, D]` to keys and values `[B, G, K, D]`: `[B, Q, L, D]`."""
    heads, groups = query.shape[1], query.shape[1] // keys.shape[1]
    if rules.softcap is not None:
        return _capped_attention(query, keys, values, bias, rules.scale, rules.softcap)
    # with one query per row, the query heads that share a key head can be passed as several queries of that head
    folded = groups > 1 and query.shape[2] == 1 and (bias is None or bias.shape[1] == 1)
    query = query.reshape(len(query), -1, groups, query.shape[3]) if folded else query
    gqa = groups > 1 and not folded
    output = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=rules.scale, enable_gqa=gqa)
    return output.reshape(len(query), heads, -1, output.shape[3])


def _capped_attention(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Compute `attention` with soft-capped scores, which torch's fused kernel does not offer."""
    shape = (len(query), keys.shape[1], -1, query.shape[3])
    scores = (query.reshape(shape) @ keys.transpose(2, 3)).view(*query.shape[:3], -1)  # [B, Q, L, K]
    scores = softcap * torch.tanh(scores * (scale / softcap))
    scores = scores if bias is None else scores + bias
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return (probabilities.view(*shape[:3], keys.shape[2]) @ values).view(query.shape)


def _room(tensor: Tensor, slots: int, rows: int | None = None) -> Tensor:
    """Zeros `[rows, G, slots, D]` like `tensor` `[B, G, *, D]`; `rows` is B by default.

    Empty memory would not do: a hidden slot has weight 0, and 0 x NaN is NaN.
    """
    return tensor.new_zeros(rows or len(tensor), tensor.shape[1], slots, tensor.shape[3])
