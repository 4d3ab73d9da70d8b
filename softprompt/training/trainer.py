"""A run: the prompt of one model in one run folder, with its steps, log, evaluations and checkpoints.

`lanes.py` has the loop that calls it, for one run or for several that share their passes.

The loss of a step is the sum over its supervised tokens divided by their number, however the step is cut into passes.
The base is held in the chosen precision; the prompt, its gradient and its optimizer state stay fp32.
"""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.base.health import describe_fault
from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import tokens_that_fit
from softprompt.errors import Diverged, UserError
from softprompt.optim.schedule import rate_factor, rows_of_step, total_steps
from softprompt.packs.families import recomputable_layers
from softprompt.prompt.file import prompt_bytes
from softprompt.prompt.start import frequent_labels
from softprompt.system.files import FileId, write_result
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.tokens.encoding import EncodedRow
from softprompt.training.checkpoint import (
    Checkpoint,
    prune_checkpoints,
    restore_rng,
    rng_layout,
    rng_tensors,
    save_checkpoint,
)
from softprompt.training.lanes import run_lanes
from softprompt.training.objective import Objective
from softprompt.training.optimizer import PromptOptimizer
from softprompt.training.recipe import Recipe, data_name, held_out_losses, prompt_metadata
from softprompt.training.report import Report
from softprompt.training.run_folder import open_run_folder
from softprompt.training.run_log import METRICS_NAME, RunLog
from softprompt.training.selection import Evaluator, Losses, Result, Selection
from softprompt.training.state_file import Damaged, Layout, from_number, to_number

EVALUATIONS = 10  # in a run by default, not counting the one before the first step
MOST_NOT_FINITE = 3  # so many steps in a row that are not finite end a run
MOST_NUMBERS = 10  # row numbers that a line shows


class Trainer:
    """Trains the prompt of one model on encoded rows, in one run folder."""

    def __init__(
        self,
        model: SoftPromptModel,
        base: Base,
        rows: EncodedSplits,
        config: TrainConfig,
        report: Report | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Prepare a run; no step is taken and nothing is written yet. Without `objective` it is the cross-entropy."""
        self.model, self.base, self.rows, self.config, self.report = model, base, rows, config, report or Report()
        self.weight = model.soft_prompt.weight
        of_answers = config.init == "answers" and config.init_from is None
        self.init_ids = frequent_labels(rows.train_rows, len(self.weight)) if of_answers else []
        self.objective = objective or Objective(config, pad_token_id=base.pad_token_id)
        self.recipe = Recipe.of(config, base, rows, self.weight, self.objective.facts)
        self.data_name = "" if config.distill_questions else data_name(config.data)
        self.optimizer = PromptOptimizer(self.weight, config, scale_loss=base.precision == "fp16")
        if config.gradient_checkpointing:
            recomputable_layers(base.model)  # raises UserError if there are none
        limit = config.max_tokens_per_pass
        self.max_tokens = tokens_that_fit(base.model, len(model.front)) if limit == "auto" else int(limit)
        num_rows = len(rows.train_rows)
        self.total = total_steps(num_rows, config.rows_per_step, config.num_train_epochs, config.max_steps)
        self.factor = rate_factor(config.lr_scheduler_type, self.total, config.warmup_steps)
        self.eval_steps = config.eval_steps or math.ceil(self.total / EVALUATIONS)
        self.selection = Selection(patience=config.early_stopping_patience)
        self.step, self.train_loss = 0, math.nan
        self.window = (0.0, 0)
        self.not_finite = 0  # steps in a row, up to the last, that were not finite and not applied
        self.saved_step: int | None = None  # that of the last checkpoint
        self.whole = False  # whether nothing of the last step is still to be done
        self.is_open = False  # whether the run folder was made ready
        self.stop_signal: int | None = None
        self.replaces: FileId | None = None  # the file that the prompt may replace at the end
        self.written = Path(config.prompt_file)  # where the prompt is, once it is written

    def run(self) -> Result:
        """Train to the last step, or until the held-out losses end the run, and write the prompt file.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP arrived; the last whole step is saved.
            Diverged: the loss, the gradient or the prompt was not finite in three steps in a row; the best prompt is
                written.
            UserError: the base alone gives a loss that is not finite.
            OSError: the last checkpoint or the prompt cannot be written; without a checkpoint the prompt is.
        """
        (outcome,) = run_lanes([self])
        if isinstance(outcome, Diverged):
            raise outcome
        return outcome

    def open(self) -> None:
        """Make the run folder ready, begin the log, and tell the report."""
        folder = self.open_folder()
        self.log = RunLog(folder / METRICS_NAME, first_step=self.step, window=self.window, warn=self.report.say)
        self.evaluator = Evaluator(self.model, self.base, self.log, self.report, self.objective)
        self.report.begin(self.step, self.total)

    def open_folder(self) -> Path:
        """Make the run folder ready, once for a run, and return it; without `resume`, an earlier run is deleted."""
        if not self.is_open:
            open_run_folder(self.config)
        self.is_open = True
        return self.config.run_folder

    def start(self) -> None:
        """Score the held-out rows if no step was taken yet, and start the clock."""
        if self.step == 0:
            self.selection = Selection(patience=self.config.early_stopping_patience)
            self.evaluator.start(self.selection, self.rows.held_out)
        self.log.start()

    @property
    def is_running(self) -> bool:
        """Whether another step is to be taken."""
        return not self.ended and self.stop_signal is None

    @property
    def ended(self) -> bool:
        """Whether the last step is done, or the early stopping has run out of patience."""
        return self.step >= self.total or self.selection.exhausted

    def layout(self) -> Layout:
        """Return which tensors a checkpoint of this run may hold."""
        rows, columns = (range(size, size + 1) for size in self.weight.shape)
        prompt, evaluations = (torch.float32, (rows, columns)), range(self.total + 2)
        return {
            "prompt": prompt,
            "best": prompt,
            "curve_steps": (torch.int64, (evaluations,)),
            "curve_losses": (torch.float64, (evaluations,)),
            **rng_layout(self.base.device),
            **{f"optimizer.{name}": each for name, each in self.optimizer.layout().items()},
        }

    def restore(self, saved: Checkpoint) -> None:
        """Restore a checkpoint: prompt, optimizer, random states, thread count, place in the data, held-out losses.

        Raises:
            Damaged: what it holds does not fit together.
            UserError: the checkpoint is of a run with other options, another base, other data or another prompt file.
        """
        content, tensors = saved.content, saved.tensors
        self.recipe.require_same(Recipe(**content["recipe"]))
        prompt_file = Path(self.config.prompt_file)
        if content["prompt_file"] != self._prompt_file_seen_from(self.config.run_folder) and prompt_file.exists():
            raise UserError(
                f"`resume`: this run writes {content['prompt_file']}, seen from its folder, and {prompt_file} exists;"
                " give the same `prompt_file`, or a name that is free"
            )
        selection = _selection(content, tensors, patience=self.config.early_stopping_patience)
        optimizer = "optimizer."
        if not {"prompt", *rng_layout(self.base.device)} <= tensors.keys() or content["step"] > self.total:
            raise Damaged("it lacks something, or is beyond the last step")
        if not torch.isfinite(tensors["prompt"]).all():
            raise Damaged("its prompt is not finite")
        restore_rng(tensors, self.base.device)
        own = {name.removeprefix(optimizer): each for name, each in tensors.items() if name.startswith(optimizer)}
        self.optimizer.load(content, own, step=content["step"])
        with torch.no_grad():
            self.weight.copy_(tensors["prompt"])
        torch.set_num_threads(content["num_threads"])
        self.selection = selection
        self.data_name = content["data"]  # as at the start, since the same rows may have another name now
        self.step = self.saved_step = content["step"]
        self.train_loss, self.not_finite = from_number(content["train_loss"]), content["not_finite"]
        self.window = (from_number(content["loss_sum"]), content["supervised"])
        self.max_tokens = content["max_tokens_per_pass"]

    def _prompt_file_seen_from(self, folder: Path) -> str:
        """Return the path of the prompt file relative to the run folder, so that both may move together."""
        return os.path.relpath(Path(self.config.prompt_file).resolve(), folder.resolve())

    def next_rows(self) -> list[EncodedRow]:
        """Return the rows of the next step."""
        places = rows_of_step(self.step, len(self.rows.train_rows), self.config.rows_per_step, self.config.seed)
        return [self.rows.train_rows[place] for place in places]

    def advance(self, rows: list[EncodedRow], loss_sum: float) -> None:
        """Take the step whose gradient is there, and do what is due after it.

        Args:
            rows: those of the step.
            loss_sum: the loss summed over their supervised tokens.

        Raises:
            Diverged: too many steps in a row are not finite; the best prompt is written.
        """
        factor, supervised = self.factor(self.step), sum(row.num_supervised for row in rows)
        try:
            if not math.isfinite(loss_sum):
                raise self.optimizer.diverged(f"step {self.step + 1}", "loss")
            self.whole = False
            grad_norm = self.optimizer.step(factor, where=f"step {self.step + 1}")
        except Diverged as error:
            self.optimizer.discard()
            self._leave_out(rows, str(error))
            grad_norm = math.nan
        else:
            self.train_loss, self.not_finite = loss_sum / supervised, 0
            self.log.add_step(loss_sum, supervised)
            self.report.step(self.train_loss, self.optimizer.rate * factor, self.log.tokens_per_second)
        self.step += 1
        self._after_step(self.optimizer.rate * factor, grad_norm)
        self.whole = True

    def _leave_out(self, rows: list[EncodedRow], what: str) -> None:
        """Say that a step is not applied, and why; end the run if it is the third in a row, or all were so.

        Raises:
            UserError: the base alone gives no finite loss on any of the rows.
            Diverged: too many steps in a row; the best prompt is written.
        """
        alone = self.evaluator.not_finite(rows, with_prompt=False)
        if len(alone) == len(rows) and self.step == self.not_finite:  # no step was applied yet
            raise UserError(f"{what}; {describe_fault(self.base, alone)}")
        wrong = alone or self.evaluator.not_finite(rows, with_prompt=True) or rows
        line = f"{what}, with {_numbers(wrong)} of `data`"
        self.not_finite += 1
        last = self.step + 1 == self.total and self.not_finite == self.total
        if self.not_finite < MOST_NOT_FINITE and not last:
            self.report.say(f"warning: {line}; the step is not applied")
            return
        self.finish(scored=False)
        advice = f"lower `learning_rate` (it was {self.optimizer.rate:.3g})"
        if alone:
            advice = f"the base alone gives no finite loss there: {describe_fault(self.base, alone[:1])}"
        raise Diverged(
            f"{line}, as in {self.not_finite} steps in a row; {advice}",
            f"; the best prompt, of step {self.kept_step}, is in {self.written}",
        )

    def _after_step(self, rate: float, grad_norm: float) -> None:
        """Log, evaluate and save, each if it is due after this step."""
        config, last = self.config, self.step == self.total
        if self.step % config.logging_steps == 0 or last:
            epoch = self.step / math.ceil(len(self.rows.train_rows) / config.rows_per_step)
            record = self.log.end_window(self.step, epoch=epoch, learning_rate=rate, grad_norm=grad_norm)
            self.report.logged(record, self.total)
        if self.step % self.eval_steps == 0 or last:
            self.evaluator.after_step(self.selection, self.rows.eval_rows, self.step, last=last)
        if self.step % config.save_steps == 0 and not last:  # the last one is saved where it must succeed
            try:
                self.save()
            except OSError as error:
                reason = f"{error.filename or self.config.run_folder}: {error.strerror or error}"
                self.report.say(f"warning: {reason}; no checkpoint of step {self.step}, tried again at the next one")

    @property
    def kept_step(self) -> int:
        """The step of the prompt that the file gets."""
        return self.step if self.selection.best is None or self.config.save_last else self.selection.best_step

    def finish(self, *, scored: bool = True) -> Result:
        """Put the prompt to keep into the model, score it on the test rows if wanted, and write the prompt file."""
        selection, kept = self.selection, self.kept_step
        if scored and self.step < self.total:
            self.report.say(
                f"stopped at step {self.step} of {self.total}: {selection.stale} evaluations in a row"
                " without a lower held-out loss (`early_stopping_patience`)"
            )
        if selection.best is not None and not self.config.save_last:
            with torch.no_grad():
                self.weight.copy_(selection.best)
        held_out = held_out_losses(selection.without_prompt, selection.curve, kept)
        test = self.evaluator.at_the_end(self.rows.test, self.step) if scored else Losses()
        result = Result(held_out, test, kept, selection.still_falling)
        self.written = write_result(self.config.prompt_file, self._prompt_bytes(result), replaces=self.replaces)
        return result

    def save(self) -> None:
        """Write a checkpoint of the last whole step, unless it is written, and remove old ones.

        Raises:
            OSError: it cannot be written.
        """
        folder = self.config.run_folder
        if self.saved_step != self.step:
            content, tensors = self._state(folder)
            losses = held_out_losses(self.selection.without_prompt, self.selection.curve, self.step)
            prompt = self._prompt_bytes(Result(losses, Losses(), self.step))
            save_checkpoint(folder, self.step, prompt, content, tensors)
            self.saved_step = self.step
        # also if it was written already: the run that wrote it may have been killed before it removed the others
        with contextlib.suppress(OSError):  # a checkpoint too many only takes room
            prune_checkpoints(folder, self.step, self.config.save_total_limit)

    def _state(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a checkpoint holds: values with the types of `checkpoint.FIELDS`, and tensors."""
        selection, (loss_sum, supervised) = self.selection, self.log.window
        without = selection.without_prompt
        content = {
            "step": self.step,
            "train_loss": to_number(self.train_loss),
            "loss_sum": to_number(loss_sum),
            "supervised": supervised,
            "without_prompt": None if without is None else to_number(without),
            "best_step": selection.best_step,
            "stale": selection.stale,
            "not_finite": self.not_finite,
            "recipe": vars(self.recipe),
            "prompt_file": self._prompt_file_seen_from(folder),
            "data": self.data_name,
            "max_tokens_per_pass": self.max_tokens,
            "num_threads": torch.get_num_threads(),
            **self.optimizer.numbers(),
        }
        tensors = {
            "prompt": self.weight.detach(),
            "curve_steps": torch.tensor([step for step, _ in selection.curve], dtype=torch.int64),
            "curve_losses": torch.tensor([loss for _, loss in selection.curve], dtype=torch.float64),
            **rng_tensors(self.base.device),
            **{f"optimizer.{name}": each for name, each in self.optimizer.tensors().items()},
        }
        return content, tensors | ({} if selection.best is None else {"best": selection.best})

    def _prompt_bytes(self, result: Result) -> bytes:
        """Return the content of a prompt file: the prompt as it is now, with the metadata of `result`."""
        metadata = prompt_metadata(
            self.config,
            self.base,
            self.rows,
            self.recipe,
            result,
            data=self.data_name,
            init_ids=self.init_ids,
            learning_rate=self.optimizer.rate,
            train_loss=self.train_loss if result.step == self.step > 0 and math.isfinite(self.train_loss) else None,
            curve=self.selection.curve,
            teacher=self.objective.facts,
        )
        return prompt_bytes(self.model.soft_prompt, metadata.to_strings())


def _selection(content: dict[str, Any], tensors: dict[str, Tensor], *, patience: int | None) -> Selection:
    """Return the held-out losses of a checkpoint.

    Raises:
        Damaged: they do not fit together.
    """
    if not {"curve_steps", "curve_losses"} <= tensors.keys():
        raise Damaged("it has no held-out losses")
    steps, losses = tensors["curve_steps"].tolist(), tensors["curve_losses"].tolist()
    without = None if content["without_prompt"] is None else from_number(content["without_prompt"])
    best, best_step, stale = tensors.get("best"), content["best_step"], content["stale"]
    lowest = min((loss for loss in losses if math.isfinite(loss)), default=math.inf)
    selection = Selection(patience, without, [], lowest, best, best_step, stale)
    rising = all(a < b for a, b in zip(steps, steps[1:], strict=False))
    if len(steps) != len(losses) or not rising or (steps and not 0 <= steps[0] <= steps[-1] <= content["step"]):
        raise Damaged("its held-out losses do not fit together")
    selection.curve = list(zip(steps, losses, strict=True))
    fits = best is None or (dict(selection.curve).get(best_step) == lowest and bool(torch.isfinite(best).all()))
    if not fits or (best is None) != math.isinf(lowest) or stale > len(steps):
        raise Damaged("its best prompt does not fit its held-out losses")
    if (without is None) != (not steps):
        raise Damaged("its held-out losses do not fit together")
    return selection


def _numbers(rows: list[EncodedRow]) -> str:
    """Name rows by their numbers, of many only the first."""
    shown = ", ".join(str(row.number) for row in rows[:MOST_NUMBERS])
    more = f" and {len(rows) - MOST_NUMBERS} more" if len(rows) > MOST_NUMBERS else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
