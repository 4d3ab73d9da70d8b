"""The loop: a step does not depend on how it is cut, schedules are transformers', a whole run is a plain loop's."""

import json
import math

import pytest
import torch
from helpers.models import HIDDEN_SIZE, make_model, make_tokenizer
from helpers.training import CPU, mean_loss, trainer_for
from transformers import get_scheduler

from softprompt import SoftPromptEmbedding, UserError, load_prompt
from softprompt.base.device import resolve_precision
from softprompt.cli.text import describe_passes, describe_steps
from softprompt.config.commands import TrainConfig
from softprompt.engine.passes import tokens_that_fit
from softprompt.optim.schedule import rate_factor, rows_of_step, total_steps
from softprompt.training.checkpoint import load_checkpoint
from softprompt.training.optimizer import RELATIVE_GRAD_NORM, RELATIVE_RATES, PromptOptimizer


@pytest.mark.parametrize("optim", ["soap", "adamw"])
@pytest.mark.parametrize(("size", "accumulation"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_the_cut_of_a_step_does_not_change_the_run(model_folder, rows_file, tmp_path, size, accumulation, optim):
    """1 x 4 = 2 x 2 = 4 x 1; 8 x 1 takes other steps and must differ, or the comparison sees nothing."""
    cuts = [(1, 4), (size, accumulation)]
    prompts = []
    for place, (batch, steps) in enumerate(cuts):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "num_train_epochs": 3}
        trainer = trainer_for(model_folder, rows_file, tmp_path / str(place), optim=optim, **options)
        trainer.run()
        prompts.append(trainer.weight.detach())
    difference = ((prompts[0] - prompts[1]).abs().max() / prompts[0].abs().max()).item()
    # 1e-4: nine Adam steps enlarge the roundings of differently shaped sums
    assert (difference < 1e-4) == (size * accumulation == 4)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_run_is_what_a_plain_loop_gives(model_folder, rows_file, tmp_path, clip):
    """Oracle from the definition: one row at a time, autograd through the whole mean, torch's own clipping."""
    options = {"gradient_accumulation_steps": 4, "warmup_steps": 2, "lr_scheduler_type": "cosine", "max_steps": 5}
    options |= {"optim": "adamw", "adam_beta1": 0.7, "adam_beta2": 0.97, "max_grad_norm": clip}
    trainer = trainer_for(model_folder, rows_file, tmp_path / "ours", weight_decay=0.1, **options)
    weight = torch.nn.Parameter(trainer.weight.detach().clone())
    scale = weight.detach().square().mean().sqrt().item()
    rate = RELATIVE_RATES["adamw"] * scale
    base, tokens = make_model("bloom"), make_tokenizer()
    rows = trainer.rows.train_rows
    trainer.run()
    optimizer = torch.optim.AdamW([weight], lr=rate, betas=(0.7, 0.97), eps=1e-8 / scale, weight_decay=0.1)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=5)
    for step in range(5):
        total, count = 0.0, 0
        for place in rows_of_step(step, len(rows), 4, 42):
            ids, labels = torch.tensor(rows[place].input_ids), rows[place].labels
            embeds = torch.cat([weight, base.get_input_embeddings()(ids)])[None]
            logprobs = base(inputs_embeds=embeds).logits[0].log_softmax(-1)
            for i, label in enumerate(labels):
                if label != -100:
                    total, count = total - logprobs[5 + i - 1, label], count + 1
        assert count > 0
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_([weight], clip or RELATIVE_GRAD_NORM / scale)
        assert norm > (clip or RELATIVE_GRAD_NORM / scale)  # or this says nothing of clipping
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert tokens.eos_token_id in rows[0].labels
    assert (weight - trainer.weight).abs().max() < 1e-4 * weight.abs().max()
    assert (weight.detach() - load_prompt(tmp_path / "ours" / "p.safetensors").weight).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_transformers(kind, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=30)
    ours = rate_factor(kind, 30, warmup)
    for step in range(30):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warmup_below_one_is_a_share():
    assert rate_factor("linear", 40, 0.1)(2) == 2 / 4


def test_number_of_steps_counts_the_last_smaller_one():
    assert total_steps(26_858, 8, 1.0, -1) == 3358
    assert total_steps(10, 4, 2.5, -1) == 8
    assert total_steps(10, 4, 1.0, 77) == 77


@pytest.mark.parametrize(
    ("num_rows", "epochs", "max_steps", "steps"),
    [
        (108, None, -1, 200),  # 14 steps would learn nothing
        (1592, None, -1, 200),  # an epoch of 199 steps
        (1608, None, -1, 201),
        (26858, None, -1, 3358),
        (108, 1.0, -1, 14),  # what is asked for is done
        (108, None, 14, 14),
        (108, 1.0, 300, 300),
    ],
)
def test_a_run_has_one_epoch_and_at_least_200_steps_unless_told(num_rows, epochs, max_steps, steps):
    assert total_steps(num_rows, 8, epochs, max_steps) == steps


def test_a_run_says_when_few_rows_are_taken_more_than_once(model_folder, rows_file, tmp_path):
    said = describe_steps(trainer_for(model_folder, rows_file, tmp_path / "default", num_train_epochs=None))
    assert said.startswith("200 steps of 8 rows") and "100 epochs" in said and "`num_train_epochs` 1" in said
    told = {"epochs": {"num_train_epochs": 3}, "steps": {"num_train_epochs": None, "max_steps": 7}}
    for name, options in told.items():
        said = describe_steps(trainer_for(model_folder, rows_file, tmp_path / name, **options))
        assert "epochs" not in said


def test_every_epoch_takes_every_row_once_in_another_order():
    epochs = [[row for step in range(3) for row in rows_of_step(3 * e + step, 10, 4, 1)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert rows_of_step(0, 10, 4, 1) != rows_of_step(0, 10, 4, 2)


def test_the_base_is_bit_identical_after_training(model_folder, rows_file, tmp_path):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", num_train_epochs=2)
    before = {name: value.clone() for name, value in trainer.base.model.state_dict().items()}
    initial = trainer.weight.detach().clone()
    trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.base.model.state_dict().items())
    assert all(p.grad is None for p in trainer.base.model.parameters())
    assert not torch.equal(initial, trainer.weight)


def test_held_out_loss_falls_and_is_recorded(model_folder, rows_file, tmp_path):
    options = {"eval_fraction": 0.3, "num_train_epochs": 30, "learning_rate": 0.3}
    losses = trainer_for(model_folder, rows_file, tmp_path / "run", **options).run().held_out
    assert losses.trained_prompt < losses.initial_prompt
    lines = [json.loads(line) for line in (tmp_path / "run" / "p.run" / "metrics.jsonl").read_text().splitlines()]
    recorded = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(recorded) == 12 and recorded[:2] == [losses.without_prompt, losses.initial_prompt]
    assert losses.trained_prompt == min(recorded[1:])
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [10, 20, 30]
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_mean_loss_weighs_tokens_and_not_batches(model_folder, rows_file, tmp_path):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run")
    rows = trainer.rows.train_rows
    total = sum(mean_loss(trainer.model, [row], pad_token_id=3) * row.num_supervised for row in rows)
    expected = total / sum(row.num_supervised for row in rows)
    assert mean_loss(trainer.model, rows, pad_token_id=3) == pytest.approx(expected, rel=1e-5)
    alone = mean_loss(trainer.base.model, rows, pad_token_id=3)
    assert alone != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("optim", "relative"), RELATIVE_RATES.items())
def test_default_rate_follows_the_scale_of_the_prompt(model_folder, rows_file, tmp_path, optim, relative):
    rates = []
    for scale in (1.0, 100.0):
        prompt, folder = SoftPromptEmbedding.from_tensor(scale * torch.ones(3, 32)), tmp_path / str(scale)
        rates.append(trainer_for(model_folder, rows_file, folder, prompt=prompt, optim=optim).optimizer.rate)
    assert rates == pytest.approx([relative, 100 * relative])


@pytest.mark.parametrize("optim", ["soap", "adamw"])
def test_the_default_run_does_not_depend_on_the_scale_of_the_embeddings(model_folder, rows_file, tmp_path, optim):
    """BLOOM normalises what it is given, so prompts that differ in scale only must learn alike, to the bit.

    Powers of two round alike, and at these the norm's epsilon is below fp32's resolution.
    """
    weight = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
    ends = []
    for scale in (2.0**10, 2.0**20):
        options = {"prompt": SoftPromptEmbedding.from_tensor(scale * weight), "optim": optim, "num_train_epochs": 2}
        trainer = trainer_for(model_folder, rows_file, tmp_path / str(scale), **options)
        trainer.run()
        ends.append(trainer.weight.detach() / scale)
    assert torch.equal(*ends)
    assert (ends[0] - weight).abs().max() > 0.1


def steps_of(scale_loss, losses):
    """A prompt after one step per loss, given as the slopes of its elements, and the norms that were reported."""
    weight = torch.nn.Parameter(torch.full((2, 3), 0.1))
    optimizer = PromptOptimizer(weight, TrainConfig(learning_rate=0.01, max_grad_norm=0.05), scale_loss=scale_loss)
    norms = []
    for slopes in losses:
        optimizer.scaled((weight * slopes).sum()).backward()
        norms.append(optimizer.step(1.0, where="here"))
    return weight.detach(), norms


def test_scaling_the_loss_changes_no_step():
    """Clipping comes after unscaling; one step is clipped, one is not, and one overflows and is left out."""
    drawn = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 0.01])[:, None, None]
    plain, norms = steps_of(False, drawn)
    scaled, same = steps_of(True, drawn)
    assert norms[0] > 0.05 > norms[1]
    # the scale is a power of two, so only subnormal numbers round differently
    assert torch.equal(plain, scaled) and norms == same
    overflowing, norms = steps_of(True, [*drawn, torch.full((2, 3), 1e38)])
    assert torch.equal(overflowing, plain) and not math.isfinite(norms[-1])


def test_a_prompt_of_zeros_learns(model_folder, rows_file, tmp_path):
    trainer = trainer_for(model_folder, rows_file, tmp_path, prompt=SoftPromptEmbedding.from_tensor(torch.zeros(3, 32)))
    trainer.run()
    assert trainer.weight.abs().max() > 0


def test_a_base_that_is_not_finite_is_named_with_its_tensor_and_leaves_no_prompt(model_folder, rows_file, tmp_path):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run")
    with torch.no_grad():
        trainer.base.model.lm_head.weight[7] = float("nan")
    with pytest.raises(UserError, match=r"step 1: the loss is not finite; .* its tensor .*weight holds NaN"):
        trainer.run()
    assert not (tmp_path / "run" / "p.safetensors").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_stay_near_fp32(model_folder, rows_file, tmp_path, precision):
    ends = {}
    for kind in ("fp32", precision):
        trainer = trainer_for(model_folder, rows_file, tmp_path / kind, precision=kind, eval_fraction=0.3)
        assert trainer.weight.dtype == torch.float32
        ends[kind] = trainer.run().held_out.trained_prompt
        assert trainer.optimizer.inner.state[trainer.weight]["gradients"].dtype == torch.float32
    # bf16 keeps 8 bits: two layers and a head stay within 2 % of a loss of about 6
    assert ends[precision] == pytest.approx(ends["fp32"], rel=0.02)


def loss_curve(folder):
    lines = [json.loads(line) for line in (folder / "p.run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    return torch.tensor([line["loss"] for line in lines if "loss" in line])


def test_a_whole_bf16_run_lies_within_the_noise_of_fp32(model_folder, rows_file, tmp_path):
    """The curves of two precisions are nearer to each other than those of two orders of the same rows."""
    runs = {"fp32": {"seed": 1}, "bf16": {"seed": 1, "precision": "bf16"}, "other": {"seed": 2}}
    curves = {}
    for name, options in runs.items():
        common = {"num_train_epochs": 20, "logging_steps": 1, "gradient_accumulation_steps": 4}
        trainer_for(model_folder, rows_file, tmp_path / name, **common, **options).run()
        curves[name] = loss_curve(tmp_path / name)
    assert len(curves["fp32"]) == 60 and curves["fp32"][-10:].mean() < 0.9 * curves["fp32"][:10].mean()
    precision, order = ((curves["fp32"] - curves[other]).square().mean().sqrt() for other in ("bf16", "other"))
    assert precision < 0.5 * order


def test_passes_are_cut_as_stored_and_the_cut_does_not_change_the_run(model_folder, rows_file, tmp_path):
    # SOAP divides by small squares along more axes and would enlarge roundings threefold
    options = {"gradient_accumulation_steps": 8, "max_steps": 4, "save_steps": 2, "optim": "adamw"}
    prompts = {}
    for limit in ("auto", "60"):
        trainer = trainer_for(model_folder, rows_file, tmp_path / limit, max_tokens_per_pass=limit, **options)
        trainer.run()
        prompts[limit] = trainer.weight.detach().clone()
    # 1e-4: four Adam steps enlarge the roundings of differently shaped sums
    assert (prompts["auto"] - prompts["60"]).abs().max() < 1e-4 * prompts["auto"].abs().max()
    resumed = trainer_for(model_folder, rows_file, tmp_path / "60", max_tokens_per_pass="60", resume=True, **options)
    resumed.max_tokens = 4096  # as if the memory that is free had changed
    folder = tmp_path / "60" / "p.run" / "checkpoint-2"
    resumed.restore(load_checkpoint(folder, resumed.layout(), resumed.recipe.require_same))
    assert resumed.max_tokens == 60


def test_what_fits_follows_the_memory_that_is_free(monkeypatch):
    base = make_model("bloom")
    for free, tokens in ((0, 256), (2**40, 4096), (2 * 1000 * 2 * HIDDEN_SIZE * 32 * 4, 1000)):
        monkeypatch.setattr("softprompt.engine.passes.free_memory", lambda free=free: free)
        assert tokens_that_fit(base, 12) == tokens


def test_passes_are_short_where_long_ones_are_not_faster(monkeypatch):
    """On a CPU without AMX, for a base whose activations matter, and only as far as the front is a small part."""
    base = make_model("bloom").bfloat16()
    monkeypatch.setattr("softprompt.engine.passes.free_memory", lambda: 2**40)
    monkeypatch.setattr("softprompt.engine.passes.LITTLE_KEPT", 0)
    for has_amx, front, tokens in ((False, 12, 512), (False, 100, 1600), (False, 1000, 4096), (True, 12, 4096)):
        monkeypatch.setattr("softprompt.packs.cpu_kernels.cpu_uses_amx", lambda has_amx=has_amx: has_amx)
        assert tokens_that_fit(base, front) == tokens
    assert tokens_that_fit(base.float(), 12) == 512  # AMX does not multiply in fp32


def test_a_run_says_how_its_rows_go_through_the_base(model_folder, rows_file, tmp_path, monkeypatch):
    trainer = trainer_for(model_folder, rows_file, tmp_path / "run", max_tokens_per_pass="60")
    assert describe_passes(trainer) == "rows of a step are packed into passes of at most 60 tokens"
    monkeypatch.setattr("softprompt.cli.text.can_pack", lambda base_model: False)
    line = "note: BloomForCausalLM cannot take packed rows, so they run as padded batches of 1: the same result, slower"
    assert describe_passes(trainer) == line


@pytest.mark.parametrize(
    ("has_bf16", "hidden_size", "chosen"), [(True, 512, "bf16"), (True, 192, "fp32"), (False, 4096, "fp32")]
)
def test_auto_holds_wide_bases_in_bf16_where_the_cpu_multiplies_it(monkeypatch, has_bf16, hidden_size, chosen):
    monkeypatch.setattr("softprompt.base.device.cpu_has_bf16", lambda: has_bf16)
    assert resolve_precision("auto", CPU, hidden_size) == chosen
    assert resolve_precision("fp16", CPU, hidden_size) == "fp16"
