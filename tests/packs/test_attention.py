"""The row-by-row attention against its definition in fp64, values and gradients, and FlexAttention's forward."""

import math

import pytest
import torch

from softprompt.packs import attention
from softprompt.packs.attention import Layout, Rules, attend, plain_attention
from softprompt.packs.flex_attention import flex_attend, problem

# bounds of packs: ordinary, no own places, one place each, nothing shared, one shared
# and several rows in a tile, beside others
BOUNDS = ([4, 9, 10, 17], [6], [3, 4, 5], [0, 5, 8], [1, 7], [2, 8, 13, 17, 20], [3, 7, 11, 15], [2, 32, 36, 40, 43])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
RULES = {
    "plain": Rules(0.35),
    "alibi": Rules(0.35, slopes=SLOPES),
    "window": Rules(0.35, window=3),
    "softcap": Rules(0.35, softcap=2.0),
    "all": Rules(0.35, slopes=SLOPES, window=4, softcap=1.5),
}


def layout_of(bounds):
    positions = list(range(bounds[0]))
    for start, end in zip(bounds, bounds[1:], strict=False):
        positions += range(bounds[0], bounds[0] + end - start)
    return Layout(bounds, torch.tensor(positions))


def random_heads(bounds, groups=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    shapes = [(heads, bounds[-1], 8) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def definition(query, key, value, layout, rules):
    """Place by place, from the words: the shared places, and the own row up to itself, within the window."""
    output = torch.zeros(query.shape[1], query.shape[0], query.shape[2], dtype=query.dtype)
    edges = [0, *layout.bounds]
    row_of = [sum(place >= edge for edge in edges[1:]) for place in range(query.shape[1])]
    for place in range(query.shape[1]):
        seen = []
        for other in range(place + 1):
            near = rules.window is None or layout.positions[place] - layout.positions[other] < rules.window
            if near and row_of[other] in (0, row_of[place]):
                seen.append(other)
        assert place in seen
        for head in range(query.shape[0]):
            group = head * key.shape[0] // query.shape[0]
            scores = key[group, seen] @ query[head, place] * rules.scale
            if rules.softcap:
                scores = rules.softcap * torch.tanh(scores / rules.softcap)
            if rules.slopes is not None:
                scores = scores + rules.slopes[head] * layout.positions[seen]  # BLOOM counts from the first key
            output[place, head] = scores.softmax(0) @ value[group, seen]
    return output


def gradients(function, heads, layout, rules):
    output = function(*heads, layout, rules)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=output.dtype)
    return [output, *torch.autograd.grad((output * weights).sum(), heads)]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("function", [plain_attention, attend])
def test_values_and_gradients_are_the_definitions(bounds, name, groups, function):
    heads, layout = random_heads(bounds, groups), layout_of(bounds)
    for ours, plain in zip(
        gradients(function, heads, layout, RULES[name]), gradients(definition, heads, layout, RULES[name]), strict=True
    ):
        assert (ours - plain).abs().max() < 1e-12  # fp64, sums of at most 17 terms


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("name", ["plain", "alibi", "window"])
def test_long_rows_that_keep_no_scores_are_the_same(bounds, name, monkeypatch):
    heads, rules = random_heads(bounds), RULES[name]
    expected = gradients(plain_attention, heads, layout_of(bounds), rules)
    monkeypatch.setattr(attention, "MAX_KEPT_SCORES", 0)
    monkeypatch.setattr(attention._TileByTile, "apply", None)  # so that it cannot be what is tested
    for ours, plain in zip(gradients(attend, heads, layout_of(bounds), rules), expected, strict=True):
        assert (ours - plain).abs().max() < 1e-12


@pytest.mark.parametrize("bounds", [each for each in BOUNDS if each[0] > 1], ids=str)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("given", [1, -1], ids=["one given", "all but one given"])
@pytest.mark.parametrize("function", [plain_attention, attend])
def test_given_keys_and_values_are_seen_and_ask_nothing(bounds, name, given, function):
    """The other places get what they get from a whole pack, and so do the gradients that come from them."""
    given %= bounds[0]
    query, key, value = heads = random_heads(bounds)
    whole = definition(*heads, layout_of(bounds), RULES[name])[given:]
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(4), dtype=whole.dtype)
    wanted = [whole, *torch.autograd.grad((whole * weights).sum(), heads)]
    layout = Layout(bounds, layout_of(bounds).positions, given)
    asking = query[:, given:].detach().requires_grad_()
    ours = function(asking, key, value, layout, RULES[name])
    got = [ours, *torch.autograd.grad((ours * weights).sum(), [asking, key, value])]
    assert wanted[1][:, :given].abs().max() == 0
    wanted[1] = wanted[1][:, given:]
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["plain", "alibi", "window"])
def test_long_rows_behind_given_places_are_the_same(name, monkeypatch):
    bounds, rules, (query, key, value) = [9, 20, 40], RULES[name], random_heads([9, 20, 40])
    layout = Layout(bounds, layout_of(bounds).positions, 8)
    expected = gradients(plain_attention, [query[:, 8:].detach().requires_grad_(), key, value], layout, rules)
    monkeypatch.setattr(attention, "MAX_KEPT_SCORES", 0)
    got = gradients(attend, [query[:, 8:].detach().requires_grad_(), key, value], layout, rules)
    for ours, plain in zip(got, expected, strict=True):
        assert (ours - plain).abs().max() < 1e-12


def test_a_wrong_layout_is_seen():
    """The comparison would notice traffic between rows: two rows taken for one differ by far more than rounding."""
    heads = random_heads([4, 9, 14])
    right, layout = layout_of([4, 9, 14]), layout_of([4, 9, 14])
    object.__setattr__(layout, "bounds", [4, 14])
    difference = attend(*heads, right, RULES["plain"]) - attend(*heads, layout, RULES["plain"])
    assert difference[9:].abs().max() > 1e-2
    assert difference[:4].abs().max() < 1e-12  # the shared places see no row in either


@pytest.mark.parametrize("name", ["plain", "alibi", "softcap"])
def test_half_precision_is_a_rounding_away(name):
    bounds = [5, 40, 90]
    heads, layout = random_heads(bounds, dtype=torch.float32), layout_of(bounds)
    exact = gradients(plain_attention, heads, layout, RULES[name])
    halves = [head.detach().bfloat16().requires_grad_() for head in heads]
    for ours, plain in zip(gradients(attend, halves, layout_of(bounds), RULES[name]), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        # 8 bits of mantissa, a dozen roundings one behind the other
        assert (ours.float() - plain).abs().max() < 12 * 2**-8 * plain.abs().max()


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_flex_attention_on_the_cpu_is_the_definition(bounds, name):
    """The mask and score functions that a CUDA kernel gets; FlexAttention has no backward pass on the CPU."""
    heads, layout = [h.detach() for h in random_heads(bounds, dtype=torch.float32)], layout_of(bounds)
    ours, plain = (way(*heads, layout, RULES[name]) for way in (flex_attend, plain_attention))
    assert (ours - plain).abs().max() < 1e-5  # fp32


@pytest.mark.parametrize("name", RULES)
def test_flex_attention_takes_given_places(name):
    bounds = [4, 9, 10, 17]
    query, key, value = (h.detach() for h in random_heads(bounds, dtype=torch.float32))
    layout = Layout(bounds, layout_of(bounds).positions, 3)
    ours, plain = (way(query[:, 3:], key, value, layout, RULES[name]) for way in (flex_attend, plain_attention))
    assert (ours - plain).abs().max() < 1e-5  # fp32


def test_a_kernel_that_fails_or_is_wrong_is_not_used(monkeypatch):
    device = (torch.device("cpu"), torch.float32, 4, 2, 16)
    assert problem.__wrapped__(*device) is not None  # no backward pass on the CPU
    monkeypatch.setattr("softprompt.packs.flex_attention.flex_attend", plain_attention)
    assert problem.__wrapped__(*device) is problem.__wrapped__(*device, 1) is None
    monkeypatch.setattr("softprompt.packs.flex_attention.flex_attend", lambda *a: plain_attention(*a) * 1.1)
    assert "differ by" in problem.__wrapped__(*device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's kernels and their backward need CUDA")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flex_attention_on_cuda(name, dtype):
    bounds, rules = [5, 40, 41, 150], RULES[name]
    cuda = Rules(rules.scale, None if rules.slopes is None else rules.slopes.cuda(), rules.window, rules.softcap)
    generator = torch.Generator().manual_seed(3)
    heads = [torch.randn(n, 150, 16, generator=generator).cuda().to(dtype).requires_grad_() for n in (4, 2, 2)]
    layout = Layout(bounds, layout_of(bounds).positions.cuda())
    for ours, plain in zip(
        gradients(flex_attend, heads, layout, cuda), gradients(plain_attention, heads, layout, cuda), strict=True
    ):
        assert (ours - plain).abs().max() < 2e-2 * plain.abs().max()  # TF32 and bf16 products


def test_alibi_is_counted_from_the_query():
    bias = layout_of([300]).bias(0, 300, Rules(1.0, slopes=SLOPES), torch.float32, 4, 4)
    assert bias.shape == (4, 300, 300)
    assert (bias[:, 299, 299] == 0).all() and bias[0, 299, 0] == -299 * 0.5
    assert (bias[:, 0, 1:] == -math.inf).all()
