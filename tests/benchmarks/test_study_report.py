"""The study's figures by hand, and its tables and plots in a document."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import study_plan  # noqa: E402
import study_report  # noqa: E402
import study_seconds  # noqa: E402
import study_summary  # noqa: E402
from study_results import Results  # noqa: E402
from study_runs import Run  # noqa: E402

from softprompt.training.optimizer import RELATIVE_RATES  # noqa: E402


def searched(run, loss):
    """A record of a search run."""
    return dataclasses.asdict(run) | {"best_select": loss, "report_loss": loss, "seconds": 1.0, "diverged": False}


def final(method, rate, seed, report, history):
    """A record of a final run on `topic`."""
    run = Run("bloom", "bloom", "topic", method, rate, seed, 240 if history else 0)
    curve = {"history": history, "best_step": history[-1][0], "final_select": history[-1][1]} if history else {}
    rest = {"learning_rate": rate or 0.02, "diverged": False, "trainable": 12 * 192, "seconds": 9.0}
    return dataclasses.asdict(run) | curve | rest | {"best_select": report, "report_loss": report}


@pytest.fixture
def topic_results(tmp_path):
    """PEFT prompt tuning ends at 2.0 (two rates, of which 0.1 won), ours passes that at step 120; full ends at 1.0."""
    results = Results(tmp_path / "quality.jsonl")
    for run in study_plan.search_runs("bloom", ["prompt-text", "full"], ["topic"]):
        results.add(searched(run, abs(run.rate - (0.1 if run.method == "prompt-text" else 1e-3))))
    results.add(final("none", None, 0, 5.0, None))
    for seed, more in ((1, -0.1), (2, 0.0), (3, 0.1)):
        results.add(final("prompt-text", 0.1, seed, 2.0 + more, [[0, 6.0], [120, 3.0], [240, 2.0 + more]]))
        results.add(final("prompt-text", 0.01, seed, 9.0, [[0, 6.0], [240, 9.0]]))  # an earlier winner
        results.add(final("prompt-text", 5e-5, seed, 5.5, [[0, 6.0], [240, 5.5]]))
        results.add(final("full", 1e-3, seed, 1.0, [[0, 5.0], [240, 1.0]]))
        results.add(final("softprompt", None, seed, 1.8 + more, [[0, 6.0], [120, 2.0], [240, 1.8 + more]]))
    return results


def test_figures_by_hand(topic_results):
    sides = study_summary.sides_of(topic_results, "bloom", "topic")
    assert list(sides) == ["none", "softprompt", "prompt-text", "tutorial", "full"]
    assert study_summary.best_prompt_tuning(sides).losses == pytest.approx([1.9, 2.0, 2.1])
    # a standard deviation of 0.1 over three seeds: 4.303 * 0.1 / sqrt(3)
    assert study_summary.half_interval(sides["softprompt"].losses) == pytest.approx(0.24843, abs=1e-5)
    assert study_summary.half_interval([1.0]) is None
    assert study_summary.share_of_gain(sides, "softprompt", "full") == pytest.approx((5.0 - 1.8) / (5.0 - 1.0))
    assert study_summary.share_of_gain(sides, "softprompt", "lora") is None
    assert study_summary.steps_to(sides["softprompt"], 2.0) == 120
    assert study_summary.steps_to(sides["tutorial"], 2.0) is None
    measured = [found for _, _, _, found in study_summary.targets(topic_results, {"bloom": ("topic",)})]
    assert measured[:3] == [["bloom topic -10.0%"], ["bloom topic 50%"], ["bloom topic 80.0%"]]
    assert measured[5:] == [["bloom topic 11.1%"], ["0"]]
    run = Run("bloom", "bloom", "topic", "softprompt", None, 4, 240)
    topic_results.add(dataclasses.asdict(run) | {"failed": "Diverged: step 3", "seconds": 1.0})
    assert study_summary.targets(topic_results, {"bloom": ("topic",)})[-1][-1] == ["1"]


def test_default_rate_against_the_best_of_each_base(tmp_path):
    results = Results(tmp_path / "quality.jsonl")
    for run in study_plan.scale_runs():
        best = 0.1 if run.scale == 0.1 else RELATIVE_RATES["soap"]
        results.add(searched(run, 1.0 + 0.1 * (run.alpha != best)))
    found = study_summary.scale_losses(results)
    assert found == ["bloom x0.1 +10.0%", "bloom x1 +0.0%", "bloom x10 +0.0%", "smollm2 x1 +0.0%"]


def test_report_keeps_the_prose_around_it(topic_results, tmp_path):
    document = tmp_path / "quality.md"
    for _ in range(2):
        before = "# Ours\n\nbefore\n" if not document.exists() else document.read_text("utf-8").split("<!--")[0]
        document.write_text(f"{before}<!-- study: begin -->\nold\n<!-- study: end -->\nafter\n", "utf-8")
        written = study_report.write_report(topic_results, document)
    text = document.read_text("utf-8")
    assert text.startswith("# Ours\n\nbefore\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| **softprompt, default** | " in text and "1.8000 ± 0.2484 (n=3) | 0.900 | 80.0% | 120 of 240" in text
    assert written == [document, tmp_path / "quality-bloom.png", tmp_path / "quality-seeds.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    document.write_text("no place\n", "utf-8")
    with pytest.raises(ValueError, match="no place for the tables"):
        study_report.write_report(topic_results, document)


def test_loss_against_seconds_and_over_seeds(topic_results, tmp_path):
    document = tmp_path / "quality.md"
    seconds = {"softprompt": [0.9, 0.05, 0.04], "batch 1": [0.3, 0.4, 0.5], "batch 8": [0.1, 0.1, 0.2]}
    record = {"bloom": {"topic": {"threads": 2, "step_seconds": seconds}}}
    (tmp_path / "quality-seconds.json").write_text(json.dumps(record), "utf-8")
    written = study_report.write_report(topic_results, document)
    assert [path.name for path in written[2:]] == ["quality-seconds.png", "quality-seeds.png"]
    text = document.read_text("utf-8")
    # 240 steps of 0.1 s end at 2.0, which 120 steps of 0.05 s reach
    assert "| bloom topic | 50 | 100 (batch 8) | 2.00 | 24.0 | 6.0 | 25% |" in text
    assert "| **softprompt, default** | 5.6% of 1.8000 (n=3) |" in text  # a standard deviation of 0.1
    assert "| full fine-tuning | 0.0% of 1.0000 (n=3) |" in text
    assert "| softprompt's max - min over its gain | 6.3% |" in text  # 0.2 of 5.0 - 1.8


def test_more_steps_stand_beside_the_usual_number(topic_results, tmp_path):
    for run in study_plan.search_runs("bloom", ["prompt-vocab"], ["topic"]):
        topic_results.add(searched(run, 9.0))
    assert study_summary.by_steps(topic_results) == {}
    for run in study_plan.step_runs(topic_results):
        topic_results.add(searched(run, 0.9 if run.method == "softprompt" else 1.2))
    document = tmp_path / "quality.md"
    written = study_report.write_report(topic_results, document)
    assert written[-1] == tmp_path / "quality-steps.png"
    text = document.read_text("utf-8")
    assert "| 240 | 1.8000 ± 0.2484 (n=3) | 11.1% | 2.0000 ± 0.2484 (n=3) | 0.900 |" in text
    assert "| 960 | 0.9000 ± 0.0000 (n=5) | 0.0% | 1.2000 ± 0.0000 (n=3) | 0.750 |" in text


def test_other_lengths_stand_beside_the_usual_one(topic_results, tmp_path):
    assert study_summary.by_tokens(topic_results) == {}
    for run in study_plan.token_runs():
        topic_results.add(searched(run, 5 / run.virtual_tokens + 0.1 * run.seed) | {"trainable": 192})
    document = tmp_path / "quality.md"
    assert study_report.write_report(topic_results, document)[-1] == tmp_path / "quality-tokens.png"
    text = document.read_text("utf-8")
    assert "| 4 | 192 | 1.5500 ± 0.1963 (n=5) | 25.8% |" in text  # 1.35 to 1.75; 2.776 * 0.1581 / sqrt(5)
    assert "| 12 | 2,304 | 1.8000 ± 0.2484 (n=3) | 11.1% |" in text


def test_seconds_of_both_sides_are_taken_and_others_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_seconds, "REPORTED", {"bloom": ("unseen",), "smollm2": ()})
    result = tmp_path / "seconds.json"
    result.write_text(json.dumps({"smollm2": {"category": 1}}), "utf-8")
    study_seconds.main(
        ["--models", "bloom", "--rounds", "1", "--steps", "2", "--threads", "1", "--result", str(result)]
    )
    written = json.loads(result.read_text("utf-8"))
    assert written["smollm2"] == {"category": 1}
    seconds = written["bloom"]["unseen"]["step_seconds"]
    assert [len(seconds[side]) for side in ("softprompt", "batch 1", "batch 8")] == [1, 1, 1]
    assert min(map(min, seconds.values())) > 0 and "bloom unseen: softprompt " in capsys.readouterr().out
