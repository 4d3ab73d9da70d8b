"""What the number of rows costs: memory, the time until the first step of a first and of a second run, a checkpoint.

usage: python benchmarks/speed/size.py [--rows 10000 1000000] [--questions 0] [--long-rows 0] [--long-questions 0]
           [--checkout FOLDER]

For every number of rows it writes a file of so many, and trains 4 steps on the shipped base, twice, each in a process
of its own with an empty cache folder at first. Memory is the most anonymous memory that the process held (`RssAnon`,
which leaves mapped pages out), so this runs on Linux. CPU seconds stand beside those of the clock, which other work on
the machine makes longer. With `--questions` it answers so many questions with 4 tokens each. With `--long-rows` one row
of 1,000 has so many megabytes, with `--long-questions` one question so many words. `--checkout` takes the command from
another checkout.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from home import ROOT

WORDS = (
    "river",
    "road",
    "town",
    "bread",
    "paper",
    "lamp",
    "boat",
    "quiet",
    "old",
    "small",
    "red",
    "two",
    "sell",
    "keep",
)
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000], help="default: %(default)s")
    parser.add_argument("--questions", type=int, nargs="*", default=[], help="numbers of questions to answer")
    parser.add_argument("--long-rows", type=int, nargs="*", default=[], help="megabytes of one row of 1,000")
    parser.add_argument("--long-questions", type=int, nargs="*", default=[], help="words of one question to answer")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="default: this one")
    options = parser.parse_args()
    for count in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "rows.jsonl", count)
            for run in ("first", "second"):
                show(f"{count:,} rows, {run} run", train(options.checkout, Path(folder)))
    for megabytes in options.long_rows:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "rows.jsonl", 1000, longest=megabytes * 10**6)
            for run in ("first", "second"):
                show(f"a row of {megabytes} MB, {run} run", train(options.checkout, Path(folder)))
    for words in options.long_questions:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "rows.jsonl", 100)
            train(options.checkout, Path(folder))
            question = {"instruction": " ".join(random.Random(0).choices(WORDS, k=words))}
            (Path(folder) / "rows.jsonl").write_text(json.dumps(question) + "\n", "utf-8")
            show(f"a question of {words:,} words", answer(options.checkout, Path(folder)))
    for count in options.questions:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "rows.jsonl", count)
            train(options.checkout, Path(folder), "--max-train-rows", "100")
            show(f"{count:,} questions", answer(options.checkout, Path(folder)))


def write_rows(path: Path, count: int, longest: int = 0) -> None:
    """Write rows of about 60 tokens, no two of them alike; `longest` is the number of characters of the first."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {
                "instruction": f"Question {number}: " + " ".join(draw.choices(WORDS, k=20)),
                "output": " ".join(draw.choices(WORDS, k=15)),
            }
            if longest and number == 0:
                row["output"] = " ".join(draw.choices(WORDS, k=longest // 5))[:longest]
            file.write(json.dumps(row) + "\n")


def train(checkout: Path, folder: Path, *more: str) -> dict[str, float]:
    """Train a few steps; returns seconds until the first step, seconds of all, and MB of anonymous memory."""
    command = ["train.py", "--data", str(folder / "rows.jsonl"), "--prompt-file", str(folder / "p.safetensors")]
    command += ["--virtual-tokens", "8", "--max-steps", str(STEPS), "--logging-steps", "1", "--save-steps", "1"]
    return measured([*command, "--overwrite", *more], checkout, folder, first=f"step 1/{STEPS}")


def answer(checkout: Path, folder: Path) -> dict[str, float]:
    """Answer the questions of the file."""
    command = ["generate.py", "--prompt-file", str(folder / "p.safetensors"), "--max-new-tokens", "4"]
    command += ["--instructions", str(folder / "rows.jsonl"), "--output-file", str(folder / "answers.jsonl")]
    return measured([*command, "--per-device-eval-batch-size", "64"], checkout, folder)


def measured(command: Sequence[str], checkout: Path, folder: Path, *, first: str = "") -> dict[str, float]:
    """Run a command; `first` is what a line of its output holds that marks the first time, if that is wanted."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    begin, until_first, busy = time.perf_counter(), float("nan"), float("nan")
    process = subprocess.Popen(
        [sys.executable, *command], cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
    )
    peaks: list[float] = [0.0]
    watch = threading.Thread(target=watch_memory, args=(process, peaks))
    watch.start()
    assert process.stdout is not None
    for line in process.stdout:
        if first and first in line and until_first != until_first:
            until_first, busy = time.perf_counter() - begin, cpu_seconds(process)
    if process.wait():
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    watch.join()
    found = {"all": time.perf_counter() - begin, "memory": peaks[0]}
    return found | ({"first": until_first, "busy": busy} if first else {})


def cpu_seconds(process: subprocess.Popen) -> float:
    """The seconds that a process has spent on all its cores so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch_memory(process: subprocess.Popen, peaks: list[float]) -> None:
    """Keep the most anonymous memory of a process in MB, looking 20 times a second, until it ends."""
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in text.splitlines():
            if line.startswith("RssAnon:"):
                peaks[0] = max(peaks[0], int(line.split()[1]) / 1024)
        time.sleep(0.05)


def show(name: str, found: dict[str, float]) -> None:
    first = f"first step after {found['first']:.1f} s ({found['busy']:.1f} s of CPU), " if "first" in found else ""
    print(f"{name}: {first}all {found['all']:.1f} s, {found['memory']:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
