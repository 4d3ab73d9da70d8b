"""The attention of `attention.py` as one CUDA kernel: FlexAttention with a pack's layout as its mask.

Everything here except the compiled kernel also runs on the CPU, where the tests compare it with `plain_attention`. The
kernel itself is checked on the GPU at hand: `problem` runs a small pack through it before the first real one.
"""

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from softprompt.packs.attention import Layout, Rules, plain_attention

# The allowed error, relative to the largest output or gradient. Half precisions keep 8 or 11 bits, and a kernel may
# multiply fp32 as TF32.
TOLERANCE = 2e-2


def flex_attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Compute what `plain_attention` computes, with its shapes."""
    kernel = _compiled() if query.is_cuda else flex_attention
    settings = {"score_mod": score_function(layout, rules), "block_mask": block_mask(layout, rules)}
    output = kernel(query[None], key[None], value[None], scale=rules.scale, enable_gqa=True, **settings)
    return output[0].transpose(0, 1)


def block_mask(layout: Layout, rules: Rules) -> BlockMask:
    """The mask of a pack, which says which places see each other; made once for all layers with the same window."""
    name = ("block mask", rules.window)
    if name not in layout.masks:
        rows, positions, window, given = layout.rows, layout.positions, rules.window, layout.given

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query = query + given
            seen = (query >= key) & ((rows[key] == 0) | (rows[key] == rows[query]))
            return seen if window is None else seen & (positions[query] - positions[key] < window)

        places = len(positions)
        layout.masks[name] = create_block_mask(visible, None, None, places - given, places, device=positions.device)
    return layout.masks[name]


def score_function(layout: Layout, rules: Rules):
    """Make the function that turns scale x (query . key) into the score: first the soft cap, then ALiBi.

    ALiBi counts from the query, as `Layout._bias` in `attention.py` explains.
    """
    positions, slopes, softcap, given = layout.positions, rules.slopes, rules.softcap, layout.given

    def score(product: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            product = softcap * torch.tanh(product / softcap)
        if slopes is not None:
            product = product - slopes[head] * (positions[query + given] - positions[key])
        return product

    return score


@functools.cache
def problem(
    device: torch.device, dtype: torch.dtype, heads: int, groups: int, width: int, given: int = 0
) -> str | None:
    """The reason why FlexAttention cannot be used for such heads on this device, or None if it can.

    A pack of three rows is run forward and backward and compared with `plain_attention`. An exception of the kernel and
    a result that differs by more than `TOLERANCE` both count as a reason; neither is raised.

    Args:
        heads: the number of query heads.
        groups: the number of key heads.
        width: the width of a head.
        given: how many places have no query, fewer than 5.
    """
    bounds = [5, 40, 41, 150]
    positions = [*range(5), *range(5, 40), 5, *range(5, 114)]
    layout = Layout(bounds, torch.tensor(positions, device=device), given)
    rules = Rules(width**-0.5, slopes=torch.linspace(0.1, 0.5, heads, device=device))
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, bounds[-1] - given, width), *[(groups, bounds[-1], width)] * 2]
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
    """FlexAttention, compiled for packs of any length."""
    return torch.compile(flex_attention, dynamic=True)
