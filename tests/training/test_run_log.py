"""What a run's log counts as training, and that what is written is what is read."""

import dataclasses
import json
import math
import time

import pytest

from softprompt.training.run_log import EvaluationRecord, RunLog, StepRecord, is_metrics_file, read_records


def rate_of(folder, pause):
    """The logged rate of a window of 100 tokens within which 0.2 s go by."""
    folder.mkdir()
    log = RunLog(folder / "metrics.jsonl")
    log.start()
    if pause:
        with log.paused():
            time.sleep(0.2)
    else:
        time.sleep(0.2)
    log.add_step(loss_sum=1.0, supervised=100)
    log.end_window(1, epoch=1.0, learning_rate=0.1, grad_norm=1.0)
    return json.loads((folder / "metrics.jsonl").read_text())["supervised_tokens_per_second"]


def test_evaluation_does_not_count_as_training_time(tmp_path):
    assert rate_of(tmp_path / "counted", pause=False) <= 100 / 0.2
    assert rate_of(tmp_path / "paused", pause=True) > 100 / 0.2


def test_numbers_that_are_not_finite_become_null(tmp_path):
    RunLog(tmp_path / "metrics.jsonl").write(EvaluationRecord(1, "eval", "current", math.nan, 0.5))
    line = (tmp_path / "metrics.jsonl").read_text()
    wanted = {"step": 1, "prompt": "current", "eval_loss": None, "eval_accuracy": 0.5}
    assert json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) == wanted


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = RunLog(path)
    evaluations = [
        EvaluationRecord(0, "eval", "none", 5.5, 0.25),
        EvaluationRecord(0, "eval", "initial", 6.0, 0.125),
        EvaluationRecord(2, "eval", "trained", 4.0, 0.5),
        EvaluationRecord(2, "test", "kept", 4.5, 0.375),
    ]
    log.write(evaluations[0])
    log.write(evaluations[1])
    log.add_step(loss_sum=30.0, supervised=10)
    log.add_step(loss_sum=10.0, supervised=6)
    window = log.end_window(2, epoch=0.66666, learning_rate=0.1, grad_norm=3.0)
    assert (window.loss, window.supervised_tokens, window.epoch) == (2.5, 16, 0.6667)
    assert log.window == (0.0, 0)
    for record in evaluations[2:]:
        log.write(record)
    records, skipped = read_records(path)
    assert skipped == 0 and is_metrics_file(path)
    steps = [StepRecord(**each) for each in records if "loss" in each]
    assert steps == [window]
    found = [
        EvaluationRecord(each["step"], split, each["prompt"], each[f"{split}_loss"], each[f"{split}_accuracy"])
        for each in records
        for split in ("eval", "test")
        if f"{split}_loss" in each
    ]
    assert found == evaluations
    assert len(records) == len(steps) + len(found)
    fields = [field.name for field in dataclasses.fields(StepRecord)]
    assert list(records[2]) == fields  # the keys of a line are the fields, in their order


def test_a_run_that_goes_on_drops_what_it_takes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = RunLog(path)
    for step in (2, 4, 6):
        first.add_step(8.0, 4)
        first.end_window(step, epoch=1.0, learning_rate=0.1, grad_norm=1.0)
        first.write(EvaluationRecord(step, "eval", "current", 1.0, 0.5))
    first.write(EvaluationRecord(4, "test", "kept", 1.0, 0.5))
    with path.open("a") as file:
        file.write('{"step": 8, "loss": 1')  # a crash
    assert read_records(path)[1] == 1
    log = RunLog(path, first_step=4, window=(3.0, 2))
    assert log.window == (3.0, 2)
    records, skipped = read_records(path)
    assert [(each["step"], "loss" in each) for each in records] == [(2, True), (2, False), (4, True), (4, False)]
    assert skipped == 0 and not any("test_loss" in each for each in records)
    log.add_step(5.0, 2)
    assert log.end_window(5, epoch=1.0, learning_rate=0.1, grad_norm=1.0).loss == 2.0  # (3 + 5) / (2 + 2)
    RunLog(path)
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["{}", "[1]", "text", '{"step": -1, "loss": 1}', '{"step": true, "loss": 1}', "1"])
def test_lines_that_are_no_records_are_counted(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n" + '{"step": 1, "loss": 2.0}\n')
    assert read_records(path) == ([{"step": 1, "loss": 2.0}], 1)
    assert not is_metrics_file(path)
