"""The only loop: step, schedule, log, evaluate, save, resume.

A step's loss is the sum over its supervised tokens divided by their number, however the step is cut into passes. The
base is held in the chosen precision; the prompt, its gradient and its optimizer state stay fp32.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from softprompt.base import Base
from softprompt.checkpoint import (
    METRICS_NAME,
    Checkpoint,
    check_same_run,
    load_checkpoint,
    open_run_folder,
    save_checkpoint,
)
from softprompt.config import TrainConfig
from softprompt.encoding import EncodedRow
from softprompt.engine import recomputable_layers
from softprompt.errors import Interrupted, UserError
from softprompt.evaluation import mean_loss
from softprompt.files import write_atomic
from softprompt.model import SoftPromptModel
from softprompt.options import flag
from softprompt.passes import pass_losses, tokens_that_fit
from softprompt.progress import Progress
from softprompt.prompt import rms
from softprompt.prompt_file import prompt_bytes
from softprompt.schedule import rate_factor, rows_of_step, total_steps

# Adam moves a weight by about its rate per step, so a rate relative to the prompt's scale fits every embedding
RELATIVE_RATE = 0.3
# options that do not change what is learnt, so a resumed run may change them
FREE_ON_RESUME = {
    "model", "data", "eval_data", "prompt_file", "run_dir", "init_from", "allow_other_base", "logging_steps",
    "save_steps", "eval_steps", "device", "resume", "overwrite",
}  # fmt: skip


@dataclass(frozen=True)
class Losses:
    """Loss per supervised token on the held-out rows; None without held-out rows."""

    without_prompt: float | None = None
    initial_prompt: float | None = None
    trained_prompt: float | None = None


class Trainer:
    """Trains the prompt of one model on encoded rows, in one run folder."""

    def __init__(
        self,
        model: SoftPromptModel,
        base: Base,
        train_rows: list[EncodedRow],
        eval_rows: list[EncodedRow],
        config: TrainConfig,
    ) -> None:
        self.model, self.base, self.config = model, base, config
        self.train_rows, self.eval_rows = train_rows, eval_rows
        self.weight = model.soft_prompt.weight
        self.initial_sha256 = hashlib.sha256(self.weight.detach().cpu().numpy().tobytes()).hexdigest()
        self.rate = config.learning_rate or RELATIVE_RATE * rms(self.weight).item()
        self.optimizer = torch.optim.AdamW([self.weight], lr=self.rate, weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(base.device.type, enabled=base.precision == "fp16")
        if config.gradient_checkpointing:
            recomputable_layers(base.model)  # complains if there are none
        limit = config.max_tokens_per_pass
        self.max_tokens = tokens_that_fit(base.model) if limit == "auto" else int(limit)
        self.total = total_steps(len(train_rows), config.rows_per_step, config.num_train_epochs, config.max_steps)
        self.factor = rate_factor(config.lr_scheduler_type, self.total, config.warmup_steps)
        self.step = 0
        self.train_loss = math.nan
        self.losses = Losses()
        self.window = (0.0, 0)
        self.stop_signal: int | None = None

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint: prompt, optimizer, scaler, random states, thread count and place in the data.

        Raises:
            UserError: the checkpoint is damaged, or of a run with another recipe, base, data or prompt file.
        """
        saved: Checkpoint = load_checkpoint(folder)
        state = saved.state
        check_same_run(state, self.recipe, Path(self.config.prompt_file), self.config.run_folder)
        with torch.no_grad():
            self.weight.copy_(saved.prompt.weight)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.rate, self.train_loss = state["step"], state["rate"], state["train_loss"]
        self.losses, self.window = Losses(**state["losses"]), tuple(state["window"])
        self.max_tokens = state["max_tokens_per_pass"]
        torch.set_num_threads(state["num_threads"])
        torch.set_rng_state(state["rng"])
        if self.base.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.base.device)

    def run(self) -> Losses:
        """Train to the last step and write the prompt file.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the last whole step is saved.
            UserError: the loss or the gradient is no longer finite.
        """
        config = self.config
        folder = open_run_folder(config)
        self.progress = Progress(
            folder / METRICS_NAME, first_step=self.step, total_steps=self.total, window=self.window
        )
        try:
            with self._deferred_signals():
                if self.step == 0:
                    self._evaluate_start()
                self.progress.start()
                while self.step < self.total and self.stop_signal is None:
                    self._advance(folder)
                self._save(folder)
                if self.step < self.total:
                    place = f"saved at step {self.step} of {self.total} in {folder}; go on with --resume"
                    raise Interrupted(self.stop_signal, place)
                self._finish()
        finally:
            self.progress.close()
        return self.losses

    def _finish(self) -> None:
        """Held-out loss of the trained prompt, then the prompt file."""
        trained = self._held_out_loss(self.model)
        if trained is not None:
            self._report_held_out("with the trained prompt", trained)
        self.losses = dataclasses.replace(self.losses, trained_prompt=trained)
        write_atomic(self.config.prompt_file, prompt_bytes(self.model.soft_prompt, self._metadata()))

    def _advance(self, folder: Path) -> None:
        """One optimizer step with what is due after it; nothing is counted if a signal cuts it short."""
        config, step = self.config, self.step
        rate = self.rate * self.factor(step)
        places = rows_of_step(step, len(self.train_rows), config.rows_per_step, config.seed)
        rows = [self.train_rows[place] for place in places]
        supervised = sum(row.num_supervised for row in rows)
        self.optimizer.param_groups[0]["lr"] = rate
        loss_sum = self._accumulate(rows, supervised)
        if loss_sum is None:
            self.optimizer.zero_grad()
            return
        grad_norm = self._update()
        self.step = step + 1
        self.train_loss = loss_sum / supervised
        self.progress.step(loss_sum=loss_sum, supervised=supervised, learning_rate=rate)
        if self.step % config.logging_steps == 0 or self.step == self.total:
            epoch = self.step / math.ceil(len(self.train_rows) / config.rows_per_step)
            self.progress.log(self.step, epoch=epoch, learning_rate=rate, grad_norm=grad_norm)
        if config.eval_steps and self.step % config.eval_steps == 0 and self.eval_rows:
            self._report_held_out("with the prompt so far", self._held_out_loss(self.model))
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
            self.scaler.scale(loss / supervised).backward()
            loss_sum += loss.item()
            if self.stop_signal is not None:
                return None
        if not math.isfinite(loss_sum):
            raise UserError(self._diverged("loss"))
        return loss_sum

    def _update(self) -> float:
        """Clip, step, clear; returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.max_grad_norm or math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_([self.weight], limit).item()
        # fp16 skips a step that overflowed and halves the loss's scale; below 1 the scale is not what overflows
        if not math.isfinite(grad_norm) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise UserError(self._diverged("gradient"))
        self.scaler.step(self.optimizer)
        if not torch.isfinite(self.weight).all():
            raise UserError(self._diverged("prompt"))
        self.scaler.update()
        self.optimizer.zero_grad()
        return grad_norm

    def _diverged(self, what: str) -> str:
        return f"step {self.step + 1}: the {what} is not finite; lower --learning-rate (it was {self.rate:.3g})"

    def _evaluate_start(self) -> None:
        """Held-out loss of the base alone and of the untrained prompt."""
        if not self.eval_rows:
            return
        without, initial = self._held_out_loss(self.base.model), self._held_out_loss(self.model)
        self.losses = Losses(without_prompt=without, initial_prompt=initial)
        self._report_held_out("without a prompt", without)
        self._report_held_out("with the initial prompt", initial)

    def _held_out_loss(self, model: torch.nn.Module) -> float | None:
        if not self.eval_rows:
            return None
        return mean_loss(model, self.eval_rows, pad_token_id=self.base.pad_token_id)

    def _report_held_out(self, how: str, loss: float) -> None:
        self.progress.say(f"held-out loss {how}: {loss:.4f}")
        self.progress.record(step=self.step, eval_loss=loss, eval=how)

    def _save(self, folder: Path) -> None:
        """Write a checkpoint of the last whole step."""
        on_cuda = self.base.device.type == "cuda"
        state = {
            "step": self.step,
            "rate": self.rate,
            "train_loss": self.train_loss,
            "losses": dataclasses.asdict(self.losses),
            "window": list(self.progress.window),
            "recipe": self.recipe,
            "prompt_file": os.path.relpath(Path(self.config.prompt_file).resolve(), folder.resolve()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "num_threads": torch.get_num_threads(),
            "max_tokens_per_pass": self.max_tokens,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.base.device) if on_cuda else None,
        }
        save_checkpoint(folder, self.step, prompt_bytes(self.model.soft_prompt, self._metadata()), state)

    @functools.cached_property
    def recipe(self) -> dict[str, object]:
        """Everything that decides what is learnt, under the names that a complaint uses."""
        options = {flag(name): value for name, value in vars(self.config).items() if name not in FREE_ON_RESUME}
        return {
            "--model (SHA-256 of its weights)": self.base.fingerprint.sha256,
            **options,
            "--data (SHA-256 of its rows)": _rows_sha256(self.train_rows, self.eval_rows),
            "--virtual-tokens": self.model.soft_prompt.num_virtual_tokens,
            "--precision": self.base.precision,
            "--device": self.base.device.type,
            "--init (SHA-256 of the initial prompt)": self.initial_sha256,
        }

    def _metadata(self) -> dict[str, str]:
        """The prompt file's metadata: a function of the result, so no clock, host or count of resumes."""
        training = {
            "steps": self.step,
            "rows": len(self.train_rows),
            "rows_per_step": self.config.rows_per_step,
            "learning_rate": self.rate,
            "train_loss": self.train_loss if math.isfinite(self.train_loss) else None,
            "held_out_rows": len(self.eval_rows),
            "held_out_loss": dataclasses.asdict(self.losses),
        }
        from_file = self.config.init_from is not None
        return self.base.metadata | {
            "init": "file" if from_file else self.config.init,
            "init_text": self.config.init_text if self.config.init == "text" and not from_file else "",
            "template": "alpaca",
            "training": json.dumps(training, sort_keys=True),
        }

    @contextlib.contextmanager
    def _deferred_signals(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM only be noted; the second acts at once."""

        def note(signum: int, frame: object) -> None:
            if self.stop_signal is not None:
                raise Interrupted(signum, "stopped at once; the last checkpoint stands")
            self.stop_signal = signum

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _rows_sha256(*splits: list[EncodedRow]) -> str:
    """Hash of the encoded rows of all splits."""
    content = [[[row.input_ids, row.labels] for row in rows] for rows in splits]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
