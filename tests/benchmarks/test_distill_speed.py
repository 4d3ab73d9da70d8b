"""Both sides of `benchmarks/speed/distill_steps.py` compute the same loss and the same gradient of the prompt."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "speed"))

import distill_steps as distill  # noqa: E402
from shapes import SHAPES  # noqa: E402

from softprompt.tokens.encoding import EncodedRow  # noqa: E402


@pytest.mark.parametrize("shape", ["tiny", "tiny-llama"])
def test_the_sides_compute_the_same(shape):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.float64).eval().requires_grad_(False)
    with torch.no_grad():
        for each in base.parameters():
            each.mul_(4)  # so that the text changes what the base says
    rows = [EncodedRow([*range(40, 40 + size)], [-100] * 3 + [*range(43, 40 + size)]) for size in (7, 12, 9)]
    task = distill.Task(base, [*range(100, 130)], [rows], virtual_tokens=4)
    ours, padded = distill.Ours(task), distill.Padded(task)
    losses = [side.loss(rows) for side in (ours, padded)]
    assert losses[0] > 1e-3 and losses[0] == pytest.approx(losses[1], rel=1e-5)  # PEFT's prompt is fp32
    mine, theirs = ours.model.soft_prompt.weight.grad, padded.weight.grad
    assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_new_epoch_without_states_runs_the_teacher_again():
    base = AutoModelForCausalLM.from_config(SHAPES["tiny-llama"]).eval().requires_grad_(False)
    rows = [EncodedRow([5, 6, 7, 8], [-100, 6, 7, 8])]
    ours = distill.Ours(distill.Task(base, [*range(100, 130)], [rows], virtual_tokens=4))
    for _ in range(2):
        ours.step(rows)
    teacher = ours.objective.teacher
    assert teacher.passes_run == 1
    ours.begin()
    ours.step(rows)
    assert ours.objective.teacher is not teacher and ours.objective.teacher.passes_run == 1
