#!/usr/bin/env python
"""Kill `train`, `sweep` and `generate --instructions` by SIGKILL, resume them, and compare with an uninterrupted run.

Usage: python scripts/reliability/kill_sweep.py --kills 1000 --minutes 60 --table kills.txt

The uninterrupted run of a recipe is a process of its own; the runs that are killed and resumed are forks of this one,
which has everything imported. A kill comes in front of a call of `os` that changes the disk (fsync, link, mkdir,
rename, replace, rmdir, unlink), until there was one at every call of the recipe; every third kill comes at a random
instant, and so do all from then on. Of four cases one kills the run that resumes as well, up to three times. A resumed
run is right if its result has the sha256 of the uninterrupted one, its metrics each step once, its answers each row
once and in order, and if nothing temporary is left. The exit status is 1 if one is not.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from runs import COUNT, LOG, PROMPT, ended, fork, preload, records, start  # noqa: E402

STEPS = "--max-steps 4 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --save-steps 2 --eval-steps 2"
COMMON = f"--device cpu --precision fp32 --prompt-file {PROMPT} --data rows.jsonl --eval-data held.jsonl"
TRAIN = f"train {COMMON} {STEPS} --logging-steps 1 "
ANSWERS = "answers.jsonl"
GENERATE = f"generate --device cpu --prompt-file {PROMPT} --instructions held.jsonl --output-file {ANSWERS}"
GENERATE += " --max-new-tokens 8 --seed 1 --per-device-eval-batch-size 2"
SWEEP = f"sweep {COMMON} --max-steps 4 --per-device-train-batch-size 2 --virtual-tokens 2 3 --relative-rates 0.3 1.0"
OTHER_PLACE = "/dev/shm"  # a file system in memory
LIMIT_S = 120
SHARE_AGAIN = 0.25  # of the cases whose resumed run is killed as well
MOST_AGAIN = 3


@dataclass(frozen=True)
class Recipe:
    """A command whose last flags count, how many threads it has, and the folder that its files are in."""

    words: str
    threads: int = 1
    place: str = ""


RECIPES = {
    "fp32": Recipe(TRAIN),
    "bf16": Recipe(f"{TRAIN} --precision bf16"),
    "adamw": Recipe(f"{TRAIN} --optim adamw"),
    "checkpointing": Recipe(f"{TRAIN} --gradient-checkpointing"),
    "early-stopping": Recipe(f"{TRAIN} --early-stopping-patience 1 --learning-rate 0.5 --eval-steps 1"),
    "init-answers": Recipe(f"{TRAIN} --init answers --virtual-tokens 4"),
    "random-init": Recipe(f"{TRAIN} --init random --virtual-tokens 3 --lr-scheduler-type cosine"),
    "test-rows": Recipe(f"{TRAIN} --test-data test.jsonl --eval-generate 2"),
    "save-steps-1": Recipe(f"{TRAIN} --save-steps 1"),
    "save-all": Recipe(f"{TRAIN} --save-steps 1 --save-total-limit 0 --save-last"),
    "accumulation": Recipe(f"{TRAIN} --gradient-accumulation-steps 3"),
    "two-threads": Recipe(TRAIN, threads=2),
    "other-place": Recipe(TRAIN, place=OTHER_PLACE),
    "overwrite": Recipe(f"{TRAIN} --overwrite"),
    "sweep": Recipe(f"{SWEEP} --test-data test.jsonl"),
    "generate": Recipe(GENERATE),
    "generate-overwrite": Recipe(f"{GENERATE} --overwrite"),
}


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run left: what is compared, how many calls it made, and how long a fork of it took."""

    result: dict[str, object]
    calls: int
    seconds: float


@dataclass
class Progress:
    """The moments that are left for a recipe, and what became of those that were."""

    whole: Whole
    calls: list[int]
    counts: Counter = field(default_factory=Counter)


def main() -> int:
    args = parse()
    names = args.recipe or [name for name in RECIPES if can_run(RECIPES[name])]
    source = random.Random(args.seed)
    began, faults = time.monotonic(), []
    preload()
    with tempfile.TemporaryDirectory(prefix="kill-sweep-") as folder, other_place() as other:
        roots = {name: other if RECIPES[name].place else Path(folder) for name in names}
        states = {name: begin(name, roots[name], source) for name in names}
        cases = 0
        while sum(each.counts["kills"] for each in states.values()) < args.kills:
            if time.monotonic() - began > args.minutes * 60:
                break
            name = names[cases % len(names)]
            place = roots[name] / f"{name}-{cases}"
            try:
                fault = case(name, place, states[name], source)
            except TimeoutError as error:
                fault = f"{error}: {(place / LOG).read_text()[-2000:]}"
                states[name].counts["different"] += 1
            if fault:
                faults.append(f"{name}, case {cases}: {fault}")
            shutil.rmtree(place)
            cases += 1
            if args.table and cases % 20 == 0:
                args.table.write_text(table(states, faults, began))
    report = table(states, faults, began)
    print(report, end="")
    if args.table:
        args.table.write_text(report)
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all, by turns over the recipes")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no case after so many minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--recipe", nargs="*", choices=RECIPES, help="all by default")
    parser.add_argument("--table", type=Path, help="write the table so far into this file, again and again")
    return parser.parse_args()


def can_run(recipe: Recipe) -> bool:
    return not recipe.place or os.access(recipe.place, os.W_OK)


def other_place() -> tempfile.TemporaryDirectory:
    where = OTHER_PLACE if os.access(OTHER_PLACE, os.W_OK) else None
    return OtherFolder(dir=where, prefix="kill-sweep-")


class OtherFolder(tempfile.TemporaryDirectory):
    """A temporary folder that is a `Path` within its block."""

    def __enter__(self) -> Path:
        return Path(super().__enter__())


def begin(name: str, root: Path, source: random.Random) -> Progress:
    """Run a recipe without a kill, once as a process of its own and once as a fork, and make sure that they agree."""
    recipe, results = RECIPES[name], []
    for kind in ("process", "fork"):
        place = root / f"{name}-{kind}"
        prepare(name, place)
        began = time.monotonic()
        words = recipe.words.split()
        if kind == "process":
            status = start(words, place, recipe.threads).wait(LIMIT_S)
        else:
            status = ended(fork(words, place, threads=recipe.threads), LIMIT_S)
        seconds = time.monotonic() - began
        if status:
            raise SystemExit(f"{name} ended with {status}:\n{(place / LOG).read_text()}")
        results.append(result_of(place))
        if kind == "fork":
            calls = int((place / COUNT).read_text())
        shutil.rmtree(place)
    if results[0] != results[1]:
        raise SystemExit(f"{name}: a fork gave another result than a process: {difference(*results)}")
    moments = list(range(1, calls + 1))
    source.shuffle(moments)
    return Progress(Whole(results[0], calls, seconds), moments)


def prepare(name: str, place: Path) -> None:
    """Make the folder of a run with its rows, with a prompt for `generate`, and with old files to replace."""
    place.mkdir()
    rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}."} for n in range(24)]
    for file, part in (("rows.jsonl", rows[:14]), ("held.jsonl", rows[14:20]), ("test.jsonl", rows[20:])):
        (place / file).write_text("".join(json.dumps(row) + "\n" for row in part))
    if name.startswith("generate"):
        copied(place, PROMPT, lambda folder: f"{TRAIN} --max-steps 1 --run-dir run-of-prompt --save-steps 9")
    if name == "generate-overwrite":
        (place / ANSWERS).write_text("answers of an earlier run\n")
    if name == "overwrite":  # an earlier run with other options
        for part in (PROMPT, "p.run"):
            copied(place, part, lambda folder: f"{TRAIN} --max-steps 3 --virtual-tokens 2")


def copied(place: Path, part: str, words: Callable[[Path], str]) -> None:
    """Copy what a command makes, which runs once, into the folder of a run."""
    source = place.parent / f"{place.name.rsplit('-', 1)[0]}.source"
    if not source.exists():
        prepare("", source)
        if ended(fork(words(source).split(), source), LIMIT_S):
            raise SystemExit((source / LOG).read_text())
    (shutil.copytree if (source / part).is_dir() else shutil.copy)(source / part, place / part)


def result_of(place: Path) -> dict[str, object]:
    """What a run wrote: hashes of its files, and its metrics without the clock."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.suffix == ".tmp":
            found[name] = "is left"
        elif path.name == "metrics.jsonl" and "run-of" not in name:
            found[name] = records(path)
        elif path.name == ANSWERS or (path.suffix == ".safetensors" and path.name != "state.safetensors"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name.endswith((".partial", ".lock")):
            found[name] = "is left"
    return found


def difference(one: dict[str, object], other: dict[str, object]) -> str:
    """The first difference of two results, or an empty text."""
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            return f"{name}: {str(one.get(name))[:300]} and {str(other.get(name))[:300]}"
    return ""


def case(name: str, place: Path, progress: Progress, source: random.Random) -> str:
    """Kill a run, perhaps its resumed runs too, and resume it to its end; return what is wrong, or an empty text."""
    recipe, whole, counts = RECIPES[name], progress.whole, progress.counts
    prepare(name, place)
    words = recipe.words.split()
    again = [word for word in words if word != "--overwrite"] + ["--resume"]
    rounds = 1 + (source.randint(1, MOST_AGAIN) if source.random() < SHARE_AGAIN else 0)
    counts["cases"] += 1
    for number in range(rounds):
        at_call = bool(progress.calls) and counts["cases"] % 3 > 0 if number == 0 else source.random() < 0.5
        call = (progress.calls.pop() if number == 0 else source.randint(1, whole.calls)) if at_call else 0
        process = fork(words if number == 0 else again, place, call, recipe.threads)
        if not at_call:
            time.sleep(source.uniform(0, whole.seconds))
            os.kill(process, signal.SIGKILL)
        status = ended(process, LIMIT_S)
        if status != -signal.SIGKILL:
            counts["ended before"] += 1
            break
        counts["kills"] += 1
        counts[("call" if at_call else "instant") if number == 0 else "again"] += 1
    fault = resume(words, again, place, recipe)
    fault = fault or difference(whole.result, result_of(place))
    counts["different"] += bool(fault)
    return fault


def resume(words: list[str], again: list[str], place: Path, recipe: Recipe) -> str:
    """Go on to the end, in the one way that a refusal names; return what is wrong, or an empty text."""
    for attempt in (again, words):
        (place / LOG).unlink(missing_ok=True)
        status = ended(fork(attempt, place, threads=recipe.threads), LIMIT_S)
        if status == 0:
            return ""
        said = (place / LOG).read_text()
        if status != 2 or "Traceback" in said:
            break
        if "nothing to go on from" in said or "to go on from, and" in said:  # it was killed when all was written
            if "--overwrite" not in words:
                return ""
        elif "--overwrite" not in words:
            break
    return f"the resumed run ended with {status}: {said[-300:]}"


def table(states: dict[str, Progress], faults: list[str], began: float) -> str:
    """The counts of every recipe and in all, and the faults."""
    columns = ("cases", "kills", "call", "instant", "again", "ended before", "different")
    total: Counter = sum((each.counts for each in states.values()), Counter())
    lines = [f"{'recipe':<20}{'calls':>7}" + "".join(f"{column:>14}" for column in columns)]
    rows = [(name, str(each.whole.calls), each.counts) for name, each in states.items()]
    for name, calls, counts in [*rows, ("all", "", total)]:
        lines.append(f"{name:<20}{calls:>7}" + "".join(f"{counts[column]:>14}" for column in columns))
    lines.append(f"{(time.monotonic() - began) / 60:.1f} minutes")
    return "\n".join([*lines, *faults]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
