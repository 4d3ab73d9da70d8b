"""The training loop: it takes steps, logs, evaluates and saves.

The loss of a step is the sum over its supervised tokens divided by their number, however the step is cut into passes.
The base is held in the chosen precision; the prompt, its gradient and its optimizer state stay fp32.
"""

import math
import os
from pathlib import Path

import torch

from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.engine.families import recomputable_layers
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import pass_losses, tokens_that_fit
from softprompt.errors import Interrupted, UserError
from softprompt.prompt.file import prompt_bytes
from softprompt.system.files import write_atomic
from softprompt.system.process import deferred_signals
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.tokens.encoding import EncodedRow
from softprompt.training.checkpoint import (
    Checkpoint,
    open_run_folder,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from softprompt.training.optimizer import PromptOptimizer
from softprompt.training.recipe import Recipe, data_name, held_out_losses, prompt_metadata
from softprompt.training.report import Report
from softprompt.training.run_log import METRICS_NAME, RunLog
from softprompt.training.schedule import rate_factor, rows_of_step, total_steps
from softprompt.training.selection import Evaluator, Losses, Result, Selection

EVALUATIONS = 10  # in a run by default, not counting the one before the first step


class Trainer:
    """Trains the prompt of one model on encoded rows, in one run folder."""

    def __init__(
        self, model: SoftPromptModel, base: Base, rows: EncodedSplits, config: TrainConfig, report: Report | None = None
    ) -> None:
        """Prepare a run; no step is taken and nothing is written yet."""
        self.model, self.base, self.rows, self.config, self.report = model, base, rows, config, report or Report()
        self.weight = model.soft_prompt.weight
        self.recipe, self.data_name = Recipe.of(config, base, rows, self.weight), data_name(config.data)
        self.optimizer = PromptOptimizer(self.weight, config, scale_loss=base.precision == "fp16")
        if config.gradient_checkpointing:
            recomputable_layers(base.model)  # raises UserError if there are none
        limit = config.max_tokens_per_pass
        self.max_tokens = tokens_that_fit(base.model) if limit == "auto" else int(limit)
        num_rows = len(rows.train_rows)
        self.total = total_steps(num_rows, config.rows_per_step, config.num_train_epochs, config.max_steps)
        self.factor = rate_factor(config.lr_scheduler_type, self.total, config.warmup_steps)
        self.eval_steps = config.eval_steps or math.ceil(self.total / EVALUATIONS)
        self.selection = Selection(patience=config.early_stopping_patience)
        self.step, self.train_loss = 0, math.nan
        self.window = (0.0, 0)
        self.stop_signal: int | None = None

    def run(self) -> Result:
        """Train to the last step, or until the held-out losses end the run, and write the prompt file.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; the last whole step is saved.
            Diverged: the loss, the gradient or the prompt is no longer finite.
        """
        folder = open_run_folder(self.config)
        self.log = RunLog(folder / METRICS_NAME, first_step=self.step, window=self.window)
        self.evaluator = Evaluator(self.model, self.base.pad_token_id, self.log, self.report)
        self.report.begin(self.step, self.total)
        try:
            with deferred_signals(self._note_signal):
                if self.step == 0:
                    self.selection = Selection(patience=self.config.early_stopping_patience)
                    self.evaluator.start(self.selection, self.rows.held_out)
                self.log.start()
                while not self.ended and self.stop_signal is None:
                    self._advance(folder)
                self._save(folder)
                if not self.ended:
                    place = f"saved at step {self.step} of {self.total} in {folder}; go on with `resume`"
                    assert self.stop_signal is not None  # nothing else stops a run before its end
                    raise Interrupted(self.stop_signal, place)
                return self._finish()
        finally:
            self.report.end()

    @property
    def ended(self) -> bool:
        """Whether the last step is done, or the early stopping has run out of patience."""
        return self.step >= self.total or self.selection.exhausted

    def restore(self, saved: Checkpoint) -> None:
        """Restore a checkpoint: prompt, optimizer, random states, thread count, place in the data, held-out losses.

        Raises:
            UserError: the checkpoint is of a run with other options, another base, other data or another prompt file.
        """
        state = saved.state
        self.recipe.require_same(Recipe(**state["recipe"]))
        named = (self.config.run_folder / state["prompt_file"]).resolve()
        if named != Path(self.config.prompt_file).resolve():
            file = self.config.prompt_file
            raise UserError(f"`resume`: this run writes {named.name}, not {file}; give the same `prompt_file`")
        with torch.no_grad():
            self.weight.copy_(saved.prompt.weight)
        self.optimizer.load(state["optimizer"])
        self.selection = Selection(**state["selection"])
        self.data_name = saved.prompt.facts.data  # as at the start, since the same rows may have another name now
        self.step, self.train_loss = state["step"], state["train_loss"]
        self.window = tuple(state["window"])
        self.max_tokens = state["max_tokens_per_pass"]
        restore_random_states(state, self.base.device)

    def _advance(self, folder: Path) -> None:
        """Take one step and do what is due after it; a step that a signal cuts short is dropped."""
        config, factor = self.config, self.factor(self.step)
        places = rows_of_step(self.step, len(self.rows.train_rows), config.rows_per_step, config.seed)
        rows = [self.rows.train_rows[place] for place in places]
        supervised = sum(row.num_supervised for row in rows)
        loss_sum = self._accumulate(rows, supervised)
        if loss_sum is None:
            self.optimizer.discard()
            return
        grad_norm = self.optimizer.step(factor, where=f"step {self.step + 1}")
        self.step += 1
        self.train_loss = loss_sum / supervised
        self.log.add_step(loss_sum, supervised)
        self.report.step(self.train_loss, self.optimizer.rate * factor, self.log.tokens_per_second)
        self._after_step(folder, self.optimizer.rate * factor, grad_norm)

    def _after_step(self, folder: Path, rate: float, grad_norm: float) -> None:
        """Log, evaluate and save, each if it is due after this step."""
        config, last = self.config, self.step == self.total
        if self.step % config.logging_steps == 0 or last:
            epoch = self.step / math.ceil(len(self.rows.train_rows) / config.rows_per_step)
            record = self.log.end_window(self.step, epoch=epoch, learning_rate=rate, grad_norm=grad_norm)
            self.report.logged(record, self.total)
        if self.step % self.eval_steps == 0 or last:
            self.evaluator.after_step(self.selection, self.rows.eval_rows, self.step, last=last)
        if self.step % config.save_steps == 0:
            self._save(folder)

    def _accumulate(self, rows: list[EncodedRow], supervised: int) -> float | None:
        """Add up the gradient of the step's mean loss, pass by pass; return the loss sum, or None after a signal."""
        loss_sum = 0.0
        for loss in pass_losses(
            self.model,
            rows,
            max_tokens=self.max_tokens,
            rows_per_batch=self.config.per_device_train_batch_size,
            pad_token_id=self.base.pad_token_id,
            recompute=self.config.gradient_checkpointing,
        ):
            # divided by the tokens of the whole step, so that the passes add up to the gradient of the step's mean
            self.optimizer.backward(loss / supervised)
            loss_sum += loss.item()
            if self.stop_signal is not None:
                return None
        if not math.isfinite(loss_sum):
            raise self.optimizer.diverged(f"step {self.step + 1}", "loss")
        return loss_sum

    def _finish(self) -> Result:
        """Put the prompt to keep into the model, score it on the test rows, and write the prompt file."""
        selection, kept = self.selection, self.step
        if self.step < self.total:
            self.report.say(
                f"stopped at step {self.step} of {self.total}: {selection.stale} evaluations in a row"
                " without a lower held-out loss (`early_stopping_patience`)"
            )
        if selection.best is not None and not self.config.save_last:
            kept = selection.best_step
            with torch.no_grad():
                self.weight.copy_(selection.best)
        held_out = held_out_losses(selection.without_prompt, selection.curve, kept)
        test = self.evaluator.at_the_end(self.rows.test, self.step)
        result = Result(held_out, test, kept, selection.still_falling)
        write_atomic(self.config.prompt_file, self._prompt_bytes(result))
        return result

    def _save(self, folder: Path) -> None:
        """Write a checkpoint of the last whole step."""
        state = {
            "step": self.step,
            "train_loss": self.train_loss,
            "selection": self.selection.state(),
            "window": list(self.log.window),
            "recipe": vars(self.recipe),
            "prompt_file": os.path.relpath(Path(self.config.prompt_file).resolve(), folder.resolve()),
            "optimizer": self.optimizer.state(),
            "max_tokens_per_pass": self.max_tokens,
            **random_states(self.base.device),
        }
        losses = held_out_losses(self.selection.without_prompt, self.selection.curve, self.step)
        save_checkpoint(folder, self.step, self._prompt_bytes(Result(losses, Losses(), self.step)), state)

    def _prompt_bytes(self, result: Result) -> bytes:
        """Return the content of a prompt file: the prompt as it is now, with the metadata of `result`."""
        metadata = prompt_metadata(
            self.config,
            self.base,
            self.rows,
            self.recipe,
            result,
            data=self.data_name,
            num_virtual_tokens=len(self.weight),
            learning_rate=self.optimizer.rate,
            train_loss=self.train_loss if result.step == self.step > 0 else None,
            curve=self.selection.curve,
        )
        return prompt_bytes(self.model.soft_prompt, metadata.to_strings())

    def _note_signal(self, signum: int) -> None:
        """Note the first signal, after which the pass in progress ends and the run saves; the second stops at once."""
        if self.stop_signal is not None:
            raise Interrupted(signum, "stopped at once; the last checkpoint stands")
        self.stop_signal = signum
