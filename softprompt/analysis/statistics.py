"""Figures from lists: resampled intervals, exact match, macro-F1. Pure functions, no model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Estimate:
    """A figure and the 95 % interval around it."""

    value: float
    low: float
    high: float


def bootstrap_ratios(
    numerators: Sequence[float], denominators: Sequence[float], *, samples: int, seed: int
) -> list[float]:
    """Sum of numerators over sum of denominators, on `samples` draws of as many rows with replacement (Efron, 1979).

    Lists of the same length meet the same draws under the same seed, so their results can be compared draw by draw.
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
    """The ratio of the sums, between the 2.5th and the 97.5th percentile of its resamples."""
    ratios = torch.tensor(bootstrap_ratios(numerators, denominators, samples=samples, seed=seed), dtype=torch.float64)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(math.fsum(numerators) / math.fsum(denominators), low, high)


def perplexity(loss: Estimate) -> Estimate:
    """exp of a loss per token; it grows with the loss, so the interval's ends stay its ends."""
    return Estimate(*(math.exp(end) if end < 700 else math.inf for end in (loss.value, loss.low, loss.high)))


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Whether each answer is its reference, blanks around both aside."""
    return [answer.strip() == wanted.strip() for answer, wanted in zip(answers, references, strict=True)]


def macro_f1(predicted: Sequence[str], actual: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over `labels` of each one's F1, 2 TP / (2 TP + FP + FN).

    A label that is neither predicted nor actual counts as 0, so that the mean is over as many labels for every model.
    """
    scores = []
    for label in labels:
        both = sum(p == a == label for p, a in zip(predicted, actual, strict=True))
        either = sum(p == label for p in predicted) + sum(a == label for a in actual)  # 2 TP + FP + FN
        scores.append(2 * both / either if either else 0.0)
    return sum(scores) / len(scores)
