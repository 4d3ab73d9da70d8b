"""Reports of a run's progress: the library calls the methods of a `Report` and prints nothing itself."""

import time
from typing import Any

from tqdm.auto import tqdm

from softprompt.training.run_log import EvaluationRecord, StepRecord

SECONDS_BETWEEN_COUNTS = 0.2  # least time between two counts of scored rows in the bar


class Report:
    """Shows nothing; a subclass shows what it overrides."""

    def begin(self, first_step: int, total_steps: int) -> None:
        """A run goes from `first_step` to `total_steps`."""

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        """One optimizer step was taken."""

    def logged(self, record: StepRecord, total_steps: int) -> None:
        """A window of steps was logged."""

    def scoring(self, rows: int, total_rows: int) -> None:
        """So far `rows` of the `total_rows` rows of an evaluation are scored."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """A loss on rows that are not trained on was measured."""

    def say(self, message: str) -> None:
        """The run has a message for the user, in which the names of options stand in backticks."""

    def end(self) -> None:
        """The run is over, or was stopped."""


class BarReport(Report):
    """Shows a tqdm bar over the steps in a terminal or a notebook, and nothing where stderr is a file."""

    bar: Any = None
    shown = 0.0  # `time.monotonic()` of the last count

    def begin(self, first_step: int, total_steps: int) -> None:
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        self.bar.set_postfix({"loss": f"{loss:.3g}", "tok/s": f"{tokens_per_second:.0f}"}, refresh=False)
        self.bar.update()

    def scoring(self, rows: int, total_rows: int) -> None:
        """Count an evaluation's rows at the end of the bar, a few times a second."""
        if rows == total_rows or time.monotonic() - self.shown > SECONDS_BETWEEN_COUNTS:
            self.shown = time.monotonic()
            self.bar.set_postfix_str(f"scoring {rows}/{total_rows}" if rows < total_rows else "")

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
