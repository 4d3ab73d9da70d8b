"""What keeps the seeds of softprompt's default apart: the order of the rows, roundings, and the rows that report.

usage: python benchmarks/quality/seed_spread.py [--tasks TASK ...] [--optim soap] [--runs 5] [--threads 1]

A seed changes the order of the rows and nothing else. Roundings are stood in for by runs of one seed whose first
prompts differ by a millionth. The report rows are a sample: runs that are equally good on all rows of a task are right
on other ones of them, and differ on the sample by what the last column says.
"""

import argparse
from collections.abc import Sequence
from statistics import mean, stdev

import paths  # noqa: F401
import torch
from study_peers import summed_loss
from study_plan import OUR_SEEDS, STEPS
from study_runs import Run, Splits, loaded, train_ours
from study_tasks import REPORTED, task
from torch import Tensor, nn

from softprompt.base.loading import Base
from softprompt.config.commands import OPTIMS, TrainConfig
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoding import EncodedRow


def main(argv: Sequence[str] | None = None) -> None:
    """A line for each task of the embedded BLOOM."""
    options = parse(argv)
    silence_libraries()
    torch.set_num_threads(options.threads)
    base, _ = loaded("bloom", 1.0, None)
    print(f"{'task':8} {'loss':>7} {'max - min':>10} | standard deviation over: seeds, roundings; of the sample")
    for name in options.tasks:
        splits = Splits.of(task(name), base)
        seeds = range(OUR_SEEDS[0], OUR_SEEDS[0] + options.runs)
        by_seed = [losses_of(name, seed, base, splits, options.optim) for seed in seeds]
        rounded = [losses_of(name, OUR_SEEDS[0], base, splits, options.optim, draw) for draw in seeds]
        supervised = sum(row.num_supervised for row in splits.report)
        totals, roundings = (per_token(runs, supervised) for runs in (by_seed, rounded))
        loss = mean(totals)
        parts = [stdev(totals), stdev(roundings) * loss / mean(roundings), sample_deviation(by_seed, supervised)]
        shown = "  ".join(f"{part / loss:6.1%}" for part in parts)
        print(f"{name:8} {loss:7.4f} {(max(totals) - min(totals)) / loss:10.1%} | {shown}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = REPORTED["bloom"]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, help="default: all")
    parser.add_argument("--optim", choices=OPTIMS, default=TrainConfig.optim, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="of each sort (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args(argv)
    if options.runs < 2:
        parser.error(f"--runs {options.runs}: a deviation needs at least 2")
    return options


def losses_of(name: str, seed: int, base: Base, splits: Splits, optim: str, draw: int | None = None) -> Tensor:
    """Summed losses of the report rows, fp64 `[rows]`, after a default run; `draw` seeds a tiny change to its start."""
    run = Run("bloom", "bloom", name, "softprompt", None, seed, STEPS["bloom"])
    model, _, _ = train_ours(run, base, splits, optim=optim, disturbance=draw)
    return row_losses(model, splits.report, base.pad_token_id)


@torch.no_grad()
def row_losses(model: nn.Module, rows: Sequence[EncodedRow], pad_token_id: int) -> Tensor:
    """Each row's loss, summed over its supervised tokens."""
    model.eval()
    return torch.stack([summed_loss(model, [row], pad_token_id).double() for row in rows])


def per_token(runs: Sequence[Tensor], supervised: int) -> list[float]:
    """The reported loss of every run."""
    return [losses.sum().item() / supervised for losses in runs]


def sample_deviation(runs: Sequence[Tensor], supervised: int) -> float:
    """Standard deviation of the reported loss between runs of one quality, from how rows and runs interact.

    What is left of a row's loss without the row's mean over runs and the run's mean over rows is taken as noise that
    is independent from row to row.
    """
    losses = torch.stack(list(runs))
    noise = losses - losses.mean(0) - losses.mean(1, keepdim=True) + losses.mean()
    freedom = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    return (noise.square().sum() / freedom * losses.shape[1]).sqrt().item() / supervised


if __name__ == "__main__":
    main()
