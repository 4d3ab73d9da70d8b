"""Attention inside a pack: everybody sees the shared places in front, and besides them only the own row.

`layout` says who stands where (`packing.py` explains a pack), `rules` how a score is made. Three ways compute the
same thing: `plain_attention` is the definition, on the whole S x S square; `attend` walks over the rows and touches
only what a row sees, on any device; `flex_attention.py` hands the same rules to a CUDA kernel.

Z shared places, S places, L places of one row's own, K = Z + L keys that they see; Q query heads, G key heads (G
divides Q), D the width of a head.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.packing import Pack

# scores of one row and head above which they are not kept for the backward pass but computed anew there
MAX_KEPT_SCORES = 512 * 512


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
    biases: dict = field(default_factory=dict, repr=False)  # of this pack: the layers share them

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> "Layout":
        """The layout of a pack."""
        return cls(pack.bounds, torch.tensor(pack.position_ids, device=device))

    @property
    def num_shared(self) -> int:
        """Z."""
        return self.bounds[0]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Start and end of the shared places and of every row's own; empty ones left out."""
        return [(start, end) for start, end in pairwise([0, *self.bounds]) if end > start]

    def rows(self) -> Tensor:
        """The row that every place belongs to, from 1; 0 for the shared places. `[S]`"""
        lengths = torch.tensor([end - start for start, end in pairwise([0, *self.bounds])])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.positions.device)

    def keys(self, tensor: Tensor, start: int, end: int) -> Tensor:
        """What a block sees of keys or values `[G, S, D]`: the shared places and its own. `[G, K, D]`"""
        own = tensor[:, start:end]
        return own if start == 0 else torch.cat([tensor[:, : self.num_shared], own], dim=1)

    def bias(self, start: int, end: int, rules: Rules, dtype: torch.dtype) -> Tensor:
        """ALiBi and mask of one block, `[1 or Q, L, K]`, made once for all layers with the same rules."""
        key = (start, rules.window, rules.slopes is None, dtype)
        if key not in self.biases:
            queries = self.positions[start:end]
            keys = queries if start == 0 else torch.cat([self.positions[: self.num_shared], queries])
            self.biases[key] = _bias(queries[:, None] - keys, rules).to(dtype)
        return self.biases[key]


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
    """Row by row, with the shapes of `plain_attention`; rows of more than 512 places or so keep no scores."""
    longest = max(end - start for start, end in layout.blocks)
    if longest * (layout.num_shared + longest) <= MAX_KEPT_SCORES or rules.softcap is not None:
        return _RowByRow.apply(query, key, value, layout, rules)
    outputs = []
    for start, end in layout.blocks:
        keys, values = layout.keys(key, start, end), layout.keys(value, start, end)
        bias = layout.bias(start, end, rules, query.dtype)
        settings = {"attn_mask": bias[None], "scale": rules.scale, "enable_gqa": True}
        outputs.append(F.scaled_dot_product_attention(query[None, :, start:end], keys[None], values[None], **settings))
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)  # [S, Q, D]


class _RowByRow(torch.autograd.Function):
    """Attention with its backward pass by hand: no concatenated keys are kept, and shared gradients are summed wide."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
        heads, places, width = query.shape
        output = query.new_empty(places, heads, width)
        kept: list[Tensor] = []
        for start, end in layout.blocks:
            queries = _grouped(query[:, start:end], key)  # [G, Q/G * L, D]
            scores = torch.bmm(queries, layout.keys(key, start, end).transpose(1, 2))
            scores = scores.view(heads, end - start, -1)  # [Q, L, K]
            bias = layout.bias(start, end, rules, _wide(query.dtype))
            if rules.softcap is None:
                scores, capped = torch.add(bias, scores, alpha=rules.scale), None
            else:
                capped = torch.tanh(scores.to(bias.dtype) * (rules.scale / rules.softcap))
                scores = torch.add(bias, capped, alpha=rules.softcap)
            probabilities = scores.softmax(-1).to(query.dtype)
            kept += [probabilities] if capped is None else [probabilities, capped]
            weighted = torch.bmm(_grouped(probabilities, key), layout.keys(value, start, end))
            output[start:end] = weighted.view(heads, -1, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.rules = layout, rules
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (query, key, value, *kept), layout, rules = ctx.saved_tensors, ctx.layout, ctx.rules
        step = 1 if rules.softcap is None else 2
        heads, places, width = query.shape
        grad_query, grad_key, grad_value = (_like(tensor) for tensor in (query, key, value))
        shared = key.new_zeros(2, key.shape[0], layout.num_shared, width, dtype=_wide(key.dtype))
        for (start, end), probabilities, capped in zip(
            layout.blocks, kept[::step], kept[step - 1 :: step], strict=True
        ):
            grad = _grouped(grad_output[start:end].transpose(0, 1), key)
            grad_scores = torch.bmm(grad, layout.keys(value, start, end).transpose(1, 2)).view_as(probabilities)
            grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)
            if rules.softcap is not None:
                grad_scores = (grad_scores * (1 - capped.square())).to(query.dtype)
            grad_scores = _grouped(grad_scores.mul_(rules.scale), key)  # [G, Q/G * L, K]
            queries = _grouped(query[:, start:end], key)
            grad_query[:, start:end] = torch.bmm(grad_scores, layout.keys(key, start, end)).view(heads, -1, width)
            for side, whole, part in (
                (0, grad_key, torch.bmm(grad_scores.transpose(1, 2), queries)),
                (1, grad_value, torch.bmm(_grouped(probabilities, key).transpose(1, 2), grad)),
            ):
                whole[:, start:end] = part[:, start - end :]
                shared[side] += part[:, : layout.num_shared] if start else 0
        grad_key[:, : layout.num_shared] += shared[0]
        grad_value[:, : layout.num_shared] += shared[1]
        return grad_query, grad_key, grad_value, None, None


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


def _grouped(tensor: Tensor, key: Tensor) -> Tensor:
    """`[Q, L, *]` -> `[G, Q/G * L, *]`: the query heads that share a key head, one behind the other."""
    return tensor.reshape(key.shape[0], -1, tensor.shape[-1])


def _like(tensor: Tensor) -> Tensor:
    """An empty `[heads, S, D]` that lies in memory as `[S, heads, D]`, as the projections read it."""
    heads, places, width = tensor.shape
    return tensor.new_empty(places, heads, width).transpose(0, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32 for half precisions: the dtype of softmax and sums."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
