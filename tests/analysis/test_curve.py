"""The curve that is read is the one that the run recorded, whatever else stands in the file."""

import json

import pytest

from softprompt.analysis.curve import Point, curve_of_records, load_curve
from softprompt.errors import UserError

RECORDS = [
    {"step": 0, "eval_loss": 2.0, "prompt": "none"},
    {"step": 0, "eval_loss": 4.0, "prompt": "initial", "eval_accuracy": 0.25},
    {"step": 10, "epoch": 0.1, "loss": 3.0, "learning_rate": 1e-2, "grad_norm": None, "supervised_tokens": 100},
    {"step": 15, "eval_loss": 1.5, "prompt": "current"},
    {"step": 20, "epoch": 0.2, "loss": 1.0, "learning_rate": 1e-3, "grad_norm": 0.5, "supervised_tokens": 300},
    {"step": 20, "eval_loss": 0.5, "prompt": "trained"},
]
SUMMARY = {"held_out_loss": {"without_prompt": 7.0, "initial_prompt": 8.0, "trained_prompt": 0.5}}


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    """The metrics of `p.safetensors` in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.run").mkdir()
    return tmp_path / "p.run" / "metrics.jsonl"


def write(path, records, end=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end, "utf-8")


def test_records_become_points_and_baselines(metrics):
    write(metrics, RECORDS)
    curve = load_curve("p.safetensors", None, {})
    assert curve.source == "p.run/metrics.jsonl"
    assert curve.train == (Point(10, 3.0, 100), Point(20, 1.0, 400))
    # 15 is half of the window that ends at 20, which saw 300 tokens
    assert curve.held_out == (Point(0, 4.0, 0), Point(15, 1.5, 250), Point(20, 0.5, 400))
    assert (curve.without_prompt, curve.initial_prompt) == (2.0, 4.0)
    assert curve.skipped_lines == 0


def test_another_run_folder(metrics, tmp_path):
    write(metrics, RECORDS)
    metrics.parent.rename(tmp_path / "elsewhere")
    assert load_curve("p.safetensors", None, {}) is None
    assert len(load_curve("p.safetensors", "elsewhere", {}).train) == 2


def test_damaged_lines_are_skipped_and_counted(metrics):
    write(
        metrics,
        [*RECORDS[:4], {"step": 20, "test_loss": 0.7, "prompt": "none"}],
        end='null\n[]\n{"mine": 1}\n{"step": "x", "loss": 1}\n\n{"step": 20, "lo',
    )
    curve = load_curve("p.safetensors", None, {})
    assert (len(curve.train), len(curve.held_out), curve.skipped_lines) == (1, 2, 5)


def test_losses_that_cannot_be_drawn_are_left_out():
    records = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1}, {"step": 3, "loss": None}]
    assert curve_of_records(records, {}, source="").train == (Point(2, 1.0),)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), True, "1", [1], {}, None], ids=repr)
def test_losses_of_a_stranger_that_are_no_losses_are_left_out(metrics, value):
    training = {"held_out_loss": {"without_prompt": value, "initial_prompt": 8}, "curve": [[0, value], [1, 2.0]]}
    curve = load_curve("p.safetensors", None, training)
    assert curve.held_out == (Point(1, 2.0),)
    assert (curve.without_prompt, curve.initial_prompt) == (None, 8.0)
    records = [{"step": 1, "loss": 3.0, "supervised_tokens": value}, {"step": 2, "loss": value, "eval_loss": value}]
    assert curve_of_records(records, {}, source="").train == (Point(1, 3.0),)
    for step in (value, -1, 1.0):
        assert load_curve("p.safetensors", None, {"curve": [[step, 2.0]]}) is None


def test_a_resumed_run_counts_once():
    curve = curve_of_records([*RECORDS, RECORDS[4] | {"loss": 0.9}, RECORDS[5] | {"eval_loss": 0.4}], {}, source="")
    assert curve.train[-1] == Point(20, 0.9, 400) and curve.held_out[-1] == Point(20, 0.4, 400)


def test_tokens_that_are_not_told():
    without = {name: value for name, value in RECORDS[2].items() if name != "supervised_tokens"}
    curve = curve_of_records([without, *RECORDS[3:]], {}, source="")
    assert [point.supervised_tokens for point in curve.train + curve.held_out] == [None] * 4
    beyond = curve_of_records([RECORDS[2], {"step": 12, "eval_loss": 1.0, "prompt": "new words"}], {}, source="")
    assert beyond.held_out == (Point(12, 1.0, None),)


def test_baselines_of_the_metadata_where_the_records_have_none():
    curve = curve_of_records(RECORDS[2:], SUMMARY, source="")
    assert (curve.without_prompt, curve.initial_prompt) == (7.0, 8.0)


@pytest.mark.parametrize("content", [None, "", "\n"], ids=repr)
def test_the_metadata_keep_a_curve_of_their_own(metrics, content):
    if content is not None:
        metrics.write_text(content)
    training = SUMMARY | {"curve": [[20, 0.5], [0, 8.0], "x", [1], [3, None]]}
    curve = load_curve("p.safetensors", None, training)
    assert curve.held_out == (Point(0, 8.0), Point(20, 0.5)) and curve.train == ()
    assert (curve.without_prompt, curve.initial_prompt) == (7.0, 8.0)
    assert "p.safetensors" in curve.source
    assert load_curve("p.safetensors", None, SUMMARY) is None


def test_a_run_that_ended_before_its_first_window_has_no_curve(metrics):
    write(metrics, RECORDS[:1])
    assert load_curve("p.safetensors", None, {}) is None


@pytest.mark.parametrize("content", [b'{"mine": 1}\n', b"hello\n", bytes(range(256))], ids=["json", "text", "bytes"])
def test_metrics_of_another_program_are_named(metrics, content):
    metrics.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.run/metrics\.jsonl: not the metrics of a training run"):
        load_curve("p.safetensors", None, {})


def test_a_run_folder_without_metrics_is_named(metrics):
    with pytest.raises(UserError, match=r"`run_dir` p\.run: holds no metrics\.jsonl"):
        load_curve("p.safetensors", "p.run", {"curve": [[0, 1.0]]})
