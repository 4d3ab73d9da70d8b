"""Seconds of a step on the study's tasks: `train.py` against PEFT + Trainer, in turns, for loss against seconds.

usage: python benchmarks/quality/study_seconds.py [--models bloom smollm2] [--rounds 3] [--steps 20] [--threads 2]

PEFT's prompt tuning runs with one row and with eight rows in a forward pass, and the faster stands for it. The result,
`benchmarks/results/quality-seconds.json`, is what `study.py --report` lays the study's losses over; run this on a quiet
machine.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from paths import ROOT
from rows import encoded
from shapes import DEFAULT_CACHE
from sides import Place, Work, run_peer, run_softprompt
from study_runs import MAX_LENGTH, VIRTUAL_TOKENS, loaded
from study_smollm2 import NAME
from study_tasks import REPORTED, task

from softprompt.system.files import write_atomic
from softprompt.system.process import silence_libraries

ROWS_PER_STEP = 8
WARM_UP_STEPS = 3
RESULT = ROOT / "benchmarks" / "results" / "quality-seconds.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Time every reported task of the models and keep what is known of other models."""
    options = parse(argv)
    silence_libraries()
    known = json.loads(options.result.read_text("utf-8")) if options.result.exists() else {}
    place = Place("cpu", options.threads, DEFAULT_CACHE)
    for model in options.models:
        base, folder = loaded(model, 1.0, str(options.smollm2) if model == "smollm2" else None)
        for name in REPORTED[model]:
            rows = task(name).train[: (WARM_UP_STEPS + options.steps) * ROWS_PER_STEP]
            work = Work(rows, encoded(rows, base.tokenizer, MAX_LENGTH), WARM_UP_STEPS, ROWS_PER_STEP, MAX_LENGTH)
            sides = time_sides(Path(folder), work, options.rounds, place)
            known.setdefault(model, {})[name] = {"threads": options.threads, "step_seconds": sides}
            write_atomic(options.result, (json.dumps(known, indent=1) + "\n").encode())
            print(f"{model} {name}: {line(sides)}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=REPORTED, default=list(REPORTED), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="measured in a run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--smollm2", type=Path, default=DEFAULT_CACHE / NAME, help="made by study_smollm2.py")
    parser.add_argument("--result", type=Path, default=RESULT, help="default: %(default)s")
    return parser.parse_args(argv)


def time_sides(folder: Path, work: Work, rounds: int, place: Place) -> dict[str, list[float]]:
    """Mean seconds of a step, one figure for each round: softprompt, and PEFT by the rows of a forward pass."""
    sides: dict[str, list[float]] = {"softprompt": [], "batch 1": [], "batch 8": []}
    for _ in range(rounds):
        sides["softprompt"].append(run_softprompt(folder, work, VIRTUAL_TOKENS, "fp32", place).seconds / work.steps)
        for batch in (1, 8):
            words = ["--virtual-tokens", str(VIRTUAL_TOKENS), "--batch", str(batch)]
            sides[f"batch {batch}"].append(run_peer(folder, work, words, place).seconds / work.steps)
    return sides


def line(sides: dict[str, list[float]]) -> str:
    """The medians of a task in milliseconds."""
    return ", ".join(f"{side} {1000 * median(seconds):.0f} ms" for side, seconds in sides.items())


if __name__ == "__main__":
    main()
