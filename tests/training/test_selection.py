"""Which prompt of a run is kept, when a run stops early, and what a last figure may look at."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.training import mean_loss, trainer_for

from softprompt import SoftPromptModel, load_prompt
from softprompt.cli.text import describe_result
from softprompt.engine.passes import Score
from softprompt.tokens.encoded_splits import EncodedSplit
from softprompt.training import objective as objective_module
from softprompt.training import selection as selection_module
from softprompt.training.report import Report
from softprompt.training.selection import Losses, Result, Selection

# so high a rate that the held-out loss rises again within a run
RISING = {
    "optim": "adamw",
    "eval_fraction": 0.3,
    "num_train_epochs": 12,
    "learning_rate": 3.0,
    "lr_scheduler_type": "constant",
}


def filled(losses, **options):
    selection = Selection(**options)
    for step, loss in enumerate(losses):
        selection.add(step, loss, torch.full((1, 2), float(step)))
    return selection


def test_the_lowest_loss_is_kept_and_a_loss_that_is_not_finite_never():
    selection = filled([3.0, math.nan, 2.0, math.inf, 2.0, 2.5])
    assert selection.best_step == 2 and selection.best_loss == 2.0
    assert torch.equal(selection.best, torch.full((1, 2), 2.0))


def test_the_kept_prompt_does_not_follow_the_one_in_training():
    weight = torch.zeros(1, 2)
    selection = Selection()
    selection.add(0, 1.0, weight)
    weight += 1
    assert torch.equal(selection.best, torch.zeros(1, 2))


def test_patience_counts_evaluations_without_a_lower_loss():
    assert not filled([3.0, 3.1], patience=2).exhausted
    assert filled([3.0, 3.1, 3.0], patience=2).exhausted
    assert not filled([3.0, 3.1, 2.9, 3.0], patience=2).exhausted
    assert not filled([1.0] * 50).exhausted


def test_the_file_holds_the_best_prompt_and_with_save_last_the_last(model_folder, rows_file, tmp_path):
    ends = {}
    for last in (False, True):
        trainer = trainer_for(model_folder, rows_file, tmp_path / str(last), save_last=last, **RISING)
        result = trainer.run()
        ends[last] = (result, trainer.selection)
        file = load_prompt(tmp_path / str(last) / "p.safetensors")
        assert torch.equal(file.weight, trainer.weight)
        # 1e-6: the same prompt on the same rows in the same order
        assert abs(mean_loss(trainer.model, trainer.rows.eval_rows) - result.held_out.trained_prompt) < 1e-6
        training = json.loads(file.metadata["training"])
        assert training["steps"] == result.step and training["curve"] == [
            list(pair) for pair in trainer.selection.curve
        ]
        assert training["optim"] == RISING["optim"]
        # that of the last step says nothing of an earlier prompt
        assert training["train_loss"] == (trainer.train_loss if last else None)
    (best, selection), (last, same) = ends[False], ends[True]
    assert selection.curve == same.curve  # what is kept does not change what is learnt
    assert best.held_out.trained_prompt == min(loss for _, loss in selection.curve) < last.held_out.trained_prompt
    assert last.held_out.trained_prompt == selection.curve[-1][1]


def test_the_file_is_json_whatever_the_losses(model_folder, rows_file, tmp_path, monkeypatch):
    def scores(model, *_, **__):
        return [Score(math.nan if isinstance(model, SoftPromptModel) else 1.0, 0, 1)]

    for module in (selection_module, objective_module):
        monkeypatch.setattr(module, "row_scores", scores)
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", **RISING)
    trainer.rows = dataclasses.replace(trainer.rows, test=EncodedSplit(trainer.rows.train_rows[:3]))
    result = trainer.run()
    assert result.step == trainer.total  # nothing was better
    text = load_prompt(tmp_path / "run" / "p.safetensors").metadata["training"]
    training = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    losses = [training[name] for name in ("held_out_loss", "test_loss")]
    assert [each.pop("without_prompt") for each in losses] == [1.0, 1.0]
    assert set(losses[0].values()) == set(losses[1].values()) == {None}


class Heard(Report):
    """Keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def test_early_stopping_ends_the_run_says_so_and_keeps_the_best(model_folder, rows_file, tmp_path):
    options = RISING | {"eval_steps": 1, "num_train_epochs": 400}
    options |= {"early_stopping_patience": 3, "report": Heard()}
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", **options)
    result = trainer.run()
    losses = [loss for _, loss in trainer.selection.curve]
    assert trainer.step == result.step + 3 < trainer.total
    (said,) = trainer.report.lines
    assert said.startswith(f"stopped at step {trainer.step} of {trainer.total}: 3 evaluations in a row")
    assert said.endswith("(`early_stopping_patience`)")
    assert min(losses) == losses[result.step] and all(loss >= min(losses) for loss in losses[-3:])


def test_test_rows_are_scored_once_with_the_kept_prompt_and_change_nothing(model_folder, rows_file, tmp_path):
    plain = trainer_for(model_folder, rows_file, tmp_path / "plain", **RISING)
    before = plain.run()
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", **RISING)
    trainer.rows = dataclasses.replace(trainer.rows, test=EncodedSplit(trainer.rows.train_rows[:3]))
    result = trainer.run()
    assert result.held_out == before.held_out and torch.equal(plain.weight, trainer.weight)
    assert result.test.trained_prompt == mean_loss(trainer.model, trainer.rows.test_rows)
    lines = [json.loads(line) for line in (tmp_path / "run" / "p.run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines if "test_loss" in line] == ["none", "kept"]


def test_a_run_that_helped_nothing_says_so_on_its_last_line(model_folder, rows_file, tmp_path):
    config = trainer_for(model_folder, rows_file, tmp_path / "run").config
    worse = Result(Losses(1.0, 3.0, 2.0), Losses(), 5)
    assert describe_result(worse, config).splitlines()[-1].startswith("warning: held-out loss is no better than")
    elsewhere = Result(Losses(1.0, 3.0, 0.5), Losses(1.0, None, 1.5), 5)
    assert describe_result(elsewhere, config).splitlines()[-1].startswith("warning: test loss is no better than")
    better = Result(Losses(1.0, 3.0, 0.5), Losses(1.0, None, 0.5), 5)
    assert "warning" not in describe_result(better, config)
    assert "kept the prompt of step 5 (the lowest held-out loss: 0.500, perplexity 1.649)" in describe_result(
        better, config
    )


@pytest.mark.parametrize(
    ("losses", "falling"),
    [
        ([3.0, 2.0, 1.5, 1.2], True),
        ([7.114, 7.082, 7.054, 7.036, 7.021], True),
        ([3.0, 1.5, 1.2, 1.15], False),  # level
        ([3.0, 1.2, 1.5], False),  # rising
        ([3.0, 1.0, 1.5, 1.2], False),  # falls, but was lower before
        ([3.0, 1.0], False),  # one evaluation tells no trend
        ([3.0], False),
        ([], False),
        ([3.0, math.nan, 1.0], False),  # nothing to compare with
    ],
)
def test_a_loss_that_still_falls_at_the_end_is_noticed(losses, falling):
    selection = Selection()
    for step, loss in enumerate(losses):
        selection.add(step, loss, torch.zeros(1, 1))
    assert selection.still_falling is falling


def test_a_run_that_ended_too_early_says_how_to_go_on(model_folder, rows_file, tmp_path):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", **RISING | {"learning_rate": 1e-2, "max_steps": 4})
    said = describe_result(trainer.run(), trainer.config).splitlines()
    assert "still falling" in said[-1] and "`init_from`" in said[-1] and "`max_steps`" in said[-1]
    level = Result(Losses(2.0, 3.0, 1.0), Losses(), 5)
    assert "still falling" not in describe_result(level, trainer.config)
