"""What a run's log counts as training."""

import json
import time

from softprompt.training.run_log import Progress


def rate_of(folder, pause):
    """The logged rate of a window of 100 tokens within which 0.2 s go by."""
    folder.mkdir()
    progress = Progress(folder / "metrics.jsonl", first_step=0, total_steps=1)
    progress.start()
    if pause:
        with progress.paused():
            time.sleep(0.2)
    else:
        time.sleep(0.2)
    progress.step(loss_sum=1.0, supervised=100, learning_rate=0.1)
    progress.log(1, epoch=1.0, learning_rate=0.1, grad_norm=1.0)
    progress.close()
    return json.loads((folder / "metrics.jsonl").read_text())["supervised_tokens_per_second"]


def test_evaluation_does_not_count_as_training_time(tmp_path):
    assert rate_of(tmp_path / "counted", pause=False) <= 100 / 0.2
    assert rate_of(tmp_path / "paused", pause=True) > 100 / 0.2


def test_numbers_that_are_not_finite_become_null(tmp_path):
    progress = Progress(tmp_path / "metrics.jsonl", first_step=0, total_steps=1)
    progress.record(step=1, eval_loss=float("nan"), eval="so far")
    progress.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda word: 1 / 0) == {"step": 1, "eval_loss": None, "eval": "so far"}
