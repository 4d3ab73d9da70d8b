"""Runs that take their steps together against the same runs alone: steps, ends, files and checkpoints."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from helpers.models import make_model, make_tokenizer
from helpers.training import trainer_for

from softprompt import load_prompt
from softprompt.engine import passes
from softprompt.errors import Diverged, Interrupted
from softprompt.training.lanes import run_lanes
from softprompt.training.report import Report
from softprompt.training.run import prepare_lanes, prepare_run
from softprompt.training.trainer import Trainer

STEPS = 10


@pytest.fixture(params=["bloom", "llama"])
def make(request, rows_file, tmp_path):
    """Makes trainers on one base; each has a name, a number of virtual tokens and options."""
    folder = tmp_path / request.param
    make_model(request.param).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    first = trainer_for(folder, rows_file, tmp_path / "first", eval_fraction=0.3)

    def trainer(name, count=4, *, double=False, **options):
        options = {"max_steps": STEPS, "gradient_accumulation_steps": 3, "optim": "adamw", "save_steps": 3} | options
        options |= {"virtual_tokens": count, "init": "random", "prompt_file": str(tmp_path / f"{name}.safetensors")}
        lane = prepare_run(dataclasses.replace(first.config, **options), first.base, first.rows)
        if double:
            lane.model.double()
        return lane

    return trainer


def lanes_of(make, prefix, **options):
    """Lanes of unequal P, rate, seed and rows per step."""
    return [
        make(f"{prefix}0", 4, **options),
        make(f"{prefix}1", 1, learning_rate=0.02, **options),
        make(f"{prefix}2", 9, seed=3, **options),
        make(f"{prefix}3", 4, gradient_accumulation_steps=1, **options),
    ]


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("tokens", [16, 100, 4096])
def test_ten_steps_of_adamw_in_float64_are_those_of_each_run_alone(make, tokens, monkeypatch):
    """Also where a lane's rows need several passes (16 tokens), and where two lanes fit into one (100)."""
    monkeypatch.setitem(passes.LANE_TOKENS, "cpu", tokens)
    options = {"double": True, "max_tokens_per_pass": str(tokens), "save_last": True}
    alone, together = (lanes_of(make, prefix, **options) for prefix in ("a", "t"))
    starts = [lane.weight.detach().clone() for lane in alone]
    for lane in alone:
        lane.run()
    run_lanes(together)
    for lane, other, start in zip(together, alone, starts, strict=True):
        assert lane.weight.dtype == torch.float64 and lane.step == STEPS
        assert relative(lane.weight, other.weight) < 1e-10
        assert relative(start, other.weight) > 1e-2
        assert lane.train_loss == pytest.approx(other.train_loss, rel=1e-10)
        for (step, loss), (again, wanted) in zip(lane.selection.curve, other.selection.curve, strict=True):
            assert step == again and loss == pytest.approx(wanted, rel=1e-10)


def records(lane):
    lines = (lane.config.run_folder / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], *sorted(set(record) - {"step"})) for record in map(json.loads, lines)]


def test_every_lane_has_its_own_log_checkpoints_and_prompt_file(make):
    alone, together = (lanes_of(make, prefix) for prefix in ("a", "t"))
    results = [lane.run() for lane in alone]
    for lane, other, result, wanted in zip(together, alone, run_lanes(together), results, strict=True):
        assert records(lane) == records(other) and len(records(lane)) > STEPS
        assert result.held_out.trained_prompt == pytest.approx(wanted.held_out.trained_prompt, rel=1e-4)
        names = [sorted(path.name for path in each.config.run_folder.iterdir()) for each in (lane, other)]
        assert names[0] == names[1]
        file = load_prompt(lane.config.prompt_file)
        assert file.weight.shape == other.weight.shape and file.facts.training["seed"] == lane.config.seed


def test_a_lane_that_ends_early_leaves_and_the_others_go_on(make):
    """One stops at the held-out loss, one diverges; the third is what it is beside a lane that stays."""
    stops = make("stops", eval_steps=1, early_stopping_patience=1, learning_rate=1e4)
    bad = make("bad", 3, learning_rate=1e30)
    last = make("last", 9)
    outcomes = run_lanes([stops, bad, last])
    assert stops.selection.exhausted and stops.step < STEPS == last.step
    assert isinstance(outcomes[1], Diverged) and bad.step < STEPS and "bad.safetensors" in str(outcomes[1])
    assert torch.isfinite(load_prompt(bad.config.prompt_file).weight).all()
    alone = make("alone", 9)
    result = alone.run()
    assert relative(last.weight, alone.weight) < 1e-3
    assert outcomes[2].held_out.trained_prompt == pytest.approx(result.held_out.trained_prompt, rel=1e-4)
    assert load_prompt(stops.config.prompt_file).facts.training["steps"] == outcomes[0].step


def test_a_run_that_diverges_alone_still_raises(make):
    with pytest.raises(Diverged):
        make("bad", learning_rate=1e30).run()
    assert not list(make("bad").config.run_folder.glob("checkpoint-*"))


@pytest.mark.parametrize("step", [0, 4, 9])
def test_stopped_lanes_go_on_together_to_the_same_bits(make, step, monkeypatch):
    whole = lanes_of(make, "w")
    run_lanes(whole)
    stopped, real = lanes_of(make, "t"), Trainer.next_rows

    def next_rows(self):
        if self.step == step and self is stopped[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "next_rows", next_rows)
        with pytest.raises(Interrupted):
            run_lanes(stopped)
    assert [lane.step for lane in stopped] == [step] * 4
    configs = [dataclasses.replace(lane.config, resume=True) for lane in stopped]
    again = prepare_lanes(configs, whole[0].base, whole[0].rows, [Report()] * 4)
    assert [lane.step for lane in again] == [step] * 4
    run_lanes(again)
    for lane, other in zip(again, whole, strict=True):
        assert torch.equal(lane.weight, other.weight) and records(lane) == records(other)


def test_a_checkpoint_of_a_lane_is_one_of_an_ordinary_run(make):
    lanes = lanes_of(make, "t")
    run_lanes(lanes)
    for lane in lanes:
        alone = prepare_run(dataclasses.replace(lane.config, resume=True), lane.base, lane.rows)
        assert alone.step == STEPS and torch.equal(alone.run() and alone.weight, lane.weight)
