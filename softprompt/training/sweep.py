"""A small, seeded search for P, rate and start by successive halving on held-out rows.

Every round trains its trials in full, with twice the steps of the round before, and the better half goes on (Jamieson
and Talwalkar, 2016); the rate falls to zero within each run, so the trials of a round compare fairly. A trial is a
run of `train.py` in the sweep's folder, and its prompt file is the record that it is done.
"""

import contextlib
import io
import itertools
import json
import math
import os
import random
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from softprompt.base.loading import Base
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.config.options import flag
from softprompt.data.row_hashes import rows_sha256
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import row_scores, total_score
from softprompt.errors import Diverged, UserError
from softprompt.prompt.embedding import SoftPromptEmbedding, rms
from softprompt.prompt.file import load_prompt
from softprompt.prompt.start import initial_prompt
from softprompt.system.files import write_atomic
from softprompt.training.checkpoint import check_same_recipe, last_checkpoint
from softprompt.training.rows import EncodedSplits
from softprompt.training.trainer import Trainer

LAST_ROUND = 3  # trials; with fewer there is little left to choose
SHARED = ("model", "data", "eval_data", "eval_fraction", "test_data", "init_text", "max_length", "precision", "seed")
SHARED += ("per_device_train_batch_size", "gradient_accumulation_steps", "device")
FREE_ON_RESUME = {
    "model",
    "data",
    "eval_data",
    "test_data",
    "prompt_file",
    "sweep_dir",
    "device",
    "resume",
    "overwrite",
}


@dataclass(frozen=True)
class Trial:
    """One combination; the rate is relative to the RMS of the initial prompt."""

    virtual_tokens: int
    relative_rate: float
    init: str

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.init}-{self.virtual_tokens}-{self.relative_rate:g}"


def choose_trials(config: SweepConfig) -> list[Trial]:
    """A seeded choice of `--max-trials` combinations."""
    grid = [Trial(*values) for values in itertools.product(config.virtual_tokens, config.relative_rates, config.init)]
    grid = list(dict.fromkeys(grid))
    return random.Random(config.seed).sample(grid, min(config.max_trials, len(grid)))


def plan_rounds(num_trials: int, max_steps: int) -> list[tuple[int, int]]:
    """Trials and steps of every round: half as many trials, twice the steps, up to `max_steps`."""
    counts = [num_trials]
    while counts[-1] > LAST_ROUND:
        counts.append(-(-counts[-1] // 2))
    return [(count, max(1, max_steps >> (len(counts) - 1 - place))) for place, count in enumerate(counts)]


class Search:
    """The rounds of one search, on one loaded base."""

    def __init__(self, config: SweepConfig, base: Base, rows: EncodedSplits, *, recipe_file: Path) -> None:
        """Note the recipe in the sweep's folder, or compare it with the one that is there.

        Raises:
            UserError: `--resume` of a sweep with another recipe or prompt file.
        """
        self.config, self.base, self.rows, self.folder = config, base, rows, config.sweep_folder
        options = {flag(name): value for name, value in vars(config).items() if name not in FREE_ON_RESUME}
        recipe = options | {
            "--model (SHA-256 of its weights)": base.fingerprint.sha256,
            "--data (SHA-256 of its rows)": rows_sha256(rows.train_rows, rows.eval_rows),
            "--prompt-file (seen from the sweep's folder)": os.path.relpath(
                Path(config.prompt_file).resolve(), self.folder.resolve()
            ),
        }
        recipe = json.loads(json.dumps(recipe))
        if config.resume and recipe_file.exists():
            check_same_recipe(json.loads(recipe_file.read_text("utf-8")), recipe)
        self.folder.mkdir(parents=True, exist_ok=True)
        Path(config.prompt_file).parent.mkdir(parents=True, exist_ok=True)
        if not config.resume:
            self._forget_trials()
        write_atomic(recipe_file, (json.dumps(recipe, indent=1) + "\n").encode())

    def run(self) -> None:
        """Hold the rounds, write the best trial's prompt, and say how it does on the test rows.

        Raises:
            UserError: no trial of a round has a finite loss.
        """
        trials, best_file = choose_trials(self.config), None
        for count, steps in plan_rounds(len(trials), self.config.max_steps):
            del trials[count:]
            print(
                f"\nround of {len(trials)} trials, {steps} steps each\n{'P':>4} {'init':8}{'rate':>22}   held-out loss",
                flush=True,
            )
            losses = {trial: self._loss(trial, steps) for trial in trials}
            trials = sorted((trial for trial in trials if losses[trial] < math.inf), key=losses.get)
            if not trials:
                raise UserError("--relative-rates: every trial diverged; give smaller ones")
            best_file = self._prompt_file(trials[0], steps)
        content = best_file.read_bytes()
        write_atomic(self.config.prompt_file, content)
        print(f"\nbest: {self._describe(trials[0], losses[trials[0]])}")
        self._say_test_loss(best_file)
        print(f"prompt written to {self.config.prompt_file}; the same by itself: {self._command(trials[0])}")

    def _loss(self, trial: Trial, steps: int) -> float:
        """The held-out loss of a trial's kept prompt, infinity if it diverged; what is finished is not run again."""
        file = self._prompt_file(trial, steps)
        try:
            if not (self.config.resume and file.exists()):
                with contextlib.redirect_stdout(io.StringIO()):
                    self._train(trial, steps, file)
            loss = json.loads(load_prompt(file).metadata["training"])["held_out_loss"]["trained_prompt"]
        except Diverged:
            loss = math.inf
        loss = math.inf if loss is None else loss
        print(self._describe(trial, loss), flush=True)
        return loss

    def _forget_trials(self) -> None:
        """Delete what an earlier sweep left of trials that are to be run: `--resume` would take it for this one's."""
        trials = choose_trials(self.config)
        for trial, (_, steps) in itertools.product(trials, plan_rounds(len(trials), self.config.max_steps)):
            file = self._prompt_file(trial, steps)
            file.unlink(missing_ok=True)
            run_folder = TrainConfig(prompt_file=str(file)).run_folder
            while (checkpoint := last_checkpoint(run_folder)) is not None:
                shutil.rmtree(checkpoint)

    def _train(self, trial: Trial, steps: int, file: Path) -> None:
        prompt = self._initial(trial)
        shared = {name: getattr(self.config, name) for name in SHARED}
        config = TrainConfig(
            **shared, prompt_file=str(file), max_steps=steps, init=trial.init, virtual_tokens=trial.virtual_tokens,
            learning_rate=self._rate(trial, prompt), save_steps=steps, resume=self.config.resume,
        )  # fmt: skip
        model = SoftPromptModel(self.base.model, prompt)
        trainer = Trainer(model, self.base, self.rows.train_rows, self.rows.eval_rows, config)
        checkpoint = last_checkpoint(config.run_folder) if config.resume else None
        if checkpoint is not None:
            trainer.restore(checkpoint)
        trainer.run()

    def _initial(self, trial: Trial) -> SoftPromptEmbedding:
        options = {"init": trial.init, "virtual_tokens": trial.virtual_tokens}
        config = TrainConfig(**options, init_text=self.config.init_text, seed=self.config.seed)
        return initial_prompt(config, self.base, self.rows.train_rows)

    def _rate(self, trial: Trial, prompt: SoftPromptEmbedding) -> float:
        return trial.relative_rate * rms(prompt.weight).item()

    def _prompt_file(self, trial: Trial, steps: int) -> Path:
        return self.folder / f"{trial.name}-{steps}.safetensors"

    def _describe(self, trial: Trial, loss: float) -> str:
        rate = f"{self._rate(trial, self._initial(trial)):.3g} ({trial.relative_rate:g} x RMS)"
        return f"{trial.virtual_tokens:4d} {trial.init:8}{rate:>22}   {loss:.4f}"

    def _say_test_loss(self, file: Path) -> None:
        """The one look at the test rows."""
        if not self.rows.test_rows:
            return
        model = SoftPromptModel(self.base.model, SoftPromptEmbedding.from_tensor(load_prompt(file).weight))
        score = total_score(row_scores(model, self.rows.test_rows, pad_token_id=self.base.pad_token_id))
        print(f"test loss with this prompt: {score.loss:.4f}  token accuracy {score.accuracy:.1%}")

    def _command(self, trial: Trial) -> str:
        """`train.py` with what differs from its defaults."""
        default = TrainConfig()
        words = {name: getattr(self.config, name) for name in SHARED}
        words |= {"virtual_tokens": trial.virtual_tokens, "init": trial.init, "max_steps": self.config.max_steps}
        words |= {"learning_rate": self._rate(trial, self._initial(trial))}
        given = [[flag(name), str(value)] for name, value in words.items() if value != getattr(default, name)]
        return shlex.join(["python", "train.py", *itertools.chain.from_iterable(given)])
