"""Attention of several packs in one sequence: the packs of the lanes that share a pass, one behind the other.

A lane is a prompt with rows of its own, and no lane sees another. All that works on single tokens runs on the joined
sequence. For the attention, rows of all lanes whose lengths are alike are padded to a batch, so the number of calls
hardly grows with the number of lanes.

Letters in shapes: S places in all lanes together, of which S_k are lane k's; a batch has B rows of at most L places, in
front of which it sees at most Z places that its lanes share; Q query heads and G key heads, each D wide.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from softprompt.packs.attention import Layout, Rules, wide_dtype

# The longest row for which batches are used. With rows of 20 to 45 places they took 0.65 to 0.8 of the time of `attend`
# lane by lane, and with rows of 60 to 120 about 1.2.
LONGEST_IN_BATCHES = 48
MOST_PADDING = 2  # a batch computes at most so many times the scores that its smallest row needs


@dataclass(frozen=True)
class Row:
    """Places that attend together: a row of a lane, or what the rows of a lane share, in front of which is nothing."""

    start: int  # its first place in the joined sequence
    length: int
    front_start: int  # the first place that its lane shares
    front_length: int

    @property
    def scores(self) -> int:
        """How many scores it needs per head, those that the mask hides included."""
        return self.length * (self.front_length + self.length)


class Batch:
    """Rows padded to L places behind Z places. A pad is a copy of the last place of its row, whose output is dropped.

    Attributes:
        queries: the place of every query, int64 `[B * L]`.
        keys: the place of every key, int64 `[B * (Z + L)]`.
        shown: which keys are no pads, bool `[B, Z + L]`.
        kept: which of the B * L queries are no pads; None if no query is one.
        pads: which queries are pads, bool `[B, 1, L, 1]`; None if no query is one.
        written: the places of the queries that are no pads.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.size = len(rows)
        self.length = max(row.length for row in rows)
        self.front_length = max(row.front_length for row in rows)
        own = torch.arange(self.length)
        lengths = torch.tensor([[row.length] for row in rows])
        starts = torch.tensor([[row.start] for row in rows])
        queries = starts + own.minimum(lengths - 1)  # [B, L]
        shared = torch.arange(self.front_length).expand(self.size, -1)  # [B, Z]
        fronts = torch.tensor([[row.front_length] for row in rows])
        # a pad in front of a row is hidden; that it is the row's own place keeps it within the lane
        in_front = torch.where(shared < fronts, torch.tensor([[row.front_start] for row in rows]) + shared, starts)
        real = own < lengths
        self.queries = queries.flatten().to(device)
        self.keys = torch.cat([in_front, queries], dim=1).flatten().to(device)
        self.shown = torch.cat([shared < fronts, real], dim=1).to(device)  # [B, Z + L]
        self.kept = None if real.all() else real.flatten().nonzero().squeeze(1).to(device)
        self.pads = None if real.all() else ~real[:, None, :, None].to(device)
        self.written = self.queries if self.kept is None else self.queries[self.kept]

    def gathered(self, tensor: Tensor, places: Tensor, groups: int) -> Tensor:
        """Select places of `[Q or G, S, D]`, with the heads of a group joined: `[G * B, heads / G * places, D]`."""
        heads, _, width = tensor.shape
        chosen = tensor.index_select(1, places)
        if heads != groups:
            chosen = chosen.view(groups, heads // groups, self.size, -1, width).transpose(1, 2)
        return chosen.reshape(groups * self.size, -1, width)

    def scattered(self, tensor: Tensor, heads: int, groups: int) -> Tensor:
        """Undo `gathered`, without the pads: `[G * B, heads / G * L, D]` -> `[Q, places, D]`, to go to `written`."""
        if heads != groups:
            tensor = tensor.view(groups, self.size, heads // groups, self.length, -1).transpose(1, 2)
        tensor = tensor.reshape(heads, self.size * self.length, -1)
        return tensor if self.kept is None else tensor.index_select(1, self.kept)


@dataclass(frozen=True)
class LaneLayout:
    """Which places of several packs see each other, when the packs stand one behind the other."""

    layouts: list[Layout]
    masks: dict = field(default_factory=dict, repr=False)  # the biases of the batches, which all layers share

    @functools.cached_property
    def positions(self) -> Tensor:
        """The position_ids of all places, int64 `[S]`."""
        return torch.cat([layout.positions for layout in self.layouts])

    @functools.cached_property
    def edges(self) -> list[int]:
        """Where every lane begins, and the end of the last."""
        return [*accumulate((layout.bounds[-1] for layout in self.layouts), initial=0)]

    @functools.cached_property
    def rows(self) -> list[Row]:
        """All that attends together, lane by lane."""
        found = []
        for lane, layout in zip(self.edges, self.layouts, strict=False):
            shared = layout.num_shared
            if shared:
                found.append(Row(lane, shared, lane, 0))
            found += [Row(lane + start, end - start, lane, shared) for start, end in pairwise(layout.bounds)]
        return found

    @functools.cached_property
    def batches(self) -> list[Batch]:
        """All rows, the longest first, each in the first batch in which no row is padded too much."""
        groups: list[list[Row]] = []
        for row in sorted(self.rows, key=lambda row: (-row.length, -row.front_length)):
            for group in groups:
                length, front = group[0].length, max(row.front_length, *(each.front_length for each in group))
                least = min(row.scores, *(each.scores for each in group))
                if length * (front + length) <= MOST_PADDING * least:
                    group.append(row)
                    break
            else:
                groups.append([row])
        return [Batch(group, self.positions.device) for group in groups]

    @functools.cached_property
    def in_batches(self) -> bool:
        """Whether batches are the faster way: all rows are short, so that calls cost more than gathering."""
        return max(row.length for row in self.rows) <= LONGEST_IN_BATCHES

    def bias(self, number: int, rules: Rules, dtype: torch.dtype, heads: int, groups: int) -> Tensor:
        """The additive bias (ALiBi and mask) of a batch, `[G * B, Q / G * L, Z + L]`, made once for all layers."""
        name = (number, rules.window, rules.slopes is None, dtype)
        if name not in self.masks:
            batch, per_group = self.batches[number], heads // groups
            queries, keys = batch.queries.view(batch.size, -1, 1), batch.keys.view(batch.size, 1, -1)
            distance = self.positions[queries] - self.positions[keys]  # [B, L, Z + L]
            visible = (queries >= keys) & batch.shown[:, None]
            if rules.window is not None:
                visible &= distance < rules.window
            slopes = distance.new_zeros(heads, dtype=torch.float32) if rules.slopes is None else rules.slopes
            # ALiBi counts from the query, as in `Layout`
            bias = (slopes[:, None, None, None] * -distance).masked_fill_(~visible, -math.inf).to(dtype)
            bias = bias.view(groups, per_group, *distance.shape).transpose(1, 2)
            self.masks[name] = bias.reshape(groups * batch.size, -1, distance.shape[2])
        return self.masks[name]


def attend_lanes(query: Tensor, key: Tensor, value: Tensor, layout: LaneLayout, rules: Rules) -> Tensor:
    """Compute the attention of all lanes batch by batch: query `[Q, S, D]`, key and value `[G, S, D]` -> `[S, Q, D]`.

    Every lane gets what `plain_attention` gives it alone. All scores are kept for the backward pass.
    """
    return _BatchByBatch.apply(query.contiguous(), key.contiguous(), value.contiguous(), layout, rules)


class _BatchByBatch(torch.autograd.Function):
    """`attend_lanes` with its backward pass written by hand, which needs what was gathered: a shared pass is short."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, layout: LaneLayout, rules: Rules) -> Tensor:
        output, kept, (heads, groups) = torch.empty_like(query), [], (len(query), len(key))
        for number, batch in enumerate(layout.batches):
            queries, keys = batch.gathered(query, batch.queries, groups), batch.gathered(key, batch.keys, groups)
            values = batch.gathered(value, batch.keys, groups)
            kept += [queries, keys, values]
            if rules.softcap is None:
                bias = layout.bias(number, rules, query.dtype, heads, groups)
                scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=rules.scale)  # [G * B, *, Z + L]
            else:
                bias = layout.bias(number, rules, wide_dtype(query.dtype), heads, groups)
                scores = torch.bmm(queries, keys.transpose(1, 2)).to(bias.dtype)
                capped = torch.tanh(scores.mul_(rules.scale / rules.softcap))
                scores = torch.add(bias, capped, alpha=rules.softcap)
                kept.append(capped)
            kept.append(scores.softmax(-1).to(query.dtype))
            attended = torch.bmm(kept[-1], values)
            output.index_copy_(1, batch.written, batch.scattered(attended, heads, groups))
        ctx.save_for_backward(*kept)
        ctx.layout, ctx.rules, ctx.shape = layout, rules, (heads, groups, *query.shape[1:])
        return output.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        layout, rules, (heads, groups, places, width) = ctx.layout, ctx.rules, ctx.shape
        grad_output = grad_output.transpose(0, 1).contiguous()
        grad_query, dtype, wide = torch.empty_like(grad_output), grad_output.dtype, wide_dtype(grad_output.dtype)
        grad_key, grad_value = grad_output.new_zeros(2, groups, places, width, dtype=wide)
        remaining = iter(ctx.saved_tensors)
        for batch in layout.batches:
            queries, keys, values = next(remaining), next(remaining), next(remaining)
            capped, probabilities = None if rules.softcap is None else next(remaining), next(remaining)
            grad = batch.gathered(grad_output, batch.queries, groups)
            if batch.pads is not None:  # their output was dropped, so nothing comes back to them
                grad.view(groups, batch.size, -1, batch.length, width).masked_fill_(batch.pads, 0.0)
            slopes = torch.bmm(grad, values.transpose(1, 2))
            slopes = torch._softmax_backward_data(slopes, probabilities, -1, probabilities.dtype)
            if capped is not None:
                slopes = (slopes * (1 - capped.square())).to(dtype)
            of_queries = torch.bmm(slopes, keys).mul_(rules.scale)
            of_keys = torch.bmm(slopes.transpose(1, 2), queries).mul_(rules.scale)  # [G * B, Z + L, D]
            of_values = torch.bmm(probabilities.transpose(1, 2), grad)
            grad_query.index_copy_(1, batch.written, batch.scattered(of_queries, heads, groups))
            for whole, part in ((grad_key, of_keys), (grad_value, of_values)):
                whole.index_add_(1, batch.keys, part.view(groups, -1, width).to(wide))
        return grad_query, grad_key.to(dtype), grad_value.to(dtype), None, None
