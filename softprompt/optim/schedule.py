"""Which rows a step takes and at what rate: both are functions of the step, so a resume needs no state for them."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# One epoch of few rows is too short: 14 steps, an epoch of 108 rows, gave 34 % exact match where 100 steps gave 98 %.
MIN_DEFAULT_STEPS = 200


def total_steps(num_rows: int, rows_per_step: int, num_train_epochs: float | None, max_steps: int) -> int:
    """Return the number of steps of a run, counting the smaller last step of each epoch.

    A `max_steps` above 0 takes precedence over the epochs. If neither is given, a run takes the steps of one epoch, but
    at least `MIN_DEFAULT_STEPS`.
    """
    steps_per_epoch = math.ceil(num_rows / rows_per_step)
    if max_steps > 0:
        return max_steps
    if num_train_epochs is None:
        return max(steps_per_epoch, MIN_DEFAULT_STEPS)
    return math.ceil(num_train_epochs * steps_per_epoch)


def rows_of_step(step: int, num_rows: int, rows_per_step: int, seed: int) -> list[int]:
    """Return the indices of the rows of `step`, counted from 0; every epoch is a new seeded permutation."""
    steps_per_epoch = math.ceil(num_rows / rows_per_step)
    epoch, place = divmod(step, steps_per_epoch)
    return _order(num_rows, seed, epoch)[place * rows_per_step : (place + 1) * rows_per_step].tolist()


@lru_cache(maxsize=1)
def _order(num_rows: int, seed: int, epoch: int) -> Tensor:
    # Every (seed, epoch) has a random stream of its own. With seed + epoch, the second epoch of seed 1 would be the
    # first of seed 2.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(num_rows, generator=generator)


def rate_factor(kind: str, total: int, warmup_steps: float) -> Callable[[int], float]:
    """Return the function from a step, counted from 0, to the factor of the learning rate.

    It equals transformers' schedule of the same name.

    Args:
        kind: linear, cosine, constant (without warm-up) or constant_with_warmup.
        total: number of steps of the run.
        warmup_steps: number of steps of linear warm-up; below 1, a share of `total`.
    """
    warmup = math.ceil(warmup_steps * total) if warmup_steps < 1 else math.ceil(warmup_steps)

    def factor(step: int) -> float:
        if kind == "constant":
            return 1.0
        if step < warmup:
            return step / warmup
        # the share of the steps after the warm-up that is done
        done = (step - warmup) / max(1, total - warmup)
        if kind == "linear":
            return max(0.0, 1.0 - done)
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    return factor
