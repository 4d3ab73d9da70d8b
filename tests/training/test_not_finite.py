"""Numbers that are not finite: whose fault they are, which rows have them, and what is left of the run."""

import pytest
import torch
from helpers.training import trainer_for

from softprompt import Diverged, UserError, load_prompt
from softprompt.training.report import Report


class Heard(Report):
    """Keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


OPTIONS = {"max_steps": 6, "num_train_epochs": None, "gradient_accumulation_steps": 2}


def spoilt(model_folder, rows_file, out, *, steps, **options):
    """A trainer whose loss is not finite in some steps, counted from 1."""
    report = Heard()
    trainer = trainer_for(model_folder, rows_file, out, report=report, **OPTIONS | options)
    real = trainer.optimizer.scaled

    def scaled(loss):
        return real(loss * float("nan") if trainer.step + 1 in steps else loss)

    trainer.optimizer.scaled = scaled
    return trainer, report


def test_a_step_that_is_not_finite_is_not_applied_and_its_rows_are_named(model_folder, rows_file, tmp_path):
    trainer, report = spoilt(model_folder, rows_file, tmp_path / "a", steps={2, 3, 5})
    trainer.run()
    lines = [line for line in report.lines if line.startswith("warning: ")]
    assert len(lines) == 3
    assert "step 2: the gradient is not finite, with rows " in lines[0] and "the step is not applied" in lines[0]
    assert torch.isfinite(load_prompt(tmp_path / "a" / "p.safetensors").weight).all()


@pytest.mark.parametrize("eval_fraction", [0.0, 0.3])
def test_three_in_a_row_end_the_run_with_the_best_prompt(model_folder, rows_file, tmp_path, eval_fraction):
    trainer, _ = spoilt(model_folder, rows_file, tmp_path / "a", steps={3, 4, 5}, eval_fraction=eval_fraction)
    with pytest.raises(
        Diverged, match=r"step 5: .*lower `learning_rate` .* the best prompt, of step \d, is in "
    ) as raised:
        trainer.run()
    assert str(tmp_path / "a" / "p.safetensors") in str(raised.value)
    file = load_prompt(tmp_path / "a" / "p.safetensors")
    assert torch.isfinite(file.weight).all() and file.facts.training["steps"] <= 4


@pytest.mark.parametrize("optim", ["soap", "adamw"])
@pytest.mark.parametrize("rate", [1e38, 1e300])
def test_a_rate_beyond_fp32_is_one_line(model_folder, rows_file, tmp_path, optim, rate):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "a", learning_rate=rate, optim=optim, **OPTIONS)
    with pytest.raises(
        Diverged, match=r"step \d: the (prompt|loss) is not finite, with rows .*; lower `learning_rate`"
    ):
        trainer.run()
    assert torch.isfinite(trainer.weight).all()


@pytest.mark.parametrize("eval_fraction", [0.0, 0.3])
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_base_that_holds_such_numbers_is_named(model_folder, rows_file, tmp_path, eval_fraction, value, word):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "a", eval_fraction=eval_fraction, **OPTIONS)
    with torch.no_grad():
        trainer.base.model.transformer.h[1].mlp.dense_h_to_4h.weight[2, 2] = value
    wanted = rf"its tensor transformer\.h\.1\.mlp\.dense_h_to_4h\.weight holds {word}"
    with pytest.raises(UserError, match=wanted) as raised:
        trainer.run()
    assert "learning_rate" not in str(raised.value) and not (tmp_path / "a" / "p.safetensors").exists()


@pytest.mark.parametrize("eval_fraction", [0.0, 0.3])
def test_a_base_that_overflows_in_fp16_is_named(model_folder, rows_file, tmp_path, eval_fraction):
    trainer = trainer_for(
        model_folder, rows_file, tmp_path / "a", precision="fp16", eval_fraction=eval_fraction, **OPTIONS
    )
    with torch.no_grad():
        for layer in trainer.base.model.transformer.h:
            layer.mlp.dense_h_to_4h.weight.mul_(1000)
            layer.mlp.dense_4h_to_h.weight.mul_(1000)
    wanted = r"what transformer\.h\.0\.mlp\.\w+\.weight gives overflows in fp16 on row \d+; run it with `precision`"
    with pytest.raises(UserError, match=wanted) as raised:
        trainer.run()
    assert "learning_rate" not in str(raised.value)
