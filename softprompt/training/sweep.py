"""A small, seeded search for P, learning rate and init by successive halving on held-out rows.

Every round trains its trials from the start, with twice the steps of the round before, and the better half goes on
(Jamieson and Talwalkar, 2016). The learning rate falls to zero within each run, so the trials of a round compare
fairly. A trial is a training run in the sweep's folder, and its prompt file shows that it is done.
"""

import itertools
import json
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.base.loading import Base
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.config.options import decisive
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, total_score
from softprompt.errors import Diverged, UserError
from softprompt.prompt.embedding import SoftPromptEmbedding, rms
from softprompt.prompt.file import load_prompt
from softprompt.prompt.start import initial_prompt
from softprompt.system.files import FileId, write_atomic, write_result
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.tokens.row_hashes import rows_sha256
from softprompt.training.checkpoint import checkpoints, remove_checkpoint
from softprompt.training.objective import Objective
from softprompt.training.recipe import require_same_options
from softprompt.training.report import Report
from softprompt.training.run import prepare_run
from softprompt.training.run_folder import RECIPE_NAME, clear_temporaries

LAST_ROUND = 3  # most trials of the last round; with fewer there is little left to choose
# options that a sweep hands on to its runs as they are
SHARED = (
    "model", "data", "eval_data", "eval_fraction", "test_data", "columns", "data_config", "data_split",
    "max_train_rows", "init_text", "max_length", "precision", "seed", "template", "system", "last_turn_only",
    "placement", "per_device_train_batch_size", "gradient_accumulation_steps", "device", "distill_text",
    "distill_from_data", "distill_answers", "distill_new_tokens", "distill_questions", "distill_context",
    "distill_replay", "distill_temperature", "distill_ce",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One combination to try; the learning rate is relative to the RMS of the initial prompt."""

    virtual_tokens: int
    relative_rate: float
    init: str

    @property
    def name(self) -> str:
        """The beginning of the names of the trial's files."""
        return f"{self.init}-{self.virtual_tokens}-{self.relative_rate:g}"


@dataclass(frozen=True)
class TrialResult:
    """A finished trial, its absolute learning rate, and its held-out loss, which is infinity if it diverged."""

    trial: Trial
    learning_rate: float
    loss: float


@dataclass(frozen=True)
class SweepResult:
    """The best trial, its score on the test rows if there are any, and the options of a run that repeats it."""

    best: TrialResult
    test: Score | None
    options: dict[str, Any]


class SweepReport(Report):
    """Shows nothing of a search; a subclass shows what it overrides. Steps are counted over all trials."""

    def round(self, num_trials: int, steps: int) -> None:
        """A round of `num_trials` trials begins, each of `steps` steps."""

    def trial(self, result: TrialResult, steps_done: int) -> None:
        """A trial is finished, and with it `steps_done` of all steps, those of an earlier run included."""


class TrialReport(Report):
    """Passes the steps of one trial on to the report of the search, and nothing else."""

    def __init__(self, sweep: SweepReport) -> None:
        self.sweep = sweep

    def step(self, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        self.sweep.step(loss, learning_rate, tokens_per_second)


def choose_trials(config: SweepConfig) -> list[Trial]:
    """Return a seeded choice of at most `max_trials` combinations."""
    grid = [Trial(*values) for values in itertools.product(config.virtual_tokens, config.relative_rates, config.init)]
    grid = list(dict.fromkeys(grid))
    return random.Random(config.seed).sample(grid, min(config.max_trials, len(grid)))


def plan_rounds(num_trials: int, max_steps: int) -> list[tuple[int, int]]:
    """Return (trials, steps) of every round; each has half the trials and twice the steps, up to `max_steps`."""
    # halves are rounded up, and steps are halved from the last round back to the first
    counts = [num_trials]
    while counts[-1] > LAST_ROUND:
        counts.append(-(-counts[-1] // 2))
    return [(count, max(1, max_steps >> (len(counts) - 1 - place))) for place, count in enumerate(counts)]


class Search:
    """One search on one loaded base."""

    def __init__(
        self,
        config: SweepConfig,
        base: Base,
        rows: EncodedSplits,
        report: SweepReport | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Write the recipe into the sweep's folder; with `resume`, first compare it with the one that is there.

        Args:
            objective: what the steps of all trials minimise; None is the cross-entropy.

        Raises:
            UserError: the sweep to resume has another recipe or prompt file.
        """
        self.config, self.base, self.rows, self.report = config, base, rows, report or SweepReport()
        self.objective = objective
        self.replaces: FileId | None = None  # the file that the prompt may replace at the end
        self.written = Path(config.prompt_file)  # where the prompt is, once it is written
        self.folder, recipe_file = config.sweep_folder, config.sweep_folder / RECIPE_NAME
        recipe = json.loads(json.dumps(self._recipe()))
        if config.resume and recipe_file.exists():
            _require_same_recipe(json.loads(recipe_file.read_text("utf-8")), recipe)
        self.folder.mkdir(parents=True, exist_ok=True)
        Path(config.prompt_file).parent.mkdir(parents=True, exist_ok=True)
        clear_temporaries(Path(config.prompt_file), self.folder)
        if not config.resume:
            self._forget_trials()
        write_atomic(recipe_file, (json.dumps(recipe, indent=1) + "\n").encode())

    def run(self) -> SweepResult:
        """Run the rounds, write the best trial's prompt, and score it on the test rows.

        Raises:
            UserError: no trial of a round has a finite loss.
        """
        trials = choose_trials(self.config)
        rounds = plan_rounds(len(trials), self.config.max_steps)
        self.report.begin(0, sum(count * steps for count, steps in rounds))
        self.steps_done = 0
        try:
            for count, steps in rounds:
                self.report.round(count, steps)
                results = [self._result(trial, steps) for trial in trials[:count]]
                ranked = sorted((each for each in results if each.loss < math.inf), key=lambda each: each.loss)
                if not ranked:
                    raise UserError("`relative_rates`: every trial diverged; give smaller ones")
                trials = [each.trial for each in ranked]
        finally:
            self.report.end()
        best_file = self._prompt_file(trials[0], steps)
        self.written = write_result(self.config.prompt_file, best_file.read_bytes(), replaces=self.replaces)
        return SweepResult(ranked[0], self._test_score(best_file), self._options(ranked[0]))

    def _recipe(self) -> dict[str, Any]:
        """Return what must be the same when a search is resumed, and the date that its chat template was given."""
        prompt_file = os.path.relpath(Path(self.config.prompt_file).resolve(), self.folder.resolve())
        rows = rows_sha256(self.rows.train_rows, self.rows.eval_rows)
        return {
            "options": decisive(self.config),
            "base_sha256": self.base.fingerprint.sha256,
            "data_sha256": rows,
            "teacher": self.objective.facts if self.objective else {},
            "prompt_file": prompt_file,
            "template_date": self.rows.encoder.template.date,
        }

    def _result(self, trial: Trial, steps: int) -> TrialResult:
        """Train a trial, unless a resumed sweep has already done so, and read the loss from its prompt file."""
        file = self._prompt_file(trial, steps)
        rate = trial.relative_rate * rms(self._initial(trial).weight).item()
        try:
            if not (self.config.resume and file.exists()):
                config, report = self._config_of(trial, steps, rate), TrialReport(self.report)
                prepare_run(config, self.base, self.rows_to_choose, report, self.objective).run()
            losses = load_prompt(file).facts.training["held_out_loss"]
            loss = losses["trained_prompt"]
        except Diverged:
            file.unlink(missing_ok=True)  # its prompt is of a run that did not end, so it is no result of a trial
            loss = None
        result = TrialResult(trial, rate, math.inf if loss is None else loss)
        self.steps_done += steps
        self.report.trial(result, self.steps_done)
        return result

    @property
    def rows_to_choose(self) -> EncodedSplits:
        """The rows of a trial: those to train on and to choose by, but not the test rows."""
        return EncodedSplits(self.rows.encoder, self.rows.train, self.rows.held_out)

    def _config_of(self, trial: Trial, steps: int, rate: float) -> TrainConfig:
        """Return the options of a trial's run."""
        shared = {name: getattr(self.config, name) for name in SHARED if name != "test_data"}
        return TrainConfig(
            **shared,
            prompt_file=str(self._prompt_file(trial, steps)),
            max_steps=steps,
            init=trial.init,
            virtual_tokens=trial.virtual_tokens,
            learning_rate=rate,
            save_steps=steps,
            resume=self.config.resume,
        )

    def _initial(self, trial: Trial) -> SoftPromptEmbedding:
        config = TrainConfig(
            init=trial.init,
            virtual_tokens=trial.virtual_tokens,
            init_text=self.config.init_text,
            seed=self.config.seed,
        )
        text_ids = self.objective.text_ids if self.objective else ()
        return initial_prompt(config, self.base, self.rows.train_rows, text_ids)

    def _forget_trials(self) -> None:
        """Delete an earlier sweep's files of the trials that are planned; a later `resume` would take them for ours."""
        trials = choose_trials(self.config)
        for trial, (_, steps) in itertools.product(trials, plan_rounds(len(trials), self.config.max_steps)):
            file = self._prompt_file(trial, steps)
            file.unlink(missing_ok=True)
            for checkpoint in checkpoints(TrainConfig(prompt_file=str(file)).run_folder):
                remove_checkpoint(checkpoint)

    def _prompt_file(self, trial: Trial, steps: int) -> Path:
        return self.folder / f"{trial.name}-{steps}.safetensors"

    def _test_score(self, file: Path) -> Score | None:
        """Score the test rows, once in a search; return None if there are none."""
        if not self.rows.test_rows:
            return None
        prompt, encoder = SoftPromptEmbedding.from_tensor(load_prompt(file).weight), self.rows.encoder
        model = SoftPromptModel(self.base.model, prompt, encoder.before_ids, encoder.after_ids)
        objective = self.objective or Objective(TrainConfig(), pad_token_id=self.base.pad_token_id)
        return total_score(objective.scores(model, self.rows.test_rows))

    def _options(self, best: TrialResult) -> dict[str, Any]:
        """Return the options of a training run that gives the same prompt, leaving out defaults."""
        options = {name: getattr(self.config, name) for name in SHARED}
        options |= {"virtual_tokens": best.trial.virtual_tokens, "init": best.trial.init}
        options |= {"max_steps": self.config.max_steps, "learning_rate": best.learning_rate}
        default = TrainConfig()
        return {name: value for name, value in options.items() if value != getattr(default, name)}


def _require_same_recipe(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a `UserError` that names the first option or input that differs from when the sweep started."""
    require_same_options(before.get("options", {}), now["options"])
    messages = {
        "base_sha256": "`model`: these are not the weights that this sweep started with",
        "data_sha256": "`data`: these are not the rows that this sweep started with",
        "teacher": "`distill_text`: this sweep learns from another text",
        "prompt_file": f"`prompt_file`: seen from its folder, this sweep writes {before.get('prompt_file')}"
        f" and not {now['prompt_file']}",
    }
    for name, message in messages.items():
        if before.get(name, {}) != now[name]:  # a sweep of an earlier version had no teacher
            raise UserError(f"`resume`: {message}; give the same, or start anew with `overwrite`")
