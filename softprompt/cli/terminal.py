"""How a run, a search and a file of questions look on a terminal: a progress bar on stderr, and plain lines."""

import contextlib
import shutil
import sys
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from softprompt.analysis.table import three_digits
from softprompt.answering.batch import text_of
from softprompt.answering.job import JobReport
from softprompt.cli.text import describe_evaluation, describe_step, describe_trial
from softprompt.config.options import flags_in
from softprompt.system.foreign import visible, visible_text
from softprompt.system.process import drop_output
from softprompt.tokens.encoding import Encoder
from softprompt.training.report import BarReport
from softprompt.training.run_log import EvaluationRecord, StepRecord
from softprompt.training.sweep import SweepReport, TrialResult

REDIRECTED_WIDTH = 100  # columns of tables where stdout is a file or a pipe


def screen_width() -> int:
    """Return the width of tables in columns: the terminal's, from 60 to 160, or a fixed one without a terminal."""
    if not sys.stdout.isatty():
        return REDIRECTED_WIDTH
    return min(max(shutil.get_terminal_size((REDIRECTED_WIDTH, 24)).columns, 60), 160)


def say(text: str, *, flags: bool = True) -> None:
    """Print lines on stdout, above the bar if there is one; the work goes on if they cannot be written.

    Args:
        flags: whether options in backticks are spelled as flags.
    """
    try:
        tqdm.write(flags_in(text) if flags else text, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):  # the reader is gone, the disk is full, or the stream is closed
        drop_output()


class TerminalReport(BarReport):
    """Shows the bar of a training run, and prints a line for every window of steps and every evaluation."""

    def logged(self, record: StepRecord, total_steps: int) -> None:
        # with the short unit, the line fits into a terminal of 80 columns
        unit = {"unit": "tok/s"} if sys.stdout.isatty() else {}
        say(describe_step(record, total_steps, **unit))

    def evaluated(self, record: EvaluationRecord) -> None:
        say(describe_evaluation(record))

    def say(self, message: str) -> None:
        say(message)


class TerminalSweepReport(SweepReport):
    """Shows one bar over the steps of all trials, and prints a table with a line for every trial."""

    bar: Any = None

    def begin(self, first_step: int, total_steps: int) -> None:
        self.bar = tqdm(total=total_steps, unit="step", disable=None, dynamic_ncols=True)

    def round(self, num_trials: int, steps: int) -> None:
        say(f"\nround of {num_trials} trials, {steps} steps each\n{'P':>4} {'init':8}{'rate':>22}   held-out loss")

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        self.bar.set_postfix({"loss": three_digits(loss)}, refresh=False)
        self.bar.update()

    def trial(self, result: TrialResult, steps_done: int) -> None:
        # steps that an earlier run took, or that a diverged trial left out, are counted here
        self.bar.update(steps_done - self.bar.n)
        say(describe_trial(result))

    def end(self) -> None:
        self.bar.close()


class AnswerStream(BaseStreamer):
    """Prints an answer while it grows, so that in the end the terminal shows exactly the text of the whole answer.

    All ids so far are decoded together, since decoders treat the begin of a text in their own way. What later ids may
    change waits: the last word with the blank in front of it, and a character of which bytes are missing.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.ids: list[int] | None = None  # None until the question, which comes first, has passed
        self.printed = ""

    def put(self, value: Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.reshape(-1).tolist()
        text = text_of(self.ids, self.encoder)
        if text.startswith(self.printed):
            rest = text[len(self.printed) :]
            blank = rest.rfind(" ")
            self._print((rest if blank < 0 else rest[:blank]).rstrip("\ufffd"))

    def end(self) -> None:
        text = text_of(self.ids or [], self.encoder)
        if not text.startswith(self.printed):  # a decoder that changes what it gave: the whole answer, on a line anew
            text, self.printed = "\n" + text, ""
        self._print(text[len(self.printed) :])
        print(flush=True)

    def _print(self, text: str) -> None:
        """Print more of the answer, in which a control character other than a line break or tab is shown escaped."""
        self.printed += text
        print(visible_text(text), end="", flush=True)


class TerminalJobReport(JobReport):
    """Shows a bar over the rows of a file of questions; lines go to stderr, since stdout is for answers."""

    bar: Any = None

    def say(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is only shown
            print(visible(flags_in(message)), file=sys.stderr, flush=True)

    def begin(self, done: int, total: int) -> None:
        # `disable=None`: no bar where stderr is not a terminal, so a log file holds only whole lines
        self.bar = tqdm(total=total, initial=done, unit="row", disable=None, dynamic_ncols=True)

    def answered(self, rows: int) -> None:
        self.bar.update(rows)

    def end(self) -> None:
        self.bar.close()


class TerminalTeacherReport(TerminalJobReport):
    """Shows a bar while a teacher answers; lines go to stdout like all others of a run."""

    def say(self, message: str) -> None:
        say(visible(message), flags=False)
