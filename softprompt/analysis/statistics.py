"""Figures from lists of results: resampled intervals, exact match, macro-F1. These are pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_ratios(
    numerators: Sequence[float], denominators: Sequence[float], *, samples: int, seed: int
) -> list[float]:
    """Return the sum of numerators over the sum of denominators in each of `samples` resamples (Efron, 1979).

    A resample draws as many rows as there are, with replacement. Lists of the same length get the same resamples under
    the same seed, so their results can be compared resample by resample.
    """
    pairs = torch.tensor([list(numerators), list(denominators)], dtype=torch.float64)  # [2, rows]
    generator = torch.Generator().manual_seed(seed)
    count = pairs.shape[1]
    sums = [pairs[:, torch.randint(count, (count,), generator=generator)].sum(1) for _ in range(samples)]
    totals = torch.stack(sums)  # [samples, 2]
    return (totals[:, 0] / totals[:, 1]).tolist()


def bootstrap_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, samples: int, seed: int
) -> Estimate:
    """Return the ratio of the sums, with the 2.5th and the 97.5th percentile of its resamples as the interval."""
    ratios = torch.tensor(bootstrap_ratios(numerators, denominators, samples=samples, seed=seed), dtype=torch.float64)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(math.fsum(numerators) / math.fsum(denominators), low, high)


def perplexity(loss: Estimate) -> Estimate:
    """Return exp of a loss per token. It grows with the loss, so the ends of the interval stay its ends."""
    return Estimate(*(math.exp(end) if end < 700 else math.inf for end in (loss.value, loss.low, loss.high)))


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Return whether each answer equals its reference, ignoring blanks around both."""
    return [answer.strip() == wanted.strip() for answer, wanted in zip(answers, references, strict=True)]


def macro_f1(predicted: Sequence[str], actual: Sequence[str], labels: Sequence[str]) -> float:
    """Return the mean over `labels` of the F1 of each, which is 2 TP / (2 TP + FP + FN).

    A label that is neither predicted nor actual counts as 0, so that the mean is over the same labels for every model.
    """
    scores = []
    for label in labels:
        both = sum(p == a == label for p, a in zip(predicted, actual, strict=True))
        either = sum(p == label for p in predicted) + sum(a == label for a in actual)  # 2 TP + FP + FN
        scores.append(2 * both / either if either else 0.0)
    return sum(scores) / len(scores)
