"""`metrics.jsonl` of a run folder: its two kinds of record, and how they are written and read.

A line is either a window of steps, with `loss` and other figures, or an evaluation, with `eval_loss` or `test_loss` and
the prompt that was scored. The loss of a window is weighted by tokens.
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.system.files import write_atomic
from softprompt.system.foreign import decode_json

METRICS_NAME = "metrics.jsonl"
# how a record names the prompt that an evaluation scored
NO_PROMPT, INITIAL, CURRENT, TRAINED, KEPT = "none", "initial", "current", "trained", "kept"


@dataclass(frozen=True)
class StepRecord:
    """A window of steps that ends at `step`. The loss is per supervised token; rate and norm are the last step's."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    supervised_tokens: int
    supervised_tokens_per_second: float

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the line."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class EvaluationRecord:
    """Loss per supervised token and token accuracy of one prompt on the rows of `split`, after `step` steps.

    Attributes:
        split: `eval` for the held-out rows, `test` for the rows that neither trained nor chose the prompt.
        prompt: one of `none`, `initial`, `current`, `trained` (after the last step) and `kept` (what the file holds).
    """

    step: int
    split: str
    prompt: str
    loss: float
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the line."""
        return {
            "step": self.step,
            "prompt": self.prompt,
            f"{self.split}_loss": self.loss,
            f"{self.split}_accuracy": self.accuracy,
        }


class RunLog:
    """Writes the records of one run, and sums the window of steps since the last line."""

    def __init__(
        self,
        path: Path,
        *,
        first_step: int = 0,
        window: tuple[float, int] = (0.0, 0),
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Drop the records after `first_step`, since a resumed run takes those steps again.

        Args:
            window: loss sum and supervised tokens of the steps that were not yet logged at `first_step`.
            warn: takes one line when records begin to be lost, for instance because the disk is full.
        """
        self.path, self.warn, self.failing = path, warn, False
        try:
            _keep_until(path, first_step)
        except OSError as error:
            self._fail(error)
        self._restart(*window)

    @property
    def window(self) -> tuple[float, int]:
        """Loss sum and supervised tokens since the last line."""
        return self.loss_sum, self.supervised

    @property
    def tokens_per_second(self) -> float:
        """Supervised tokens per second of training since the last line, or since `start`."""
        return (self.supervised - self.before) / max(time.perf_counter() - self.started, 1e-9)

    def start(self) -> None:
        """Start the clock; the time before this call was not training."""
        self._restart(*self.window)

    def add_step(self, loss_sum: float, supervised: int) -> None:
        """Count one optimizer step."""
        self.loss_sum += loss_sum
        self.supervised += supervised

    def end_window(self, step: int, *, epoch: float, learning_rate: float, grad_norm: float) -> StepRecord:
        """Write the window that ends at `step`, and begin a new one."""
        record = StepRecord(
            step=step,
            epoch=round(epoch, 4),
            loss=self.loss_sum / self.supervised if self.supervised else math.nan,  # no step of it was applied
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            supervised_tokens=self.supervised,
            supervised_tokens_per_second=round(self.tokens_per_second, 1),
        )
        self.write(record)
        self._restart()
        return record

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock within the block, where no training happens."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - start

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Append one line and sync it to disk; a line that a crash cuts short is dropped on resume.

        A number that is not finite becomes null, since JSON has no NaN. A skipped fp16 step has such a gradient norm.
        A line that cannot be written is lost, and no error: it is only shown.
        """
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.to_json().items()
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self.failing + json.dumps(values) + "\n")  # behind what was cut short
                file.flush()
                os.fsync(file.fileno())
            self.failing = False
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Warn once of records that are lost."""
        if not self.failing:
            self.warn(f"warning: {self.path}: {error.strerror or error}; the run goes on, and its records may be lost")
        self.failing = True

    def _restart(self, loss_sum: float = 0.0, supervised: int = 0) -> None:
        self.loss_sum, self.supervised = loss_sum, supervised
        self.before, self.started = supervised, time.perf_counter()


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a metrics file, and how many lines are damaged, such as the last one after a crash."""
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    records = [record for line in lines if (record := _record(line)) is not None]
    return records, len(lines) - len(records)


def is_metrics_file(path: Path) -> bool:
    """Whether a file begins like a metrics file; an empty file counts as one."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, ValueError):
        return False
    return not first or _record(first) is not None


def _record(line: str) -> dict[str, Any] | None:
    """Return the record of a line, or None if the line is not one."""
    try:
        record = decode_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    step = record.get("step")
    whole = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    return record if whole and {"loss", "eval_loss", "test_loss"} & record.keys() else None


def _keep_until(path: Path, first_step: int) -> None:
    """Keep the records up to the step of a checkpoint; at step 0, where a run starts afresh, keep none.

    Test figures are dropped as well, since they are measured again at the end, and so are damaged lines.
    """
    if not path.exists():
        return
    records, _ = read_records(path)
    kept = [each for each in records if first_step > 0 and each["step"] <= first_step and "test_loss" not in each]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
