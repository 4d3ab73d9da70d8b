"""Who hears how a run goes. The library tells one of these and prints nothing itself."""

import time
from typing import Any

from tqdm.auto import tqdm

from softprompt.training.run_log import EvaluationRecord, StepRecord

SECONDS_BETWEEN_COUNTS = 0.2


class Report:
    """Keeps silent; a subclass shows what it overrides."""

    def begin(self, first_step: int, total_steps: int) -> None:
        """A run goes from `first_step` to `total_steps`."""

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        """One optimizer step was taken."""

    def logged(self, record: StepRecord, total_steps: int) -> None:
        """A window of steps was logged."""

    def scoring(self, rows: int, total_rows: int) -> None:
        """So many of the rows of an evaluation are scored."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """A loss on rows that are not trained on was measured."""

    def say(self, message: str) -> None:
        """Something worth a line happened; options in it stand in backticks."""

    def end(self) -> None:
        """The run is over, or was stopped."""


class BarReport(Report):
    """A bar over the steps, as tqdm draws it in a terminal or a notebook; none where stderr is a file."""

    bar: Any = None
    shown = 0.0  # when rows were last counted

    def begin(self, first_step: int, total_steps: int) -> None:
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        self.bar.set_postfix({"loss": f"{loss:.3g}", "tok/s": f"{tokens_per_second:.0f}"}, refresh=False)
        self.bar.update()

    def scoring(self, rows: int, total_rows: int) -> None:
        """The end of the bar counts an evaluation's rows, a few times a second."""
        if rows == total_rows or time.monotonic() - self.shown > SECONDS_BETWEEN_COUNTS:
            self.shown = time.monotonic()
            self.bar.set_postfix_str(f"scoring {rows}/{total_rows}" if rows < total_rows else "")

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
