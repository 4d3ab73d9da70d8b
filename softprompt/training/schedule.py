"""Which rows a step takes and at what rate, both as pure functions of the step: a resume needs no state for them."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch

# A prompt starts far from where it ends: 14 steps, one epoch of 108 rows, gave 34 % exact match where 100 gave 98 %.
MIN_DEFAULT_STEPS = 200


def total_steps(num_rows: int, rows_per_step: int, num_train_epochs: float | None, max_steps: int) -> int:
    """Optimizer steps of a run; the last, smaller step of an epoch counts.

    `max_steps` above 0 wins over the epochs. With neither, a run takes one epoch, and at least `MIN_DEFAULT_STEPS`.
    """
    steps_per_epoch = math.ceil(num_rows / rows_per_step)
    if max_steps > 0:
        return max_steps
    if num_train_epochs is None:
        return max(steps_per_epoch, MIN_DEFAULT_STEPS)
    return math.ceil(num_train_epochs * steps_per_epoch)


def rows_of_step(step: int, num_rows: int, rows_per_step: int, seed: int) -> list[int]:
    """Indices of the rows of step `step` (from 0): every epoch is a new seeded permutation."""
    steps_per_epoch = math.ceil(num_rows / rows_per_step)
    epoch, place = divmod(step, steps_per_epoch)
    return _order(num_rows, seed, epoch)[place * rows_per_step : (place + 1) * rows_per_step]


@lru_cache(maxsize=1)
def _order(num_rows: int, seed: int, epoch: int) -> list[int]:
    # a stream of its own for every (seed, epoch): seed + epoch would repeat seed 1's second epoch as seed 2's first
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(num_rows, generator=generator).tolist()


def rate_factor(kind: str, total: int, warmup_steps: float) -> Callable[[int], float]:
    """What the learning rate is multiplied by at a step (from 0), as transformers' schedules of the same names.

    Args:
        kind: linear, cosine, constant (which knows no warm-up) or constant_with_warmup.
        warmup_steps: below 1 a share of `total`.
    """
    warmup = math.ceil(warmup_steps * total) if warmup_steps < 1 else math.ceil(warmup_steps)

    def factor(step: int) -> float:
        if kind == "constant":
            return 1.0
        if step < warmup:
            return step / warmup
        done = (step - warmup) / max(1, total - warmup)
        if kind == "linear":
            return max(0.0, 1.0 - done)
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    return factor
