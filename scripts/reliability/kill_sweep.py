#!/usr/bin/env python
"""Kill runs of `train` and `generate --instructions` by SIGKILL, resume them, and compare with an uninterrupted run.

Usage: python scripts/reliability/kill_sweep.py --kills 100 --seed 0 --recipe fp32 bf16 generate

Half of the kills come in front of a call of os.fsync, os.replace, os.rename or os.unlink, spread over all calls of the
run; the other half at random instants. The exit status is 1 if a resumed run differs.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from runs import PROMPT, records, start  # noqa: E402

STEPS = "--max-steps 4 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --save-steps 2 --eval-steps 2"
TRAIN = f"train --device cpu --prompt-file {PROMPT} {STEPS} --data rows.jsonl --eval-data held.jsonl --logging-steps 1"
RECIPES = {
    "fp32": "--precision fp32",
    "bf16": "--precision bf16",
    "adamw": "--precision fp32 --optim adamw",
    "early-stopping": "--precision fp32 --early-stopping-patience 1 --learning-rate 0.5 --eval-steps 1",
    "init-answers": "--precision fp32 --init answers --virtual-tokens 4",
    "save-steps-1": "--precision fp32 --save-steps 1",
    "checkpointing": "--precision fp32 --gradient-checkpointing",
    "test-rows": "--precision fp32 --test-data test.jsonl",
    "accumulation": "--precision fp32 --gradient-accumulation-steps 3",
    "random-init": "--precision fp32 --init random --virtual-tokens 3 --lr-scheduler-type cosine",
}
ANSWERS = f"generate --device cpu --prompt-file {PROMPT} --instructions held.jsonl --output-file answers.jsonl"
ANSWERS += " --max-new-tokens 8 --seed 1 --per-device-eval-batch-size 2"
LIMIT_S = 300


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run left: the hash of its file, its metrics, its calls, and how long it took."""

    sha256: str
    metrics: list
    calls: int
    seconds: float


def main() -> int:
    args = parse()
    names = args.recipe or [*RECIPES, "generate"]
    random_of = random.Random(args.seed)
    counts: dict[str, Counter] = {name: Counter() for name in names}
    faults = []
    with tempfile.TemporaryDirectory(prefix="kill-sweep-") as folder:
        root = Path(folder)
        wholes = {name: uninterrupted(name, root / f"{name}-whole") for name in names}
        began = time.monotonic()
        for number in range(args.kills):
            if time.monotonic() - began > args.seconds:
                break
            name = names[number % len(names)]
            place = root / f"{name}-{number}"
            at_call = number // len(names) % 2 == 0
            moment = random_of.randint(1, wholes[name].calls) if at_call else random_of.uniform(0, wholes[name].seconds)
            what, fault = killed(name, place, moment, wholes[name])
            counts[name][what] += 1
            if fault:
                counts[name]["different"] += 1
                faults.append(f"{name}, killed at {moment}: {fault}")
            shutil.rmtree(place)
    columns = ("call", "instant", "ended before", "different")
    print(f"{'recipe':<16}{'calls':>8}" + "".join(f"{column:>14}" for column in columns))
    for name in names:
        row = "".join(f"{counts[name][column]:>14}" for column in columns)
        print(f"{name:<16}{wholes[name].calls:>8}{row}")
    print(*faults, sep="\n")
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=22, help="kills in all, by turns over the recipes")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no kill after this many seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--recipe", nargs="*", choices=[*RECIPES, "generate"], help="all by default")
    return parser.parse_args()


def words_of(name: str) -> list[str]:
    """The command of a recipe; of two equal flags the last counts."""
    return (ANSWERS if name == "generate" else f"{TRAIN} {RECIPES[name]}").split()


def prepare(name: str, place: Path) -> None:
    """Make the folder of a run with its rows, and with a prompt for `generate`."""
    place.mkdir()
    rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}."} for n in range(24)]
    for file, part in (("rows.jsonl", rows[:14]), ("held.jsonl", rows[14:20]), ("test.jsonl", rows[20:])):
        (place / file).write_text("".join(json.dumps(row) + "\n" for row in part))
    if name == "generate":
        words = [*f"{TRAIN} --precision fp32 --max-steps 1".split(), "--run-dir", "run-of-prompt"]
        source = place.parent / "prompt-for-generate.safetensors"
        if not source.exists():
            if start(words, place).wait(LIMIT_S):
                raise SystemExit((place / "log.txt").read_text())
            shutil.copy(place / PROMPT, source)
        shutil.copy(source, place / PROMPT)


def uninterrupted(name: str, place: Path) -> Whole:
    prepare(name, place)
    began = time.monotonic()
    status = start(words_of(name), place).wait(LIMIT_S)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{name} ended with {status}:\n{(place / 'log.txt').read_text()}")
    return Whole(*result(name, place), int((place / "count.txt").read_text()), seconds)


def result(name: str, place: Path) -> tuple[str, list]:
    """The hash of the file that a run wrote, and its metrics."""
    file = place / ("answers.jsonl" if name == "generate" else PROMPT)
    metrics = place / "p.run" / "metrics.jsonl"
    found = records(metrics) if name != "generate" else []
    return hashlib.sha256(file.read_bytes()).hexdigest(), found


def killed(name: str, place: Path, moment: float, whole: Whole) -> tuple[str, str]:
    """Kill a run at a call (an int) or after so many seconds (a float), resume it, and return what happened: how it
    was killed, and the difference from the uninterrupted run, empty if there is none."""
    prepare(name, place)
    words = words_of(name)
    at_call = isinstance(moment, int)
    process = start(words, place, moment if at_call else 0)
    if not at_call:
        time.sleep(moment)
        process.kill()
    what = "call" if at_call else "instant"
    if process.wait(LIMIT_S) == 0:
        what = "ended before"
    file = place / ("answers.jsonl" if name == "generate" else PROMPT)
    if what != "ended before" and not file.exists():
        status = start([*words, "--resume"], place).wait(LIMIT_S)
        if status:
            return what, f"the resumed run ended with {status}: {(place / 'log.txt').read_text()[-300:]}"
    elif what != "ended before":  # killed when all was written: a resume may say so, and must change nothing
        start([*words, "--resume"], place).wait(LIMIT_S)
    sha256, metrics = result(name, place)
    if sha256 != whole.sha256:
        return what, "another sha256"
    return what, "" if metrics == whole.metrics else "other metrics"


if __name__ == "__main__":
    sys.exit(main())
