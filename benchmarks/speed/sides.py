"""Run one side of a comparison in a process of its own: a `train.py` run, a `peer.py` run, or any other script."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from home import ROOT
from rows import MAX_LENGTH, write_rows

from softprompt.data.row import Row
from softprompt.optim.schedule import rows_of_step
from softprompt.tokens.encoding import EncodedRow

SCRIPTS = ROOT / "benchmarks" / "speed"
SEED = 42  # train.py's default


@dataclass(frozen=True)
class Place:
    """Where all processes of a comparison run: device, threads and the folder for their caches."""

    device: str
    threads: int
    cache: Path


@dataclass(frozen=True)
class Run:
    """What one process took: seconds of every step after the warm-up, bytes at its peak (of the GPU where used)."""

    step_seconds: list[float]
    supervised_tokens: int
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds for all rows."""
        return sum(self.step_seconds)


@dataclass(frozen=True)
class Work:
    """The rows that every side trains on, in this order, `rows_per_step` at a time; the first steps are warm-up."""

    rows: list[Row]
    encoded: list[EncodedRow]
    warm_up_steps: int
    rows_per_step: int = 8
    max_length: int = MAX_LENGTH

    @property
    def measured(self) -> list[EncodedRow]:
        """The rows behind the warm-up."""
        return self.encoded[self.warm_up_steps * self.rows_per_step :]

    @property
    def steps(self) -> int:
        """Measured steps."""
        return len(self.measured) // self.rows_per_step

    @property
    def supervised_tokens(self) -> int:
        """Of the measured rows."""
        return sum(row.num_supervised for row in self.measured)

    def first(self, rows: int) -> "Work":
        """The warm-up and at most `rows` measured rows."""
        end = self.warm_up_steps * self.rows_per_step + rows
        return Work(self.rows[:end], self.encoded[:end], self.warm_up_steps, self.rows_per_step, self.max_length)


def run_softprompt(model: Path, work: Work, virtual_tokens: int, precision: str, place: Place) -> Run:
    """A real `train.py` run; a step's seconds are its supervised tokens over their rate in `metrics.jsonl`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = write_rows(order_for_train(work.rows, work.rows_per_step), folder / "rows.jsonl")
        options = {
            "model": model, "data": data, "prompt-file": folder / "prompt.safetensors", "run-dir": folder / "run",
            "virtual-tokens": virtual_tokens, "precision": precision, "device": place.device, "seed": SEED,
            "num-train-epochs": 1, "max-length": work.max_length, "gradient-accumulation-steps": work.rows_per_step,
            "eval-fraction": 0, "logging-steps": 1, "save-steps": 1_000_000,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        _, peak = run_script(ROOT / "train.py", words, place)
        records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [record for record in records if "supervised_tokens_per_second" in record]
    _require_same_rows(steps, work)
    steps = steps[work.warm_up_steps :]
    seconds = [step["supervised_tokens"] / step["supervised_tokens_per_second"] for step in steps]
    return Run(seconds, sum(step["supervised_tokens"] for step in steps), peak)


def run_peer(model: Path, work: Work, options: Sequence[str], place: Place) -> Run:
    """PEFT + Trainer on the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(work.rows, Path(folder) / "rows.jsonl")
        warm_up = ["--warm-up-rows", str(work.warm_up_steps * work.rows_per_step)]
        words = [str(model), str(data), *warm_up, "--max-length", str(work.max_length), "--device", place.device]
        result, peak = run_script(SCRIPTS / "peer.py", [*words, *options], place)
    if result["supervised_tokens"] != work.supervised_tokens or len(result["step_seconds"]) != work.steps:
        raise RuntimeError(f"the peer did other work: {result}, not {work.supervised_tokens} in {work.steps} steps")
    return Run(result["step_seconds"], result["supervised_tokens"], peak)


def run_script(script: Path, arguments: Sequence[str], place: Place) -> tuple[dict, int]:
    """Run a script to its end; returns the JSON object on its last line ({} if it is none) and its peak memory.

    Raises:
        RuntimeError: it failed; the message holds the end of what it wrote to stderr.
    """
    threads = {name: str(place.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "XDG_CACHE_HOME": str(place.cache / "xdg")}
    command = [sys.executable, str(SCRIPTS / "measured.py"), str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads | settings)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    *output, memory_line = done.stdout.strip().splitlines()
    memory = json.loads(memory_line)
    result = next((json.loads(line) for line in reversed(output) if line.startswith("{")), {})
    return result, memory["peak_cuda_bytes"] or memory["peak_bytes"]


def order_for_train(rows: Sequence[Row], rows_per_step: int) -> list[Row]:
    """The order in a file from which train.py's seeded shuffle takes `rows` in their own order."""
    placed: dict[int, Row] = {}
    for step in range(len(rows) // rows_per_step):
        places = rows_of_step(step, len(rows), rows_per_step, SEED)
        own = rows[step * rows_per_step : (step + 1) * rows_per_step]
        placed |= dict(zip(places, own, strict=True))
    return [placed[place] for place in range(len(rows))]


def _require_same_rows(steps: list[dict], work: Work) -> None:
    """Stop unless every step of a train.py run had the supervised tokens of the rows that it was meant to have."""
    size = work.rows_per_step
    wanted = [
        sum(row.num_supervised for row in work.encoded[start : start + size])
        for start in range(0, len(work.encoded), size)
    ]
    found = [step["supervised_tokens"] for step in steps]
    if found != wanted:
        raise RuntimeError(f"train.py took other rows than the peer: {found}, not {wanted} supervised tokens")
