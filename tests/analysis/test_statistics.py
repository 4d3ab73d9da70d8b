"""Intervals against their definition and against theory, match and F1 against counting by hand."""

import math

import pytest
import torch

from softprompt.analysis.statistics import (
    Estimate,
    bootstrap_interval,
    bootstrap_ratios,
    exact_match,
    macro_f1,
    perplexity,
)


def draw(count, seed=0):
    """Loss sums and token counts of rows of very different length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (count,), generator=generator)
    losses = tokens * torch.rand(count, generator=generator, dtype=torch.float64) * 3
    return losses.tolist(), tokens.tolist()


def test_the_figure_is_a_ratio_of_sums():
    losses, tokens = draw(50)
    assert bootstrap_interval(losses, tokens, samples=5, seed=0).value == pytest.approx(sum(losses) / sum(tokens))


def test_every_resample_is_a_ratio_of_sums_over_as_many_rows():
    """Of rows 1/1 and 0/9, both drawn twice or one of each: 1, 0 and 1/10, never the mean of ratios, 1/2."""
    ratios = bootstrap_ratios([1, 0], [1, 9], samples=400, seed=3)
    shares = [ratios.count(value) / 400 for value in (0.0, 0.1, 1.0)]
    assert sum(shares) == 1
    # binomial with n = 400: five standard deviations are 0.11 and 0.13
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.12)


def test_the_interval_is_the_middle_95_percent_of_the_resamples():
    losses, tokens = draw(30)
    ratios = sorted(bootstrap_ratios(losses, tokens, samples=201, seed=5))
    found = bootstrap_interval(losses, tokens, samples=201, seed=5)
    assert found.low == pytest.approx(ratios[5]) and found.high == pytest.approx(ratios[195])  # 0.025 x 200 = 5
    assert found.low < found.value < found.high


def test_the_interval_of_a_mean_is_what_theory_says():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = bootstrap_interval(values.tolist(), [1] * 400, samples=2000, seed=2)
    half = 1.96 * values.std().item() / math.sqrt(400)
    # a percentile of 2,000 draws is known to about 4 % of the half width
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    assert found.value - found.low == pytest.approx(half, rel=0.15)


def test_sides_meet_the_same_resamples():
    losses, tokens = draw(40)
    first = bootstrap_ratios(losses, tokens, samples=50, seed=7)
    double = bootstrap_ratios([2 * loss for loss in losses], tokens, samples=50, seed=7)
    assert double == pytest.approx([2 * ratio for ratio in first])
    assert first != bootstrap_ratios(losses, tokens, samples=50, seed=8)
    assert len(set(first)) == 50


def test_one_row_has_no_spread():
    assert bootstrap_interval([3.0], [4], samples=10, seed=0) == Estimate(0.75, 0.75, 0.75)


def test_perplexity():
    found = perplexity(Estimate(1.0, 0.0, 2.0))
    assert found == Estimate(math.e, 1.0, math.exp(2))
    assert perplexity(Estimate(800.0, 2.0, 900.0)) == Estimate(math.inf, math.exp(2), math.inf)


def test_exact_match():
    assert exact_match([" a b\n", "a  b", "A", ""], ["a b", "a b", "a", " "]) == [True, False, False, True]


def by_counting(predicted, actual, labels):
    """Macro-F1 from precision and recall."""
    scores = []
    for label in labels:
        true = [a for p, a in zip(predicted, actual, strict=True) if p == label and a == label]
        precision = len(true) / predicted.count(label) if label in predicted else 0
        recall = len(true) / actual.count(label) if label in actual else 0
        scores.append(2 * precision * recall / (precision + recall) if true else 0)
    return sum(scores) / len(labels)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1(seed):
    labels = ["a", "b", "c", "never"]
    generator = torch.Generator().manual_seed(seed)
    predicted, actual = ([labels[i] for i in torch.randint(3, (20,), generator=generator)] for _ in range(2))
    assert 0 < macro_f1(predicted, actual, labels) < 0.75  # the absent label is a quarter of the mean, and 0
    assert macro_f1(predicted, actual, labels) == pytest.approx(by_counting(predicted, actual, labels))


def test_macro_f1_by_hand():
    """a: 1 of 2 found, 1 of 1 right: 2/3; b: 1 of 1 found, 1 of 2 right: 2/3; c: absent."""
    assert macro_f1(["a", "b", "b"], ["a", "a", "b"], ["a", "b"]) == pytest.approx(2 / 3)
    assert macro_f1(["a", "b", "b"], ["a", "a", "b"], ["a", "b", "c"]) == pytest.approx(4 / 9)
    assert macro_f1(["a", "b"], ["a", "b"], ["b", "a"]) == 1
