"""What a run shows and records: one bar on a terminal, plain lines everywhere, `metrics.jsonl` in the run folder."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from softprompt.system.files import write_atomic
from softprompt.system.process import drop_output


class Progress:
    """Log of one run. `window` figures are token-weighted over the steps since the last line."""

    def __init__(
        self, metrics_file: Path, *, first_step: int, total_steps: int, window: tuple[float, int] = (0.0, 0)
    ) -> None:
        """Drop records of steps behind `first_step`, which a resumed run takes again.

        Args:
            window: loss sum and supervised tokens of the steps that were not logged yet at `first_step`.
        """
        self.metrics_file = metrics_file
        self.total_steps = total_steps
        _keep_until(metrics_file, first_step)
        # `disable=None`: no bar where stderr is not a terminal, so a log file holds only whole lines
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)
        self._restart_window(*window)

    def start(self) -> None:
        """Begin to count seconds; what went before is not training."""
        self._restart_window(*self.window)

    @property
    def window(self) -> tuple[float, int]:
        """Loss sum and supervised tokens since the last line."""
        return self.loss_sum, self.supervised

    def step(self, *, loss_sum: float, supervised: int, learning_rate: float) -> None:
        """Count one optimizer step."""
        self.loss_sum += loss_sum
        self.supervised += supervised
        self.bar.set_postfix(
            {"loss": f"{loss_sum / supervised:.4f}", "lr": f"{learning_rate:.2e}", "tok/s": f"{self._rate():.0f}"},
            refresh=False,
        )
        self.bar.update()

    def log(self, step: int, *, epoch: float, learning_rate: float, grad_norm: float) -> None:
        """Print and record the window that ends at `step`, and begin a new one."""
        loss, rate = self.loss_sum / self.supervised, self._rate()
        width = len(str(self.total_steps))
        self.say(
            f"step {step:{width}d}/{self.total_steps}  loss {loss:.4f}  lr {learning_rate:.2e}"
            f"  grad_norm {grad_norm:.2e}  {rate:,.0f} supervised tokens/s"
        )
        self.record(
            step=step,
            epoch=round(epoch, 4),
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            supervised_tokens=self.supervised,
            supervised_tokens_per_second=round(rate, 1),
        )
        self._restart_window()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens here is not training: its seconds do not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - start

    def say(self, line: str) -> None:
        """One line on stdout, above the bar if there is one; a run does not end because nobody reads it."""
        try:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()

    def record(self, **values: object) -> None:
        """Append one JSON object to the metrics, synced; a line that a crash cuts short is dropped on resume.

        A number that is not finite becomes null: an fp16 step that was skipped has such a norm, and JSON has no NaN.
        """
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def _rate(self) -> float:
        return (self.supervised - self.before) / max(time.perf_counter() - self.started, 1e-9)

    def _restart_window(self, loss_sum: float = 0.0, supervised: int = 0) -> None:
        self.loss_sum, self.supervised = loss_sum, supervised
        self.before, self.started = supervised, time.perf_counter()


def _keep_until(metrics_file: Path, first_step: int) -> None:
    """Keep the records up to a checkpoint's step, but for test figures, which come again at the end.

    A line that a crash cut short goes too.
    """
    if not metrics_file.exists():
        return
    kept = []
    for line in metrics_file.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
            if first_step > 0 and record["step"] <= first_step and "test" not in record:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    write_atomic(metrics_file, "".join(kept).encode())
