"""Runs that share their passes over the base against the same runs one after another, in turns.

usage: python benchmarks/speed/lanes.py [--shape SHAPE] [--lanes 8] [--steps 10] [--virtual-tokens 12 ...] [--rounds 5]

Without --shape, the base and the rows are those that ship with softprompt. Lanes have the given numbers of virtual
tokens by turns, and the same rows in every step, as the trials of a sweep have; with --seeds every lane has a seed of
its own, as in a study. A side is its runs from the first step to the last, with optimizer, log and prompt file, and no
evaluation. Before the timing, floating-point operations, calls of torch's operations and passes over the base are
counted once for a step of every lane. On a CPU, seconds are those that the process computed.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import home  # noqa: F401
import torch
from rows import choose_rows, write_rows
from shapes import DEFAULT_CACHE, DTYPES, SHAPES, make_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_MODEL, TrainConfig
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.training.lanes import run_lanes
from softprompt.training.run import load_inputs, prepare_run
from softprompt.training.trainer import Trainer

SIDES = ("alone", "lanes")


class Calls(TorchDispatchMode):
    """Counts the operations that run within it, those of the backward pass included."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        self.count += 1
        return function(*arguments, **(settings or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), help="default: the base that ships with softprompt")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32", help="default: %(default)s")
    parser.add_argument("--lanes", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--virtual-tokens", type=int, nargs="+", default=[12], metavar="P", help="default: 12")
    parser.add_argument("--seeds", action="store_true", help="every lane has rows of its own")
    parser.add_argument("--optim", choices=("soap", "adamw"), default="soap", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="of every lane (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--data", help="rows as for train.py --data (default: generated, as long as Alpaca's)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    silence_libraries()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(options, Path(folder))
        base, rows = load_inputs(config)
        rows = EncodedSplits(rows.encoder, rows.train)  # nothing is evaluated
        sides = sides_of(config, base, rows, options)
        print(f"{options.lanes} lanes, P={options.virtual_tokens}, {options.precision}, {options.threads} threads")
        for name, run in sides.items():
            print(f"{name}: {counted(base, run)} in a step of all lanes", flush=True)
        measure(sides, options)


def config_of(options: argparse.Namespace, folder: Path) -> TrainConfig:
    """The options that all runs have in common."""
    common = {"precision": options.precision, "prompt_file": str(folder / "p.safetensors"), "optim": options.optim}
    common |= {"eval_fraction": 0.0, "overwrite": True, "save_steps": 1_000_000}
    if options.shape is None:
        return TrainConfig(model=DEFAULT_MODEL, **common)
    some, all_rows = choose_rows(options.data, 8 * options.steps)
    model = make_checkpoint(options.shape, SHAPES[options.shape], options.precision, all_rows, options.cache)
    return TrainConfig(model=str(model), data=str(write_rows(some, folder / "rows.jsonl")), **common)


def sides_of(
    config: TrainConfig, base: Base, rows: EncodedSplits, options: argparse.Namespace
) -> dict[str, Callable[[int], object]]:
    """For each side the function that does so many steps of all runs."""

    def trainers(steps: int) -> list[Trainer]:
        found = []
        for place in range(options.lanes):
            count = options.virtual_tokens[place % len(options.virtual_tokens)]
            file = f"{config.prompt_file.removesuffix('.safetensors')}-{place}.safetensors"
            change = {"max_steps": steps, "virtual_tokens": count, "prompt_file": file}
            change |= {"seed": place} if options.seeds else {}
            found.append(prepare_run(dataclasses.replace(config, **change), base, rows))
        return found

    return {
        "alone": lambda steps: [each.run() for each in trainers(steps)],
        "lanes": lambda steps: run_lanes(trainers(steps)),
    }


def counted(base: Base, run: Callable[[int], object]) -> str:
    """What a step costs in operations, calls and passes: the difference of two steps and one."""
    passes: list[int] = []
    *_, last = base.model.base_model.children()  # BLOOM's and Llama's run once in a pass
    handle = last.register_forward_hook(lambda *_: passes.append(1))
    found = []
    for steps in (1, 2):
        passes.clear()
        with FlopCounterMode(display=False) as flops, Calls() as calls:
            run(steps)
        found.append((flops.get_total_flops(), calls.count, len(passes)))
    handle.remove()
    flop, call, one = (two - first for first, two in zip(*found, strict=True))
    return f"{flop / 1e9:.2f} GFLOPs, {call:,} calls, {one} passes"


def measure(sides: dict[str, Callable[[int], object]], options: argparse.Namespace) -> None:
    """Print the medians of both sides and of their ratio within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in [*sides][:: 1 if number % 2 else -1]:
            start = time.process_time()
            sides[name](options.steps)
            seconds[name].append((time.process_time() - start) / options.steps)
    for name, each in seconds.items():
        ratios = [one / alone for one, alone in zip(each, seconds["alone"], strict=True)]
        print(f"{name}: {1e3 * statistics.median(each):.0f} ms a step of all lanes, ", end="")
        print(f"{statistics.median(ratios):.2f} of alone ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
