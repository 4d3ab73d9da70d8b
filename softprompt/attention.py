"""Attention inside a pack: everybody sees the shared places in front, and besides them only the own row.

`layout` says who stands where (`packing.py` explains a pack), `rules` how a score is made. Three ways compute the
same thing: `plain_attention` is the definition, on the whole S x S square; `attend` takes rows of like length together
and touches only what they see, on any device; `flex_attention.py` hands the same rules to a CUDA kernel.

Z shared places, S places, L places of one row's own, K = Z + L keys that they see, R rows of a tile; Q query heads,
G key heads (G divides Q), D the width of a head.
"""

import functools
import math
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.packing import Pack

# scores of one row and head above which they are not kept for the backward pass but computed anew there
MAX_KEPT_SCORES = 512 * 512
# how much shorter than its tile's first row another may be: a share of it and some places more
SLACK, SLACK_PLACES = 0.125, 8


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
class Tile:
    """Neighbouring rows of like length that attend together: R rows of L places, the shorter ones padded at their end.

    No mask is needed for pads: they come behind all real queries, and what they compute themselves is dropped.
    """

    start: int
    end: int
    num_rows: int
    length: int
    index: Tensor | None  # int64 [R * L], places from `start` on, a pad's being its row's last; None without pads
    real: Tensor | None  # int64 [end - start], which of the R * L are no pads

    @classmethod
    def of(cls, start: int, lengths: list[int], device: torch.device) -> "Tile":
        """The tile of rows with these lengths, none longer than the first, from `start` on."""
        rows, longest, total = len(lengths), lengths[0], sum(lengths)
        if rows * longest == total:
            return cls(start, start + total, rows, longest, None, None)
        ends = list(accumulate(lengths))
        index = [
            min(end - length + i, end - 1) for end, length in zip(ends, lengths, strict=True) for i in range(longest)
        ]
        real = [row * longest + i for row, length in enumerate(lengths) for i in range(length)]
        return cls(start, start + total, rows, longest, *(torch.tensor(x, device=device) for x in (index, real)))

    def take(self, tensor: Tensor) -> Tensor:
        """`[heads, S, D]` -> `[heads, R, L, D]`."""
        own = tensor[:, self.start : self.end]
        return (own if self.index is None else own[:, self.index]).unflatten(1, (self.num_rows, self.length))

    def drop_pads(self, tensor: Tensor) -> Tensor:
        """`[heads, R, L, D]` -> `[heads, end - start, D]`."""
        flat = tensor.flatten(1, 2)
        return flat if self.real is None else flat[:, self.real]


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
    def tiles(self) -> list[Tile]:
        """The shared places, then the rows, neighbours together where that takes few pads."""
        device = self.positions.device
        tiles = [Tile.of(0, [self.num_shared], device)] if self.num_shared else []
        start, lengths = self.num_shared, []
        for length in (end - begin for begin, end in pairwise(self.bounds)):
            if lengths and not lengths[0] * (1 - SLACK) - SLACK_PLACES <= length <= lengths[0]:
                tiles.append(Tile.of(start, lengths, device))
                start, lengths = tiles[-1].end, []
            lengths.append(length)
        return [*tiles, Tile.of(start, lengths, device)] if lengths else tiles

    def rows(self) -> Tensor:
        """The row that every place belongs to, from 1; 0 for the shared places. `[S]`"""
        lengths = torch.tensor([end - start for start, end in pairwise([0, *self.bounds])])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.positions.device)

    def seen(self, tensor: Tensor, tile: Tile) -> Tensor:
        """What a tile sees of keys or values `[G, S, D]`, the shared places and each row its own: `[G, R, K, D]`"""
        own = tile.take(tensor)
        if tile.start == 0:
            return own
        return torch.cat([tensor[:, None, : self.num_shared].expand(-1, tile.num_rows, -1, -1), own], dim=2)

    def bias(self, tile: Tile, rules: Rules, dtype: torch.dtype) -> Tensor:
        """ALiBi and mask of every row of a tile, `[1 or Q, L, K]`, made once for all layers with the same rules."""
        name = (tile.start, rules.window, rules.slopes is None, dtype)
        if name not in self.masks:
            queries = self.positions[tile.start : tile.start + tile.length]
            keys = queries if tile.start == 0 else torch.cat([self.positions[: self.num_shared], queries])
            self.masks[name] = _bias(queries[:, None] - keys, rules).to(dtype)
        return self.masks[name]


def plain_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """The definition: query `[Q, S, D]`, key and value `[G, S, D]` -> `[S, Q, D]`."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, dim=0), value.repeat_interleave(groups, dim=0)
    scores = query @ key.transpose(1, 2) * rules.scale  # [Q, S, S]
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    row, place = layout.rows(), torch.arange(query.shape[1], device=query.device)
    visible = (place[:, None] >= place) & ((row == 0) | (row[:, None] == row))
    scores = scores + _bias(layout.positions[:, None] - layout.positions, rules).to(_wide(scores.dtype))
    probabilities = scores.masked_fill(~visible, -math.inf).softmax(-1).to(query.dtype)
    return (probabilities @ value).transpose(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Tile by tile, with the shapes of `plain_attention`; rows of more than 512 places or so keep no scores."""
    longest = max(tile.length for tile in layout.tiles)
    if longest * (layout.num_shared + longest) <= MAX_KEPT_SCORES or rules.softcap is not None:
        return _TileByTile.apply(query, key, value, layout, rules)
    outputs = []
    for tile in layout.tiles:
        parts = (tile.take(query), layout.seen(key, tile), layout.seen(value, tile))
        settings = {"attn_mask": layout.bias(tile, rules, query.dtype)[None], "scale": rules.scale, "enable_gqa": True}
        output = F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts), **settings)  # [R, Q, L, D]
        outputs.append(tile.drop_pads(output.transpose(0, 1)))
    return torch.cat(outputs, dim=1).transpose(0, 1)  # [S, Q, D]


class _TileByTile(torch.autograd.Function):
    """Attention with its backward pass by hand: no concatenated keys are kept, and shared gradients are summed wide."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
        (heads, places, width), groups = query.shape, key.shape[0]
        output = query.new_empty(places, heads, width)
        kept: list[Tensor] = []
        for tile in layout.tiles:
            keys, values = (layout.seen(x, tile).flatten(0, 1) for x in (key, value))  # [G * R, K, D]
            scores = torch.bmm(_fold(tile.take(query), groups), keys.transpose(1, 2))  # [G * R, Q / G * L, K]
            probabilities, capped = _softmax(scores, layout.bias(tile, rules, _wide(query.dtype)), tile, rules, groups)
            kept += [probabilities] if capped is None else [probabilities, capped]
            weighted = _unfold(torch.bmm(probabilities, values), groups, tile)
            output[tile.start : tile.end] = tile.drop_pads(weighted).transpose(0, 1)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.rules = layout, rules
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (query, key, value, *kept), layout, rules = ctx.saved_tensors, ctx.layout, ctx.rules
        groups, kept, step = key.shape[0], iter(kept), 1 if rules.softcap is None else 2
        grads = [_like(tensor) for tensor in (query, key, value)]
        shared = key.new_zeros(2, groups, layout.num_shared, key.shape[2], dtype=_wide(key.dtype))
        for tile in layout.tiles:
            keys, values = (layout.seen(x, tile).flatten(0, 1) for x in (key, value))
            grad = tile.take(grad_output.transpose(0, 1))
            if tile.real is not None:
                grad = _without_pads(grad, tile)
            grad = _fold(grad, groups)
            probabilities, capped = next(kept), next(kept) if step == 2 else None
            slopes = torch.bmm(grad, values.transpose(1, 2))  # [G * R, Q / G * L, K]
            slopes = torch._softmax_backward_data(slopes, probabilities, -1, probabilities.dtype)
            if capped is not None:
                slopes = (slopes * (1 - capped.square())).to(query.dtype)
            slopes.mul_(rules.scale)
            grads[0][:, tile.start : tile.end] = tile.drop_pads(_unfold(torch.bmm(slopes, keys), groups, tile))
            of_keys = torch.bmm(slopes.transpose(1, 2), _fold(tile.take(query), groups))  # [G * R, K, D]
            for side, part in enumerate((of_keys, torch.bmm(probabilities.transpose(1, 2), grad))):
                part = part.unflatten(0, (groups, -1))
                grads[1 + side][:, tile.start : tile.end] = tile.drop_pads(part[:, :, -tile.length :])
                if tile.start:
                    shared[side] += part[:, :, : layout.num_shared].sum(1, dtype=shared.dtype)
        for whole, part in zip(grads[1:], shared, strict=True):
            whole[:, : layout.num_shared] += part
        return *grads, None, None


def _softmax(scores: Tensor, bias: Tensor, tile: Tile, rules: Rules, groups: int) -> tuple[Tensor, Tensor | None]:
    """Probabilities of raw scores `[G * R, Q / G * L, K]`, in their dtype, and with a soft cap its tanh."""
    shape = scores.shape
    scores = scores.view(groups, tile.num_rows, -1, *bias.shape[1:])  # [G, R, Q / G, L, K]
    bias = bias.view(-1 if len(bias) == 1 else groups, 1, 1 if len(bias) == 1 else scores.shape[2], *bias.shape[1:])
    if rules.softcap is None:
        return torch.add(bias, scores, alpha=rules.scale).softmax(-1).to(scores.dtype).view(shape), None
    capped = torch.tanh(scores.to(bias.dtype) * (rules.scale / rules.softcap))
    return torch.add(bias, capped, alpha=rules.softcap).softmax(-1).to(scores.dtype).view(shape), capped.view(shape)


def _bias(distance: Tensor, rules: Rules) -> Tensor:
    """Added to scores at these distances `[..., L, K]`: ALiBi, and -inf where a query does not see. `[1 or Q, L, K]`

    A softmax does not change when a query's biases are shifted, so ALiBi counts from the query, where half precision
    is finest, and not from the first key.
    """
    visible = distance >= 0
    if rules.window is not None:
        visible &= distance < rules.window
    if rules.slopes is None:
        slanted = torch.zeros((1, *distance.shape), device=distance.device)
    else:
        slanted = rules.slopes[:, None, None] * -distance
    return slanted.masked_fill(~visible, -math.inf)


def _fold(tensor: Tensor, groups: int) -> Tensor:
    """`[Q, R, L, D]` -> `[G * R, Q / G * L, D]`: the query heads that share a key head, one behind the other."""
    return tensor.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _unfold(tensor: Tensor, groups: int, tile: Tile) -> Tensor:
    """The way back from `_fold`."""
    tensor = tensor.view(groups, tile.num_rows, -1, tile.length, tensor.shape[-1])  # [G, R, Q / G, L, D]
    return tensor.transpose(1, 2).flatten(0, 1)


def _without_pads(tensor: Tensor, tile: Tile) -> Tensor:
    """`[heads, R, L, D]` with zeros at pads."""
    real = torch.zeros(tile.num_rows * tile.length, 1, dtype=tensor.dtype, device=tensor.device)
    real[tile.real] = 1
    return tensor * real.view(tile.num_rows, tile.length, 1)


def _like(tensor: Tensor) -> Tensor:
    """An empty `[heads, S, D]` that lies in memory as `[S, heads, D]`, as the projections read it."""
    heads, places, width = tensor.shape
    return tensor.new_empty(places, heads, width).transpose(0, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32 for half precisions: the dtype of softmax and sums."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
