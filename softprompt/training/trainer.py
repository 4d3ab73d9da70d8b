"""The only loop: step, schedule, log, evaluate, save, resume.

A step's loss is the sum over its supervised tokens divided by their number, however the step is cut into passes. The
base is held in the chosen precision; the prompt, its gradient and its optimizer state stay fp32.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.config.options import flag
from softprompt.data.encoding import EncodedRow
from softprompt.data.row_hashes import rows_sha256, sketch_of
from softprompt.engine.families import recomputable_layers
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import pass_losses, row_scores, tokens_that_fit, total_score
from softprompt.errors import Interrupted
from softprompt.prompt.file import prompt_bytes
from softprompt.prompt.start import frequent_labels
from softprompt.system.files import write_atomic
from softprompt.system.process import deferred_signals
from softprompt.training.checkpoint import (
    METRICS_NAME,
    Checkpoint,
    check_same_run,
    load_checkpoint,
    open_run_folder,
    save_checkpoint,
)
from softprompt.training.optimizer import PromptOptimizer
from softprompt.training.run_log import Progress
from softprompt.training.schedule import rate_factor, rows_of_step, total_steps
from softprompt.training.selection import Losses, Result, Selection

# held-out losses of a run, after the first
EVALUATIONS = 10
# options that do not change what is learnt, so a resumed run may change them
FREE_ON_RESUME = {
    "model", "data", "eval_data", "test_data", "eval_generate", "prompt_file", "run_dir", "init_from",
    "allow_other_base", "logging_steps", "save_steps", "device", "resume", "overwrite",
}  # fmt: skip


class Trainer:
    """Trains the prompt of one model on encoded rows, in one run folder."""

    def __init__(
        self,
        model: SoftPromptModel,
        base: Base,
        train_rows: list[EncodedRow],
        eval_rows: list[EncodedRow],
        config: TrainConfig,
        *,
        test_rows: Sequence[EncodedRow] = (),
    ) -> None:
        """Prepare a run; nothing is computed or written yet.

        Args:
            eval_rows: held-out rows, which choose the prompt that is kept; may be empty.
            test_rows: rows for one last figure, which choose nothing; may be empty.
        """
        self.model, self.base, self.config = model, base, config
        self.train_rows, self.eval_rows, self.test_rows = train_rows, eval_rows, list(test_rows)
        self.weight = model.soft_prompt.weight
        self.initial_sha256 = hashlib.sha256(self.weight.detach().cpu().numpy().tobytes()).hexdigest()
        self.optimizer = PromptOptimizer(self.weight, config, scale_loss=base.precision == "fp16")
        if config.gradient_checkpointing:
            recomputable_layers(base.model)  # complains if there are none
        limit = config.max_tokens_per_pass
        self.max_tokens = tokens_that_fit(base.model) if limit == "auto" else int(limit)
        self.total = total_steps(len(train_rows), config.rows_per_step, config.num_train_epochs, config.max_steps)
        self.factor = rate_factor(config.lr_scheduler_type, self.total, config.warmup_steps)
        self.eval_steps = config.eval_steps or math.ceil(self.total / EVALUATIONS)
        self.selection = Selection(patience=config.early_stopping_patience)
        self.step = 0
        self.train_loss = math.nan
        self.window = (0.0, 0)
        self.stop_signal: int | None = None

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint: prompt, optimizer, random states, thread count, place in the data, held-out losses.

        Raises:
            UserError: the checkpoint is damaged, or of a run with another recipe, base, data or prompt file.
        """
        saved: Checkpoint = load_checkpoint(folder)
        state = saved.state
        check_same_run(state, self.recipe, Path(self.config.prompt_file), self.config.run_folder)
        with torch.no_grad():
            self.weight.copy_(saved.prompt.weight)
        self.optimizer.load(state["optimizer"])
        self.selection = Selection(**state["selection"])
        self.step, self.train_loss = state["step"], state["train_loss"]
        self.window = tuple(state["window"])
        self.max_tokens = state["max_tokens_per_pass"]
        torch.set_num_threads(state["num_threads"])
        torch.set_rng_state(state["rng"])
        if self.base.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.base.device)

    def run(self) -> Result:
        """Train to the last step, or until held-out losses say stop, and write the prompt file.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the last whole step is saved.
            Diverged: the loss or the gradient is no longer finite.
        """
        folder = open_run_folder(self.config)
        self.progress = Progress(
            folder / METRICS_NAME, first_step=self.step, total_steps=self.total, window=self.window
        )
        try:
            with deferred_signals(self._note_signal):
                if self.step == 0:
                    self._evaluate_start()
                self.progress.start()
                while not self._ended and self.stop_signal is None:
                    self._advance(folder)
                self._save(folder)
                if not self._ended:
                    place = f"saved at step {self.step} of {self.total} in {folder}; go on with --resume"
                    raise Interrupted(self.stop_signal, place)
                if self.step < self.total:
                    self.progress.say(
                        f"stopped at step {self.step} of {self.total}: {self.selection.stale} evaluations in a row"
                        " without a lower held-out loss (--early-stopping-patience)"
                    )
                return self._finish()
        finally:
            self.progress.close()

    @property
    def _ended(self) -> bool:
        return self.step >= self.total or self.selection.exhausted

    def _finish(self) -> Result:
        """Put the kept prompt into the model, score it on the test rows, and write the prompt file."""
        selection, kept = self.selection, self.step
        if selection.best is not None and not self.config.save_last:
            kept = selection.best_step
            with torch.no_grad():
                self.weight.copy_(selection.best)
        result = Result(self._held_out_losses(kept), self._test_losses(), kept, selection.still_falling)
        write_atomic(self.config.prompt_file, prompt_bytes(self.model.soft_prompt, self._metadata(result)))
        return result

    def _advance(self, folder: Path) -> None:
        """One optimizer step with what is due after it; nothing is counted if a signal cuts it short."""
        config, step, factor = self.config, self.step, self.factor(self.step)
        places = rows_of_step(step, len(self.train_rows), config.rows_per_step, config.seed)
        rows = [self.train_rows[place] for place in places]
        supervised = sum(row.num_supervised for row in rows)
        loss_sum = self._accumulate(rows, supervised)
        if loss_sum is None:
            self.optimizer.discard()
            return
        grad_norm = self.optimizer.step(factor, where=f"step {step + 1}")
        self.step = step + 1
        self.train_loss = loss_sum / supervised
        rate = self.optimizer.rate * factor
        self.progress.step(loss_sum=loss_sum, supervised=supervised, learning_rate=rate)
        if self.step % config.logging_steps == 0 or self.step == self.total:
            epoch = self.step / math.ceil(len(self.train_rows) / config.rows_per_step)
            self.progress.log(self.step, epoch=epoch, learning_rate=rate, grad_norm=grad_norm)
        if self.eval_rows and (self.step % self.eval_steps == 0 or self.step == self.total):
            self._evaluate("with the trained prompt" if self.step == self.total else "with the prompt so far")
        if self.step % config.save_steps == 0:
            self._save(folder)

    def _accumulate(self, rows: list[EncodedRow], supervised: int) -> float | None:
        """Gradient of the step's mean loss, pass by pass; returns the loss sum, or None when asked to stop."""
        loss_sum = 0.0
        for loss in pass_losses(
            self.model,
            rows,
            max_tokens=self.max_tokens,
            rows_per_batch=self.config.per_device_train_batch_size,
            pad_token_id=self.base.pad_token_id,
            recompute=self.config.gradient_checkpointing,
        ):
            self.optimizer.backward(loss / supervised)
            loss_sum += loss.item()
            if self.stop_signal is not None:
                return None
        if not math.isfinite(loss_sum):
            raise self.optimizer.diverged(f"step {self.step + 1}", "loss")
        return loss_sum

    def _evaluate_start(self) -> None:
        """Held-out loss of the base alone and of the untrained prompt."""
        if not self.eval_rows:
            return
        self.selection = Selection(patience=self.config.early_stopping_patience)  # as when a run stopped at step 0
        self.selection.without_prompt = self._measure(self.base.model, self.eval_rows, "held-out", "without a prompt")
        self._evaluate("with the initial prompt")

    def _evaluate(self, how: str) -> None:
        """Held-out loss of the prompt as it is now."""
        self.selection.add(self.step, self._measure(self.model, self.eval_rows, "held-out", how), self.weight)

    def _held_out_losses(self, kept: int) -> Losses:
        """With the loss of the prompt of step `kept`."""
        selection = self.selection
        return Losses(selection.without_prompt, selection.initial_loss, dict(selection.curve).get(kept))

    def _test_losses(self) -> Losses:
        """The one look at the test rows."""
        if not self.test_rows:
            return Losses()
        without = self._measure(self.base.model, self.test_rows, "test", "without a prompt")
        return Losses(without, None, self._measure(self.model, self.test_rows, "test", "with the kept prompt"))

    def _measure(self, model: torch.nn.Module, rows: list[EncodedRow], split: str, how: str) -> float:
        """Loss per supervised token, shown and recorded with its token accuracy."""
        with self.progress.paused():
            score = total_score(row_scores(model, rows, pad_token_id=self.base.pad_token_id))
        self.progress.say(f"{split} loss {how}: {score.loss:.4f}  token accuracy {score.accuracy:.1%}")
        key = "eval" if split == "held-out" else split
        self.progress.record(step=self.step, **{f"{key}_loss": score.loss, f"{key}_accuracy": score.accuracy, key: how})
        return score.loss

    def _save(self, folder: Path) -> None:
        """Write a checkpoint of the last whole step."""
        on_cuda = self.base.device.type == "cuda"
        state = {
            "step": self.step,
            "train_loss": self.train_loss,
            "selection": self.selection.state(),
            "window": list(self.progress.window),
            "recipe": self.recipe,
            "prompt_file": os.path.relpath(Path(self.config.prompt_file).resolve(), folder.resolve()),
            "optimizer": self.optimizer.state(),
            "num_threads": torch.get_num_threads(),
            "max_tokens_per_pass": self.max_tokens,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.base.device) if on_cuda else None,
        }
        metadata = self._metadata(Result(self._held_out_losses(self.step), Losses(), self.step))
        save_checkpoint(folder, self.step, prompt_bytes(self.model.soft_prompt, metadata), state)

    def _note_signal(self, signum: int) -> None:
        """The first one lets the step end; the second acts at once."""
        if self.stop_signal is not None:
            raise Interrupted(signum, "stopped at once; the last checkpoint stands")
        self.stop_signal = signum

    @functools.cached_property
    def recipe(self) -> dict[str, object]:
        """Everything that decides what is learnt, under the names that a complaint uses."""
        options = {flag(name): value for name, value in vars(self.config).items() if name not in FREE_ON_RESUME}
        return {
            "--model (SHA-256 of its weights)": self.base.fingerprint.sha256,
            **options,
            "--data (SHA-256 of the training rows)": rows_sha256(self.train_rows),
            "--eval-data (SHA-256 of the held-out rows)": rows_sha256(self.eval_rows),
            "--test-data (SHA-256 of the test rows)": rows_sha256(self.test_rows),
            "--virtual-tokens": self.model.soft_prompt.num_virtual_tokens,
            "--precision": self.base.precision,
            "--device": self.base.device.type,
            "--init (SHA-256 of the initial prompt)": self.initial_sha256,
        }

    def _metadata(self, result: Result) -> dict[str, str]:
        """The prompt file's metadata: a function of the result, so no clock, host or count of resumes."""
        training = {
            "steps": result.step,
            "rows": len(self.train_rows),
            "rows_per_step": self.config.rows_per_step,
            "optim": self.config.optim,
            "learning_rate": self.optimizer.rate,
            "train_loss": self.train_loss if result.step == self.step > 0 else None,
            "seed": self.config.seed,
            "held_out_rows": len(self.eval_rows),
            "held_out_loss": result.held_out.finite(),
            "curve": [[step, loss if math.isfinite(loss) else None] for step, loss in self.selection.curve],
            "test_rows": len(self.test_rows),
            "test_loss": result.test.finite(),
        }
        from_file = self.config.init_from is not None
        sketches = {"train": sketch_of(self.train_rows), "held_out": sketch_of(self.eval_rows)}
        of_answers = self.config.init == "answers" and not from_file
        return self.base.metadata | {
            "rows_sketch": json.dumps(sketches),
            "init_ids": json.dumps(frequent_labels(self.train_rows, len(self.weight))) if of_answers else "",
            "init": "file" if from_file else self.config.init,
            "init_text": self.config.init_text if self.config.init == "text" and not from_file else "",
            "template": "alpaca",
            "training": json.dumps(training, sort_keys=True),
        }
