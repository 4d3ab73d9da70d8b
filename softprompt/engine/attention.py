"""Attention inside a pack: everybody sees the shared places in front, and besides them only the own row.

`layout` says who stands where (`batches.py` explains a pack), `rules` how a score is made. Three ways compute the
same thing: `plain_attention` is the definition, on the whole S x S square; `attend` walks over the rows and touches
only what they see, on any device; `flex_attention.py` hands the same rules to a CUDA kernel.

Z shared places, S places, L places of a tile, K the keys that they see; Q query heads, G key heads (G divides Q), D
the width of a head.
"""

import functools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.engine.batches import Pack

# scores of one row and head above which they are not kept for the backward pass but computed anew there, which takes
# no memory and, by torch's kernel on a CPU, about three times as long
MAX_KEPT_SCORES = 1024 * 1024
# short rows attend together up to this many places
TILE_PLACES = 128


@dataclass(frozen=True)
class Rules:
    """How a score is made: scale x query . key, softly capped, minus ALiBi's slope x distance, within a window.

    Attributes:
        slopes: ALiBi's slopes `[Q]`, fp32.
        window: a query sees this many positions up to its own; None is all.
        softcap: scores are squeezed into (-softcap, softcap) by a tanh (Gemma 2).
    """

    scale: float
    slopes: Tensor | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class Layout:
    """Who sees whom in a pack, on its device."""

    bounds: list[int]
    positions: Tensor  # int64 [S]
    masks: dict = field(default_factory=dict, repr=False)  # of this pack, by rules: the layers share them

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> "Layout":
        """The layout of a pack."""
        return cls(pack.bounds, torch.tensor(pack.position_ids, device=device))

    @property
    def num_shared(self) -> int:
        """Z."""
        return self.bounds[0]

    @functools.cached_property
    def rows(self) -> Tensor:
        """The row that every place belongs to, from 1; 0 for the shared places. `[S]`"""
        lengths = torch.tensor([end - start for start, end in pairwise([0, *self.bounds])])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.positions.device)

    @functools.cached_property
    def tiles(self) -> list[tuple[int, int]]:
        """Start and end of the places that attend in one go.

        The first row continues what is shared, so the two are one tile. Short neighbours share a tile, where their
        mask keeps them apart: a little arithmetic for nothing costs less than another round of calls.
        """
        first, *others = self.bounds if len(self.bounds) == 1 else self.bounds[1:]
        ends = [first]
        for end in others:
            if len(ends) > 1 and end - ends[-2] <= TILE_PLACES:
                ends.pop()
            ends.append(end)
        return [(start, end) for start, end in pairwise([0, *ends]) if end > start]

    def seen(self, tensor: Tensor, start: int, end: int) -> Tensor:
        """What a tile sees of `[G, S, D]`: the shared places and its own, `[G, K, D]`."""
        own = tensor[:, start:end]
        return own if start == 0 else torch.cat([tensor[:, : self.num_shared], own], dim=1)

    def bias(self, start: int, end: int, rules: Rules, dtype: torch.dtype, heads: int, groups: int) -> Tensor:
        """ALiBi and mask of a tile, `[1 or G, Q / G * L, K]`, made once for all layers with the same rules."""
        name = (start, rules.window, rules.slopes is None, dtype)
        if name not in self.masks:
            places = torch.arange(end, device=self.positions.device)
            queries = places[start:]
            keys = queries if start == 0 else torch.cat([places[: self.num_shared], queries])
            bias = self._bias(queries, keys, rules).to(dtype)  # [1 or Q, L, K]
            per_group = 1 if len(bias) == heads else heads // groups
            self.masks[name] = bias.repeat(1, per_group, 1).view(-1, heads // groups * len(queries), len(keys))
        return self.masks[name]

    def _bias(self, queries: Tensor, keys: Tensor, rules: Rules) -> Tensor:
        """Added to the scores of these places: ALiBi, and -inf where a query does not see. fp32 `[1 or Q, L, K]`

        A softmax does not change when a query's biases are shifted, so ALiBi counts from the query, where half
        precision is finest, and not from the first key.
        """
        rows, distance = self.rows, self.positions[queries][:, None] - self.positions[keys]
        visible = (queries[:, None] >= keys) & ((rows[keys] == 0) | (rows[queries][:, None] == rows[keys]))
        if rules.window is not None:
            visible &= distance < rules.window
        if rules.slopes is None:
            slanted = torch.zeros((1, *distance.shape), device=distance.device)
        else:
            slanted = rules.slopes[:, None, None] * -distance
        return slanted.masked_fill(~visible, -math.inf)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """The definition: query `[Q, S, D]`, key and value `[G, S, D]` -> `[S, Q, D]`."""
    groups, places = query.shape[0] // key.shape[0], torch.arange(query.shape[1], device=query.device)
    key, value = key.repeat_interleave(groups, dim=0), value.repeat_interleave(groups, dim=0)
    scores = query @ key.transpose(1, 2) * rules.scale  # [Q, S, S]
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    probabilities = (scores + layout._bias(places, places, rules)).softmax(-1).to(query.dtype)
    return (probabilities @ value).transpose(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Tile by tile, with the shapes of `plain_attention`; rows of more than 1,000 places or so keep no scores."""
    largest = max((end - start) * (layout.num_shared + end - start) for start, end in layout.tiles)
    if largest <= MAX_KEPT_SCORES or rules.softcap is not None:
        return _TileByTile.apply(query.contiguous(), key.contiguous(), value.contiguous(), layout, rules)
    outputs, shape = [], (query.shape[0], key.shape[0])
    for start, end in layout.tiles:
        keys, values = layout.seen(key, start, end), layout.seen(value, start, end)
        bias = layout.bias(start, end, rules, query.dtype, *shape).view(-1, end - start, keys.shape[1])
        mask = bias if len(bias) == len(query) else bias[:1]
        tile = F.scaled_dot_product_attention(
            query[None, :, start:end],
            keys[None],
            values[None],
            attn_mask=mask[None],
            scale=rules.scale,
            enable_gqa=True,
        )
        outputs.append(tile)
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)  # [S, Q, D]


class _TileByTile(torch.autograd.Function):
    """Attention with its backward pass by hand: no concatenated keys are kept, and shared gradients are summed wide."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
        output, kept, shape = torch.empty_like(query), [], (query.shape[0], key.shape[0])
        for start, end in layout.tiles:
            queries, keys = _grouped(query[:, start:end], key), layout.seen(key, start, end)
            if rules.softcap is None:
                bias = layout.bias(start, end, rules, query.dtype, *shape)
                scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=rules.scale)  # [G, Q / G * L, K]
            else:
                bias = layout.bias(start, end, rules, _wide(query.dtype), *shape)
                scores = torch.bmm(queries, keys.transpose(1, 2)).to(bias.dtype)
                capped = torch.tanh(scores.mul_(rules.scale / rules.softcap))
                scores = torch.add(bias, capped, alpha=rules.softcap)
                kept.append(capped)
            kept.append(scores.softmax(-1).to(query.dtype))
            output[:, start:end] = torch.bmm(kept[-1], layout.seen(value, start, end)).view_as(query[:, start:end])
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.rules = layout, rules
        return output.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (query, key, value, *kept), layout, rules = ctx.saved_tensors, ctx.layout, ctx.rules
        grad_output = grad_output.transpose(0, 1).contiguous()
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        shared = key.new_zeros(2, len(key), layout.num_shared, key.shape[2], dtype=_wide(key.dtype))
        kept = iter(kept)
        for start, end in layout.tiles:
            capped, probabilities = None if rules.softcap is None else next(kept), next(kept)
            grad, queries = _grouped(grad_output[:, start:end], key), _grouped(query[:, start:end], key)
            slopes = torch.bmm(grad, layout.seen(value, start, end).transpose(1, 2))  # [G, Q / G * L, K]
            slopes = torch._softmax_backward_data(slopes, probabilities, -1, probabilities.dtype)
            if capped is not None:
                slopes = (slopes * (1 - capped.square())).to(query.dtype)
            of_queries = torch.bmm(slopes, layout.seen(key, start, end))
            torch.mul(of_queries.view_as(query[:, start:end]), rules.scale, out=grad_query[:, start:end])
            of_keys = torch.bmm(slopes.transpose(1, 2), queries).mul_(rules.scale)  # [G, K, D]
            of_values = torch.bmm(probabilities.transpose(1, 2), grad)
            for whole, part, total in ((grad_key, of_keys, shared[0]), (grad_value, of_values, shared[1])):
                whole[:, start:end] = part[:, start - end :]
                if start:
                    total += part[:, : layout.num_shared]
        grad_key[:, : layout.num_shared] += shared[0]
        grad_value[:, : layout.num_shared] += shared[1]
        return grad_query, grad_key, grad_value, None, None


def _grouped(tensor: Tensor, key: Tensor) -> Tensor:
    """`[Q, L, D]` -> `[G, Q / G * L, D]`: the query heads that share a key head, one behind the other."""
    return tensor if len(tensor) == len(key) else tensor.reshape(len(key), -1, tensor.shape[-1])


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32 for half precisions: the dtype of softmax and sums."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
