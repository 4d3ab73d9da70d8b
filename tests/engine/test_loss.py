"""The head's loss without whole logits, against torch's cross-entropy on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from softprompt.engine import loss
from softprompt.engine.loss import Head, head_cross_entropy

N, V, H = 37, 50, 16


def parts(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((N, H), (V, H), (V,)))
    return hidden.requires_grad_(), weight, bias, torch.randint(V, (N,), generator=generator)


def whole(hidden, head, targets):
    """The definition."""
    logits = F.linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.25}, {"softcap": 3.0}, {"scale": 0.5, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradient_are_those_of_whole_logits(chunk, settings, with_bias, monkeypatch):
    monkeypatch.setattr(loss, "MIN_CHUNK", chunk)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(loss, "FINE_LOGITS", 3 * V)
    hidden, weight, bias, targets = parts()
    head = Head(weight, bias if with_bias else None, **settings)
    ours, theirs = head_cross_entropy(hidden, head, targets), whole(hidden, head, targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (mine,), (plain,) = (torch.autograd.grad(3 * side, hidden) for side in (ours, theirs))
    assert (mine - plain).abs().max() < 1e-12 * plain.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_fp32(dtype):
    hidden, weight, bias, targets = parts(dtype)
    head = Head(weight, bias)
    ours = head_cross_entropy(hidden, head, targets)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(whole(hidden, head, targets).item(), rel=1e-6)
    (mine,), (plain,) = (torch.autograd.grad(side, hidden) for side in (ours, whole(hidden, head, targets)))
    # the gradient of a logit is rounded to the dtype on both sides, in another order
    assert (mine - plain).abs().max().item() < 2 * torch.finfo(dtype).eps * plain.abs().max().item()


def test_logits_are_never_whole(monkeypatch):
    monkeypatch.setattr(loss, "MIN_CHUNK", 8)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 1)
    sizes, linear = [], F.linear

    def watched(*arguments):
        sizes.append(len(arguments[0]))
        return linear(*arguments)

    monkeypatch.setattr(loss.F, "linear", watched)
    hidden, weight, bias, targets = parts()
    head_cross_entropy(hidden, Head(weight, bias), targets).backward()
    assert sizes == [8, 8, 8, 8, 5]  # 37 in as few chunks as 8 allow


def test_nothing_is_kept_without_gradient():
    hidden, weight, bias, targets = parts()
    with torch.no_grad():
        assert head_cross_entropy(hidden, Head(weight, bias), targets).grad_fn is None
