"""A small, seeded search for P, learning rate and init by successive halving on held-out rows.

Every round trains its trials from the start, with twice the steps of the round before, and the better half goes on
(Jamieson and Talwalkar, 2016). The learning rate falls to zero within each run, so the trials of a round compare
fairly. A trial is a training run in the sweep's folder. The trials of a round are lanes: they take their steps
together and share each pass over the base. A lane's roundings depend on the lanes beside it, so a round is done as a
whole, which its file of losses shows, or goes on as a whole.
"""

import itertools
import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.base.loading import Base
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.config.options import decisive
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, tokens_that_fit, total_score
from softprompt.errors import Diverged, UserError
from softprompt.packs.families import can_pack
from softprompt.prompt.embedding import SoftPromptEmbedding, rms
from softprompt.prompt.file import load_prompt
from softprompt.prompt.start import initial_prompt
from softprompt.system.files import FileId, write_atomic, write_result
from softprompt.system.foreign import decode_json, read_json
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.tokens.row_hashes import rows_sha256
from softprompt.training.checkpoint import checkpoints, remove_checkpoint
from softprompt.training.lanes import run_lanes
from softprompt.training.objective import Objective
from softprompt.training.recipe import require_same_options
from softprompt.training.report import Report
from softprompt.training.run import prepare_lanes
from softprompt.training.run_folder import RECIPE_NAME, clear_temporaries

SAVES = 4  # checkpoints of a trial
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
        """A trial of a finished round; `steps_done` are the steps of all rounds so far, those of an earlier run too."""


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
            UserError: the sweep to resume has another recipe or prompt file, or its recipe is damaged.
        """
        self.config, self.base, self.rows, self.report = config, base, rows, report or SweepReport()
        self.objective = objective
        self.replaces: FileId | None = None  # the file that the prompt may replace at the end
        self.written = Path(config.prompt_file)  # where the prompt is, once it is written
        self.folder, recipe_file = config.sweep_folder, config.sweep_folder / RECIPE_NAME
        before: dict[str, Any] = {}
        if config.resume and recipe_file.exists():
            before = read_json(recipe_file, f"`resume`: {recipe_file} cannot be read; start anew with `overwrite`")
        # which lanes share a pass depends on it, so a search keeps what fitted into the memory when it started
        kept, longest = before.get("max_tokens_per_pass"), max(config.virtual_tokens)
        self.max_tokens = kept if isinstance(kept, int) and kept > 0 else tokens_that_fit(base.model, longest)
        recipe = decode_json(json.dumps(self._recipe()))
        if before:
            _require_same_recipe(before, recipe)
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
                results = self._round(trials[:count], steps)
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
        """Return what must be the same when a search is resumed, and with what it goes on: date and longest pass."""
        prompt_file = os.path.relpath(Path(self.config.prompt_file).resolve(), self.folder.resolve())
        rows = rows_sha256(self.rows.train_rows, self.rows.eval_rows)
        return {
            "options": decisive(self.config),
            "base_sha256": self.base.fingerprint.sha256,
            "data_sha256": rows,
            "teacher": self.objective.facts if self.objective else {},
            "prompt_file": prompt_file,
            "template_date": self.rows.encoder.template.date,
            "max_tokens_per_pass": self.max_tokens,
        }

    def _round(self, trials: Sequence[Trial], steps: int) -> list[TrialResult]:
        """Train the trials of a round together, unless a resumed sweep has already done so, and report them."""
        file = self._round_file(steps)
        losses = self._losses_of_round(file, trials, steps)
        if losses is None:
            losses = self._train(trials, steps)
            write_atomic(file, (json.dumps(losses, indent=1) + "\n").encode())
        self.steps_done += len(trials) * steps
        results = []
        for trial in trials:
            loss = losses[trial.name]
            results.append(TrialResult(trial, self._rate(trial), math.inf if loss is None else loss))
            self.report.trial(results[-1], self.steps_done)
        return results

    def _losses_of_round(self, file: Path, trials: Sequence[Trial], steps: int) -> dict[str, float | None] | None:
        """Return the losses of a round by the trials' names, None where one diverged, if the round is done."""
        try:
            losses = decode_json(file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        done = isinstance(losses, dict) and all(
            trial.name in losses and isinstance(losses[trial.name], int | float | None) for trial in trials
        )
        kept = done and all(self._prompt_file(each, steps).exists() for each in trials if losses[each.name] is not None)
        return losses if kept else None

    def _train(self, trials: Sequence[Trial], steps: int) -> dict[str, float | None]:
        """Train trials from the start, or from where a stopped sweep left them; return their losses by name."""
        losses: dict[str, float | None] = {}
        # without packs no pass is shared, and one after another needs the memory of one
        groups = [list(trials)] if can_pack(self.base.model) else [[trial] for trial in trials]
        for group in groups:
            for trial in group:
                self._prompt_file(trial, steps).unlink(missing_ok=True)
            configs = [self._config_of(trial, steps) for trial in group]
            reports = [TrialReport(self.report) for _ in group]
            outcomes = run_lanes(prepare_lanes(configs, self.base, self.rows_to_choose, reports, self.objective))
            for trial, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, Diverged):
                    self._prompt_file(trial, steps).unlink(missing_ok=True)  # that of a run that did not end
                    losses[trial.name] = None
                else:
                    losses[trial.name] = outcome.held_out.finite()["trained_prompt"]
        return losses

    def _rate(self, trial: Trial) -> float:
        return trial.relative_rate * rms(self._initial(trial).weight).item()

    @property
    def rows_to_choose(self) -> EncodedSplits:
        """The rows of a trial: those to train on and to choose by, but not the test rows."""
        return EncodedSplits(self.rows.encoder, self.rows.train, self.rows.held_out)

    def _config_of(self, trial: Trial, steps: int) -> TrainConfig:
        """Return the options of a trial's run."""
        shared = {name: getattr(self.config, name) for name in SHARED if name != "test_data"}
        return TrainConfig(
            **shared,
            prompt_file=str(self._prompt_file(trial, steps)),
            max_steps=steps,
            init=trial.init,
            virtual_tokens=trial.virtual_tokens,
            learning_rate=self._rate(trial),
            max_tokens_per_pass=str(self.max_tokens),
            save_steps=math.ceil(steps / SAVES),
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
            self._round_file(steps).unlink(missing_ok=True)
            file = self._prompt_file(trial, steps)
            file.unlink(missing_ok=True)
            for checkpoint in checkpoints(TrainConfig(prompt_file=str(file)).run_folder):
                remove_checkpoint(checkpoint)

    def _prompt_file(self, trial: Trial, steps: int) -> Path:
        return self.folder / f"{trial.name}-{steps}.safetensors"

    def _round_file(self, steps: int) -> Path:
        """The losses of a round; rounds of the same number of steps share one, since their trials are the same."""
        return self.folder / f"round-{steps}.json"

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
    options = before.get("options")
    require_same_options(options if isinstance(options, dict) else {}, now["options"])
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
