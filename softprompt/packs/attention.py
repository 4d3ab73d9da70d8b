"""Attention inside a pack: a token sees the shared prefix and the earlier tokens of its own row, but no other row.

A `Layout` says which row every place belongs to (`batches.py` explains packs and places), and `Rules` say how a score
is computed. Three functions compute the same attention. `plain_attention` is the definition, on the whole S x S square
of scores. `attend` works tile by tile on any device and leaves out the keys that a tile cannot see. `flex_attend` in
`flex_attention.py` hands the same layout and rules to a CUDA kernel.

Letters in shapes: a pack has S places, of which the first Z are the shared prefix; a tile has L places and sees K keys;
there are Q query heads and G key heads (G divides Q), each D wide. The keys and values of the first places may be
given, as those of a text that never changes: S places then have keys, and all but the given ones have queries.
"""

import functools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.packs.batches import Pack

# If a tile has more scores per head than this, `attend` does not keep the scores of the pack for the backward pass. It
# calls torch's kernel, which computes them again there; that takes no memory and, on a CPU, about three times as long.
MAX_KEPT_SCORES = 1024 * 1024
# neighbouring short rows share a tile of at most this many places
TILE_PLACES = 128


@dataclass(frozen=True)
class Rules:
    """How a layer computes the score of a query and a key.

    The score is scale x (query . key), then capped by `softcap`, then lowered by slope x distance (ALiBi). Keys outside
    `window` are hidden.

    Attributes:
        slopes: the ALiBi slope of every query head, `[Q]`, fp32; None means no ALiBi.
        window: how many positions a query sees, its own included; None means no limit.
        softcap: a tanh squeezes scores into (-softcap, softcap) (Gemma 2); None means no cap.
    """

    scale: float
    slopes: Tensor | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class Layout:
    """Which places of a pack see each other, with its tensors on the base's device."""

    bounds: list[int]  # as in `Pack`
    positions: Tensor  # position_ids, int64 [S]
    given: int = 0  # how many of the first places, fewer than Z, have keys and values but no query
    masks: dict = field(default_factory=dict, repr=False)  # this pack's biases and masks, which all layers share

    @classmethod
    def of(cls, pack: Pack, device: torch.device, given: int = 0) -> "Layout":
        """Make the layout of `pack` on `device`, of which the keys and values of the first `given` places are given."""
        return cls(pack.bounds, torch.tensor(pack.position_ids, device=device), given)

    @property
    def num_shared(self) -> int:
        """The number of places in the shared prefix, Z."""
        return self.bounds[0]

    @functools.cached_property
    def rows(self) -> Tensor:
        """The number of the row that every place belongs to, int64 `[S]`, from 1; it is 0 in the shared prefix."""
        lengths = torch.tensor([end - start for start, end in pairwise([0, *self.bounds])])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.positions.device)

    @functools.cached_property
    def tiles(self) -> list[tuple[int, int]]:
        """The start and end of every tile: a range of places whose attention is computed in one go.

        The first row follows the shared prefix directly, so the two are one tile. Short neighbouring rows also share a
        tile, in which the mask keeps them apart: a few wasted scores cost less than another round of calls.
        """
        first, *others = self.bounds if len(self.bounds) == 1 else self.bounds[1:]
        ends = [first]
        for end in others:
            if len(ends) > 1 and end - ends[-2] <= TILE_PLACES:
                ends.pop()
            ends.append(end)
        return [(start, end) for start, end in pairwise([0, *ends]) if end > start]

    def asking(self, tensor: Tensor, start: int, end: int) -> Tensor:
        """The part `[*, L, D]` of a tile in `tensor` `[*, S - given, D]`, which has no given places."""
        return tensor[:, max(start - self.given, 0) : end - self.given]

    def seen(self, tensor: Tensor, start: int, end: int) -> Tensor:
        """Select from keys or values `[G, S, D]` what a tile sees, the shared prefix and its own: `[G, K, D]`."""
        own = tensor[:, start:end]
        return own if start == 0 else torch.cat([tensor[:, : self.num_shared], own], dim=1)

    def bias(self, start: int, end: int, rules: Rules, dtype: torch.dtype, heads: int, groups: int) -> Tensor:
        """The additive bias (ALiBi and mask) of a tile, `[1 or G, Q / G * L, K]`.

        It is computed once for all layers with the same rules.
        """
        # the key need not hold the slopes' values, since all layers of a base have the same slopes
        name = (start, rules.window, rules.slopes is None, dtype)
        if name not in self.masks:
            places = torch.arange(end, device=self.positions.device)
            queries = places[max(start, self.given) :]
            keys = places if start == 0 else torch.cat([places[: self.num_shared], queries])
            bias = self._bias(queries, keys, rules).to(dtype)  # [1 or Q, L, K]
            per_group = 1 if len(bias) == heads else heads // groups
            self.masks[name] = bias.repeat(1, per_group, 1).view(-1, heads // groups * len(queries), len(keys))
        return self.masks[name]

    def _bias(self, queries: Tensor, keys: Tensor, rules: Rules) -> Tensor:
        """What is added to the scores of these places: ALiBi, and -inf where a key is hidden. fp32 `[1 or Q, L, K]`

        A softmax does not change when the same number is added to all scores of a query. ALiBi can therefore count from
        the query instead of from the first key: it is 0 at the query, and half precisions are finest near 0.
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
    """Compute the attention as it is defined: query `[Q, S, D]`, key and value `[G, S, D]` -> `[S, Q, D]`.

    With given places, query and output have S - given instead of S.
    """
    groups, places = query.shape[0] // key.shape[0], torch.arange(key.shape[1], device=query.device)
    key, value = key.repeat_interleave(groups, dim=0), value.repeat_interleave(groups, dim=0)
    scores = query @ key.transpose(1, 2) * rules.scale  # [Q, S - given, S]
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    probabilities = (scores + layout._bias(places[layout.given :], places, rules)).softmax(-1).to(query.dtype)
    return (probabilities @ value).transpose(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Compute the attention tile by tile, with the shapes of `plain_attention`.

    A pack with a row of more than 1,000 places or so keeps no scores for the backward pass (`MAX_KEPT_SCORES`), unless
    scores are soft-capped, which torch's kernel cannot do.
    """
    largest = max((end - start) * (layout.num_shared + end - start) for start, end in layout.tiles)
    if largest <= MAX_KEPT_SCORES or rules.softcap is not None:
        return _TileByTile.apply(query.contiguous(), key.contiguous(), value.contiguous(), layout, rules)
    outputs, shape = [], (query.shape[0], key.shape[0])
    for start, end in layout.tiles:
        keys, values = layout.seen(key, start, end), layout.seen(value, start, end)
        queries = layout.asking(query, start, end)
        bias = layout.bias(start, end, rules, query.dtype, *shape).view(-1, queries.shape[1], keys.shape[1])
        mask = bias if len(bias) == len(query) else bias[:1]  # without ALiBi, every head has the same mask
        tile = F.scaled_dot_product_attention(
            queries[None],
            keys[None],
            values[None],
            attn_mask=mask[None],
            scale=rules.scale,
            enable_gqa=True,
        )
        outputs.append(tile)
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)  # [S, Q, D]


class _TileByTile(torch.autograd.Function):
    """`attend` with its backward pass written by hand.

    The backward pass concatenates the shared and a tile's own keys again instead of keeping them, and sums what all
    tiles contribute to the gradient of the shared prefix in fp32 for half precisions.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
        output, kept, shape = torch.empty_like(query), [], (query.shape[0], key.shape[0])
        for start, end in layout.tiles:
            asking = layout.asking(query, start, end)
            queries, keys = _grouped(asking, key), layout.seen(key, start, end)
            if rules.softcap is None:
                bias = layout.bias(start, end, rules, query.dtype, *shape)
                scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=rules.scale)  # [G, Q / G * L, K]
            else:
                bias = layout.bias(start, end, rules, wide_dtype(query.dtype), *shape)
                scores = torch.bmm(queries, keys.transpose(1, 2)).to(bias.dtype)
                capped = torch.tanh(scores.mul_(rules.scale / rules.softcap))
                scores = torch.add(bias, capped, alpha=rules.softcap)
                kept.append(capped)
            kept.append(scores.softmax(-1).to(query.dtype))
            attended = torch.bmm(kept[-1], layout.seen(value, start, end)).view_as(asking)
            layout.asking(output, start, end).copy_(attended)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.rules = layout, rules
        return output.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (query, key, value, *kept), layout, rules = ctx.saved_tensors, ctx.layout, ctx.rules
        grad_output = grad_output.transpose(0, 1).contiguous()
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        shared = key.new_zeros(2, len(key), layout.num_shared, key.shape[2], dtype=wide_dtype(key.dtype))
        kept = iter(kept)
        for start, end in layout.tiles:
            capped, probabilities = None if rules.softcap is None else next(kept), next(kept)
            grad, queries = (_grouped(layout.asking(each, start, end), key) for each in (grad_output, query))
            # the gradient of the scores, through the softmax and then through the cap, whose derivative is 1 - tanh^2
            slopes = torch.bmm(grad, layout.seen(value, start, end).transpose(1, 2))  # [G, Q / G * L, K]
            slopes = torch._softmax_backward_data(slopes, probabilities, -1, probabilities.dtype)
            if capped is not None:
                slopes = (slopes * (1 - capped.square())).to(query.dtype)
            of_queries = torch.bmm(slopes, layout.seen(key, start, end))
            mine = layout.asking(grad_query, start, end)
            torch.mul(of_queries.view_as(mine), rules.scale, out=mine)
            of_keys = torch.bmm(slopes.transpose(1, 2), queries).mul_(rules.scale)  # [G, K, D]
            of_values = torch.bmm(probabilities.transpose(1, 2), grad)
            for whole, part, total in ((grad_key, of_keys, shared[0]), (grad_value, of_values, shared[1])):
                whole[:, start:end] = part[:, start - end :]
                if start:  # the first tile holds the shared prefix as its own places
                    total += part[:, : layout.num_shared]
        grad_key[:, : layout.num_shared] += shared[0]
        grad_value[:, : layout.num_shared] += shared[1]
        return grad_query, grad_key, grad_value, None, None


def _grouped(tensor: Tensor, key: Tensor) -> Tensor:
    """Join the query heads that share a key head, one behind the other: `[Q, L, D]` -> `[G, Q / G * L, D]`."""
    return tensor if len(tensor) == len(key) else tensor.reshape(len(key), -1, tensor.shape[-1])


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype for soft-capped scores and for sums of gradients: fp32 for half precisions, else `dtype` itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
