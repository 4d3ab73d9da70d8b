"""Lanes that share a pass against each lane alone: losses and gradients, for fronts and rows that differ.

In fp64 the tolerance is 1e-10, in fp32 1e-5, relative to the largest element. Some families narrow to fp32 by
themselves, whatever their weights are; on these fp32's tolerance counts.
"""

import pytest
import torch
from helpers.families import CONFIGS, make_family
from helpers.fronts import ALWAYS_FP32, draw_ids, front_of, make_rows, relative

from softprompt.engine import passes
from softprompt.engine.forward import lane_losses, pack_loss
from softprompt.engine.front import Front
from softprompt.engine.passes import lane_passes
from softprompt.packs import lanes as lanes_module
from softprompt.packs.attention import Layout, Rules, plain_attention
from softprompt.packs.batches import pack_rows
from softprompt.packs.lanes import LaneLayout, attend_lanes
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

# unequal P, ids around the prompt, and a lane with one virtual token
FRONTS = [(0, 4, 3), (3, 9, 0), (0, 1, 0), (0, 20, 0)]


def draw_rows(count, seed, longest=30):
    """Rows of unlike length, the last of which has no label."""
    lengths = torch.randint(2, longest, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = []
    for place, length in enumerate(lengths):
        ids = draw_ids(length, 100 * seed + place)
        rows.append(EncodedRow(ids, [IGNORE_INDEX] + ids[1:]))
    return [*rows, EncodedRow([5, 6, 7], [IGNORE_INDEX] * 3)]


def make_lanes(dtype, *, same_rows=False):
    """A front and rows for each lane."""
    fronts = [front_of(front, dtype) for front in FRONTS]
    if same_rows:
        return [(front, make_rows()) for front in fronts]
    return [(front, draw_rows(2 + place, seed=place)) for place, front in enumerate(fronts)]


def gradients_alone(base, lanes):
    """(loss, gradient) of every lane in a pack of its own."""
    found = []
    for front, rows in lanes:
        loss = pack_loss(base, front, pack_rows(rows, front_length=len(front)))
        found.append((loss, *torch.autograd.grad(loss, front.prompt)))
    return found


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("same_rows", [True, False], ids=["same rows", "other rows"])
def test_a_lane_gets_what_it_gets_alone(family, dtype, same_rows):
    base, lanes = make_family(family, dtype), make_lanes(dtype, same_rows=same_rows)
    alone = gradients_alone(base, lanes)
    packs = [(front, pack_rows(rows, front_length=len(front))) for front, rows in lanes]
    tolerance = 1e-5 if dtype == torch.float32 or family in ALWAYS_FP32 else 1e-10
    for recompute in (False, True):
        losses = lane_losses(base, packs, recompute=recompute)
        gradients = torch.autograd.grad(sum(losses), [front.prompt for front, _ in lanes])
        for loss, gradient, (wanted, slope) in zip(losses, gradients, alone, strict=True):
            assert loss.dtype == dtype and relative(loss, wanted) < tolerance
            assert relative(gradient, slope) < tolerance


@pytest.mark.parametrize("family", ["bloom", "llama", "gemma2"])
@pytest.mark.parametrize("longest", [0, 8])
def test_long_rows_attend_lane_by_lane_to_the_same_end(family, longest, monkeypatch):
    monkeypatch.setattr(lanes_module, "LONGEST_IN_BATCHES", longest)
    monkeypatch.setattr("softprompt.engine.forward.attend_lanes", None)  # so that it cannot be what is tested
    base, lanes = make_family(family, torch.float64), make_lanes(torch.float64)
    packs = [(front, pack_rows(rows, front_length=len(front))) for front, rows in lanes]
    losses = lane_losses(base, packs)
    gradients = torch.autograd.grad(sum(losses), [front.prompt for front, _ in lanes])
    for gradient, (_, slope) in zip(gradients, gradients_alone(base, lanes), strict=True):
        assert relative(gradient, slope) < (1e-5 if family in ALWAYS_FP32 else 1e-10)


@pytest.mark.parametrize("family", ["bloom", "qwen2", "gpt2"])
@pytest.mark.parametrize("most", [1, 40, 100, 4096])
def test_passes_add_up_to_the_gradient_of_every_lane(family, most, monkeypatch):
    base, lanes = make_family(family, torch.float64), make_lanes(torch.float64)
    monkeypatch.setitem(passes.LANE_TOKENS, "cpu", 100)
    sums, count = [0.0] * len(lanes), 0
    for losses in lane_passes(base, lanes, max_tokens=most):
        torch.autograd.backward([loss for _, loss in losses])
        count += 1
        for place, loss in losses:
            sums[place] += loss.item()
    tolerance = 1e-5 if family in ALWAYS_FP32 else 1e-10
    for (front, _), found, (loss, slope) in zip(lanes, sums, gradients_alone(base, lanes), strict=True):
        assert found == pytest.approx(loss.item(), rel=tolerance)
        assert relative(front.prompt.grad, slope) < tolerance
    packs = sum(len(rows) - 1 for _, rows in lanes)
    assert count == packs if most == 1 else count < packs


def test_a_lane_that_is_not_finite_spoils_no_other():
    base, lanes = make_family("bloom"), make_lanes(torch.float32)
    wanted = gradients_alone(base, lanes)
    lanes[1] = (Front(lanes[1][0].before, torch.full_like(lanes[1][0].prompt, torch.nan).requires_grad_()), lanes[1][1])
    (losses,) = lane_passes(base, lanes, max_tokens=4096)
    torch.autograd.backward([loss for _, loss in losses])
    for place, ((front, _), (_, slope)) in enumerate(zip(lanes, wanted, strict=True)):
        if place == 1:
            assert front.prompt.grad.isnan().all()
        else:
            assert relative(front.prompt.grad, slope) < 1e-5


def test_lanes_share_the_calls_of_the_base():
    """Eight lanes of short rows go through the layers once, not eight times."""
    base, calls = make_family("llama"), []
    lanes = [(front_of((0, 4, 0)), make_rows()) for _ in range(8)]
    base.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    list(lane_passes(base, lanes, max_tokens=4096))
    assert len(calls) == 1


# attention alone

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
RULES = {
    "plain": Rules(0.35),
    "alibi": Rules(0.35, slopes=SLOPES),
    "window": Rules(0.35, window=3),
    "softcap": Rules(0.35, softcap=2.0),
    "all": Rules(0.35, slopes=SLOPES, window=4, softcap=1.5),
}
# bounds of lanes: like and unlike rows, nothing shared, no own places, one place each, pads in a window
LANES = ([[4, 9, 13], [4, 9, 13]], [[1, 6, 11, 15], [9, 14, 18], [0, 4]], [[6], [3, 4, 5], [2, 12]], [[5, 25, 41]] * 3)


def layout_of(bounds):
    positions = list(range(bounds[0]))
    for start, end in zip(bounds, bounds[1:], strict=False):
        positions += range(bounds[0], bounds[0] + end - start)
    return Layout(bounds, torch.tensor(positions))


@pytest.mark.parametrize("bounds", LANES, ids=str)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_in_batches_is_the_definition_of_every_lane(bounds, name, groups):
    layout, rules = LaneLayout([layout_of(each) for each in bounds]), RULES[name]
    generator = torch.Generator().manual_seed(3)
    places = layout.edges[-1]
    shapes = [(heads, places, 8) for heads in (4, groups, groups)]
    heads = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    weights = torch.randn(places, 4, 8, generator=generator, dtype=torch.float64)

    def lane_by_lane(query, key, value):
        parts = zip(layout.layouts, layout.edges, layout.edges[1:], strict=False)
        return torch.cat(
            [plain_attention(*(x[:, a:b] for x in (query, key, value)), each, rules) for each, a, b in parts]
        )

    outputs = [attend_lanes(*heads, layout, rules), lane_by_lane(*heads)]
    ours, plain = ([o, *torch.autograd.grad((o * weights).sum(), heads)] for o in outputs)
    for one, other in zip(ours, plain, strict=True):
        assert (one - other).abs().max() < 1e-12  # fp64, sums of at most 41 terms


def test_rows_that_are_alike_share_a_batch_and_others_do_not():
    layout = LaneLayout([layout_of([4, 44, 84]), layout_of([9, 49]), layout_of([2, 7])])
    sizes = sorted((batch.length, batch.front_length, batch.size) for batch in layout.batches)
    assert sizes[-1] == (40, 9, 3) and sum(size for *_, size in sizes) == 7
