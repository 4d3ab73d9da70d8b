"""The attention of `attention.py` as one CUDA kernel: FlexAttention with a pack's layout as its mask.

Everything here but the compiled kernel also runs on the CPU, where the tests hold it to `plain_attention`. Whether the
kernel itself is right on the card at hand, a small pack tells before the first one that counts (`problem`).
"""

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from softprompt.engine.attention import Layout, Rules, plain_attention

# of the largest output or gradient: half precisions keep 8 or 11 bits, and a kernel may multiply fp32 as TF32
TOLERANCE = 2e-2


def flex_attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Query `[Q, S, D]`, key and value `[G, S, D]` -> `[S, Q, D]`, as `plain_attention`."""
    kernel = _compiled() if query.is_cuda else flex_attention
    settings = {"score_mod": score_function(layout, rules), "block_mask": block_mask(layout, rules)}
    output = kernel(query[None], key[None], value[None], scale=rules.scale, enable_gqa=True, **settings)
    return output[0].transpose(0, 1)


def block_mask(layout: Layout, rules: Rules) -> BlockMask:
    """Who sees whom, made once per pack for all layers with the same window."""
    name = ("block mask", rules.window)
    if name not in layout.masks:
        rows, positions, window = layout.rows, layout.positions, rules.window

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = (query >= key) & ((rows[key] == 0) | (rows[key] == rows[query]))
            return seen if window is None else seen & (positions[query] - positions[key] < window)

        places = len(positions)
        layout.masks[name] = create_block_mask(visible, None, None, places, places, device=positions.device)
    return layout.masks[name]


def score_function(layout: Layout, rules: Rules):
    """From query . key, scaled, to the score: the soft cap, then ALiBi counted from the query."""
    positions, slopes, softcap = layout.positions, rules.slopes, rules.softcap

    def score(product: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            product = softcap * torch.tanh(product / softcap)
        if slopes is not None:
            product = product - slopes[head] * (positions[query] - positions[key])
        return product

    return score


@functools.cache
def problem(device: torch.device, dtype: torch.dtype, heads: int, groups: int, width: int) -> str | None:
    """Why FlexAttention cannot be used for such heads on this device; None where it can.

    Runs a pack of three rows forward and backward and compares it with `plain_attention`.
    """
    bounds = [5, 40, 41, 150]
    positions = [*range(5), *range(5, 40), 5, *range(5, 114)]
    layout = Layout(bounds, torch.tensor(positions, device=device))
    rules = Rules(width**-0.5, slopes=torch.linspace(0.1, 0.5, heads, device=device))
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, bounds[-1], width) for count in (heads, groups, groups)]
    parts = [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]
    try:
        ours, plain = ([o, *torch.autograd.grad(o.float().sum(), parts)] for o in _both_ways(parts, layout, rules))
    except (RuntimeError, ImportError, NotImplementedError, AssertionError) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, plain, strict=True))
    return None if worst < TOLERANCE else f"its results differ by {worst:.1%}"


def _both_ways(parts: list[Tensor], layout: Layout, rules: Rules) -> list[Tensor]:
    query, key, value = parts
    return [flex_attend(query, key, value, layout, rules), plain_attention(query, key, value, layout, rules)]


@functools.cache
def _compiled():
    """The kernel for packs of any length."""
    return torch.compile(flex_attention, dynamic=True)
