"""How a run, a search and a file of questions look on a terminal: one bar on stderr, plain lines on stdout."""

import shutil
import sys
from typing import Any

from tqdm import tqdm

from softprompt.answering.job import JobReport
from softprompt.cli.text import describe_evaluation, describe_step, describe_trial, three_digits
from softprompt.config.options import flags_in
from softprompt.system.process import drop_output
from softprompt.training.report import BarReport
from softprompt.training.run_log import EvaluationRecord, StepRecord
from softprompt.training.sweep import SweepReport, TrialResult

REDIRECTED_WIDTH = 100  # columns of a table in a file or a pipe


def screen_width() -> int:
    """Columns for tables: the terminal's, within sense, or a fixed number where stdout is none."""
    if not sys.stdout.isatty():
        return REDIRECTED_WIDTH
    return min(max(shutil.get_terminal_size((REDIRECTED_WIDTH, 24)).columns, 60), 160)


def say(line: str) -> None:
    """One line on stdout, above a bar if there is one; a run does not end because nobody reads it."""
    try:
        tqdm.write(flags_in(line), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


class TerminalReport(BarReport):
    """The bar of a training run, and a line for every window of steps and every evaluation."""

    def logged(self, record: StepRecord, total_steps: int) -> None:
        # a terminal of 80 columns holds the line with the short unit
        unit = {"unit": "tok/s"} if sys.stdout.isatty() else {}
        say(describe_step(record, total_steps, **unit))

    def evaluated(self, record: EvaluationRecord) -> None:
        say(describe_evaluation(record))

    def say(self, message: str) -> None:
        say(message)


class TerminalSweepReport(SweepReport):
    """One bar over the steps of all trials, and a table with a row for every trial."""

    bar: Any = None

    def begin(self, first_step: int, total_steps: int) -> None:
        self.bar = tqdm(total=total_steps, unit="step", disable=None, dynamic_ncols=True)

    def round(self, num_trials: int, steps: int) -> None:
        say(f"\nround of {num_trials} trials, {steps} steps each\n{'P':>4} {'init':8}{'rate':>22}   held-out loss")

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        self.bar.set_postfix({"loss": three_digits(loss)}, refresh=False)
        self.bar.update()

    def trial(self, result: TrialResult) -> None:
        say(describe_trial(result))

    def end(self) -> None:
        self.bar.close()


class TerminalJobReport(JobReport):
    """A bar over the rows of a file of questions; lines go to stderr, since stdout is for answers."""

    bar: Any = None

    def say(self, message: str) -> None:
        print(flags_in(message), file=sys.stderr, flush=True)

    def begin(self, done: int, total: int) -> None:
        # `disable=None`: no bar where stderr is not a terminal, so a log file holds only whole lines
        self.bar = tqdm(total=total, initial=done, unit="row", disable=None, dynamic_ncols=True)

    def answered(self, rows: int) -> None:
        self.bar.update(rows)

    def end(self) -> None:
        self.bar.close()
