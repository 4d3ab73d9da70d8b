"""What the held-out rows decide: which prompt of a run is kept, and when the run stops early.

The held-out losses choose the prompt, so they flatter it; take figures to report from other rows (`test_data`).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from softprompt.base.health import describe_fault
from softprompt.base.loading import Base
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, row_scores, total_score
from softprompt.errors import UserError
from softprompt.tokens.encoded_splits import EncodedSplit
from softprompt.tokens.encoding import EncodedRow
from softprompt.training.objective import Objective
from softprompt.training.report import Report
from softprompt.training.run_log import CURRENT, INITIAL, KEPT, NO_PROMPT, TRAINED, EvaluationRecord, RunLog


@dataclass(frozen=True)
class Losses:
    """Losses per supervised token on rows that were not trained on; each is None if it was not measured."""

    without_prompt: float | None = None
    initial_prompt: float | None = None
    trained_prompt: float | None = None

    def finite(self) -> dict[str, float | None]:
        """Return the losses by name, with None for those that are not finite, since JSON has no such numbers."""
        losses = dataclasses.asdict(self).items()
        return {name: None if loss is None or not math.isfinite(loss) else loss for name, loss in losses}


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        held_out: losses on the held-out rows, which chose the prompt.
        test: losses on the test rows, which neither trained nor chose it.
        step: the step after which the prompt was as it is kept.
        still_falling: whether the held-out loss was still falling when the run ended.
    """

    held_out: Losses
    test: Losses
    step: int
    still_falling: bool = False


# if the last evaluation brought more than this share of the gain of the whole run, more steps would help
STILL_FALLING_SHARE = 0.05


@dataclass
class Selection:
    """The held-out losses of a run so far, and the prompt that had the lowest.

    Attributes:
        patience: a run stops after this many evaluations in a row without a lower loss; None: it does not.
        without_prompt: loss per supervised token of the base alone.
        curve: (step, loss) of every evaluation; step 0 is the initial prompt.
        best_loss: the lowest finite loss so far; infinity if there is none.
        best: the prompt with the lowest loss, `[P, H]` on the CPU, as it was after `best_step` steps.
        stale: number of evaluations since the lowest loss.
    """

    patience: int | None = None
    without_prompt: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best: Tensor | None = None
    best_step: int = 0
    stale: int = 0

    def add(self, step: int, loss: float, prompt: Tensor) -> None:
        """Record the held-out loss of `prompt` after `step` steps; a loss that is not finite is never the best."""
        if math.isfinite(loss) and loss < self.best_loss:
            self.best_loss = loss
            self.best, self.best_step, self.stale = prompt.detach().cpu().clone(), step, 0
        else:
            self.stale += 1
        self.curve.append((step, loss))

    @property
    def initial_loss(self) -> float | None:
        """The loss of the initial prompt; None before the first evaluation."""
        return self.curve[0][1] if self.curve else None

    @property
    def still_falling(self) -> bool:
        """Whether the last evaluation has the lowest loss and brought a clear part of the gain over the whole run."""
        if len(self.curve) < 3 or self.best_step != self.curve[-1][0]:
            return False
        (_, first), *_, (_, before), (_, last) = self.curve
        return before - last > STILL_FALLING_SHARE * (first - last)

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations brought no lower loss."""
        return self.patience is not None and self.stale >= self.patience


class Evaluator:
    """Scores rows for a run, passes the figures to log and report, and lets the held-out rows choose the prompt."""

    def __init__(self, model: SoftPromptModel, base: Base, log: RunLog, report: Report, objective: Objective) -> None:
        self.model, self.base, self.log, self.report, self.objective = model, base, log, report, objective

    def start(self, selection: Selection, held_out: EncodedSplit) -> None:
        """Score the held-out rows before the first step, with the base alone and with the untrained prompt.

        Raises:
            UserError: the base alone has no finite loss on them, so no prompt can be chosen.
        """
        if held_out.rows:
            selection.without_prompt = self._measure_alone(held_out, 0, "eval").loss
            if not math.isfinite(selection.without_prompt):
                wrong = self.not_finite(held_out.for_base, with_prompt=False)
                raise UserError(describe_fault(self.base, wrong))
            self._choose(selection, held_out.rows, 0, INITIAL)

    def after_step(self, selection: Selection, rows: Sequence[EncodedRow], step: int, *, last: bool) -> None:
        """Score the held-out rows with the prompt as it is now."""
        if rows:
            self._choose(selection, rows, step, TRAINED if last else CURRENT)

    def at_the_end(self, test: EncodedSplit, step: int) -> Losses:
        """Score the test rows, once in a run, with the base alone and with the prompt that was kept."""
        if not test.rows:
            return Losses()
        without = self._measure_alone(test, step, "test").loss
        return Losses(without, None, self._measure(self.model, test.rows, step, "test", KEPT).loss)

    def not_finite(self, rows: Sequence[EncodedRow], *, with_prompt: bool) -> list[EncodedRow]:
        """Return the rows whose loss is not finite, with the prompt as it is now or with the base alone."""
        model = self.model if with_prompt else self.model.base_model
        with self.log.paused():
            scores = row_scores(model, rows, pad_token_id=self.base.pad_token_id)
        return [row for row, score in zip(rows, scores, strict=True) if not math.isfinite(score.loss_sum)]

    def _choose(self, selection: Selection, rows: Sequence[EncodedRow], step: int, prompt: str) -> None:
        score = self._measure(self.model, rows, step, "eval", prompt)
        selection.add(step, score.loss, self.model.soft_prompt.weight)

    def _measure_alone(self, split: EncodedSplit, step: int, name: str) -> Score:
        return self._measure(self.model.base_model, split.for_base, step, name, NO_PROMPT, of=split.rows)

    def _measure(
        self,
        model: SoftPromptModel | PreTrainedModel,
        rows: Sequence[EncodedRow],
        step: int,
        split: str,
        prompt: str,
        of: Sequence[EncodedRow] = (),
    ) -> Score:
        """Score the rows, and pass loss and token accuracy to report and log; the time does not count as training."""
        with self.log.paused():
            score = total_score(self.objective.scores(model, rows, of=of, advance=self.report.scoring))
        record = EvaluationRecord(step, split, prompt, score.loss, score.accuracy)
        self.report.evaluated(record)
        self.log.write(record)
        return score
