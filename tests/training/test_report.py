"""What a run and a search tell their report, in which order, and that nobody else says a word."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.training import CPU, trainer_for

from softprompt import Interrupted, UserError
from softprompt.base.loading import load_base
from softprompt.config.commands import SweepConfig
from softprompt.data.splits import load_splits
from softprompt.tokens.encoded_splits import EncodedSplit, encode_splits
from softprompt.tokens.encoding import Encoder
from softprompt.training.checkpoint import load_checkpoint
from softprompt.training.report import Report
from softprompt.training.run import prepare_run
from softprompt.training.run_log import EvaluationRecord, StepRecord, read_records
from softprompt.training.sweep import Search, SweepReport

OPTIONS = {"eval_fraction": 0.3, "max_steps": 4, "logging_steps": 2, "eval_steps": 2, "num_train_epochs": None}
HELD_OUT, TESTED = 3, 2


def hearing(kind):
    """A report of a kind that keeps every call: its name and its arguments."""

    class Hearing(kind):
        def __init__(self):
            self.calls = []

    def keep(name):
        return lambda self, *words: self.calls.append((name, *words))

    for name, value in [*vars(Report).items(), *vars(kind).items()]:
        if callable(value) and not name.startswith("_"):
            setattr(Hearing, name, keep(name))
    return Hearing()


def trainer_with_tests(*words, **options):
    """A trainer whose run also scores test rows."""
    trainer = trainer_for(*words, **OPTIONS | options)
    trainer.rows = dataclasses.replace(trainer.rows, test=EncodedSplit(trainer.rows.train_rows[:TESTED]))
    return trainer


def test_a_run_is_told_in_the_order_in_which_it_happens(model_folder, rows_file, tmp_path):
    report = hearing(Report)
    trainer_with_tests(model_folder, rows_file, tmp_path / "run", report=report).run()
    scored, tested = ["scoring", "evaluated"], ["scoring", "evaluated"]
    window = ["step", "step", "logged", *scored]
    names = [name for name, *_ in report.calls]
    assert names == ["begin", *scored, *scored, *window, *window, *tested, *tested, "end"]
    assert report.calls[0] == ("begin", 0, 4) and report.calls[-1] == ("end",)
    scoring = [tuple(words) for name, *words in report.calls if name == "scoring"]
    assert scoring == [(HELD_OUT, HELD_OUT)] * 4 + [(TESTED, TESTED)] * 2
    told = [words[0] for name, *words in report.calls if name in ("logged", "evaluated")]
    kinds = [(each.step, each.split, each.prompt) for each in told if isinstance(each, EvaluationRecord)]
    assert kinds == [
        (0, "eval", "none"),
        (0, "eval", "initial"),
        (2, "eval", "current"),
        (4, "eval", "trained"),
        (4, "test", "none"),
        (4, "test", "kept"),
    ]
    assert [each.step for each in told if isinstance(each, StepRecord)] == [2, 4]
    assert [words[1] for name, *words in report.calls if name == "logged"] == [4, 4]
    # what is heard is what is written
    records, _ = read_records(tmp_path / "run" / "p.run" / "metrics.jsonl")
    assert records == [each.to_json() for each in told]
    rates = [words[1] for name, *words in report.calls if name == "step"]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4


def test_without_held_out_rows_nothing_is_scored(model_folder, rows_file, tmp_path):
    report = hearing(Report)
    options = OPTIONS | {"eval_fraction": 0.0, "eval_steps": None}
    trainer_for(model_folder, rows_file, tmp_path / "run", report=report, **options).run()
    assert [name for name, *_ in report.calls] == ["begin", *["step", "step", "logged"] * 2, "end"]


def test_a_run_that_goes_on_begins_at_its_step(model_folder, rows_file, tmp_path):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", save_steps=3, **OPTIONS)
    trainer.run()
    report = hearing(Report)
    again = trainer_for(model_folder, rows_file, tmp_path / "run", report=report, resume=True, save_steps=3, **OPTIONS)
    folder = tmp_path / "run" / "p.run" / "checkpoint-3"
    again.restore(load_checkpoint(folder, again.layout(), again.recipe.require_same))
    again.run()
    assert [name for name, *_ in report.calls] == ["begin", "step", "logged", "scoring", "evaluated", "end"]
    assert report.calls[0] == ("begin", 3, 4)


def test_assembling_a_run_says_from_where_it_goes_on(model_folder, rows_file, tmp_path):
    first = trainer_for(model_folder, rows_file, tmp_path / "run", **OPTIONS)
    config = dataclasses.replace(first.config, virtual_tokens=4)
    prepare_run(config, first.base, first.rows).run()
    report = hearing(Report)
    trainer = prepare_run(dataclasses.replace(config, resume=True), first.base, first.rows, report)
    folder = tmp_path / "run" / "p.run" / "checkpoint-4"
    assert report.calls == [("say", f"resumed from {folder}")] and trainer.step == 4


def test_a_run_that_is_cut_short_ends_its_report(model_folder, rows_file, tmp_path):
    report = hearing(Report)
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", report=report, **OPTIONS)
    report.step = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM|saved at step 1"):
        trainer.run()
    assert report.calls[-1] == ("end",)
    report = hearing(Report)
    trainer = trainer_for(model_folder, rows_file, tmp_path / "nan", report=report, **OPTIONS)
    with torch.no_grad():
        trainer.base.model.lm_head.weight[7] = float("nan")
    with pytest.raises(UserError):
        trainer.run()
    assert report.calls[-1] == ("end",) and "step" not in [name for name, *_ in report.calls]


def searched(model_folder, rows_file, folder, report):
    """A search over four combinations, up to eight steps."""
    config = SweepConfig(
        model=str(model_folder),
        data=str(rows_file),
        eval_fraction=0.3,
        virtual_tokens=(2, 3),
        relative_rates=(0.1, 1.0),
        init=("text",),
        max_steps=8,
        prompt_file=str(folder / "p.safetensors"),
    )
    base = load_base(str(model_folder), device=CPU, precision="fp32")
    splits = load_splits(str(rows_file), eval_fraction=0.3, seed=config.seed)
    return Search(config, base, encode_splits(splits, Encoder(base.tokenizer), max_length=config.max_length), report)


def test_a_search_is_told_its_rounds_its_trials_and_all_their_steps(model_folder, rows_file, tmp_path):
    report = hearing(SweepReport)
    result = searched(model_folder, rows_file, tmp_path, report).run()
    # the trials of a round take their steps together
    rounds = [["round"] + ["step"] * steps * trials + ["trial"] * trials for trials, steps in ((4, 4), (2, 8))]
    names = [name for name, *_ in report.calls]
    assert names == ["begin", *rounds[0], *rounds[1], "end"]
    assert report.calls[0] == ("begin", 0, names.count("step")) and names.count("step") == 32
    assert [tuple(words) for name, *words in report.calls if name == "round"] == [(4, 4), (2, 8)]
    last = [words[0] for name, *words in report.calls if name == "trial"][-2:]
    assert result.best in last and result.best.loss == min(each.loss for each in last)


def test_the_library_prints_nothing(model_folder, rows_file, tmp_path, capfd):
    trainer = trainer_with_tests(model_folder, rows_file, tmp_path / "run", early_stopping_patience=1)
    search = searched(model_folder, rows_file, tmp_path, SweepReport())
    capfd.readouterr()  # the libraries' own bars, while the base is loaded
    trainer.run()
    search.run()
    assert capfd.readouterr() == ("", "")
    assert Path(trainer.config.prompt_file).exists() and (tmp_path / "p.safetensors").exists()
