"""Against PEFT: initial prompt, logits, loss, gradient, ten optimizer steps, greedy ids, and its adapter file.

Batches are unpadded here, since PEFT puts left pads between prompt and text (peft#54, #1093). Tolerances: fp32 1e-5
relative is a few roundings (2^-24 = 6e-8) times the depth of the sums. In fp64 BLOOM is held to 1e-6, since its
softmax is fp32 whatever the dtype, and the others to 1e-12; there the reference loss is taken from PEFT's fp64 logits,
because transformers' own loss narrows them to fp32.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers.models import FAMILIES, VOCAB_SIZE, make_model
from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

from softprompt import SoftPromptEmbedding, SoftPromptModel, load_prompt, save_prompt

TEXT = "The following is a dialog."
COUNTS = {"cut": 5, "repeated": 61, "one": 1}  # TEXT has 26 tokens


@pytest.fixture
def tokenizer_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def peft_model(base, tokenizer_folder, count):
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=TEXT,
        num_virtual_tokens=count,
        tokenizer_name_or_path=tokenizer_folder,
    )
    return get_peft_model(base, config).eval()


def pair(family, tokenizer, tokenizer_folder, count, dtype=torch.float32):
    """The same random base under PEFT and under ours."""
    theirs = peft_model(make_model(family, dtype), tokenizer_folder, count).to(dtype)
    base = make_model(family, dtype)
    prompt = SoftPromptEmbedding.from_text(TEXT, tokenizer, base.get_input_embeddings(), count).to(dtype)
    return theirs, SoftPromptModel(base, prompt)


def their_prompt(model):
    return model.prompt_encoder.default.embedding.weight


def batch(seed=1, rows=3, length=11, question=4):
    """Random unpadded rows; the first `question` tokens carry no label."""
    ids = torch.randint(4, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :question] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def loss_of(logits, labels):
    """Mean cross-entropy in the logits' own dtype."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def relative(ours, theirs):
    """Largest difference relative to the largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_initial_prompt_is_equal_to_the_bit(family, count, tokenizer, tokenizer_folder):
    theirs, ours = pair(family, tokenizer, tokenizer_folder, count)
    assert ours.soft_prompt.weight.shape == (count, 32)
    assert torch.equal(ours.soft_prompt.weight, their_prompt(theirs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_logits_loss_and_gradient(family, count, dtype, tokenizer, tokenizer_folder):
    theirs, ours = pair(family, tokenizer, tokenizer_folder, count, dtype)
    a, b = theirs(**batch()), ours(**batch())
    their_loss = a.loss if dtype == torch.float32 else loss_of(a.logits[:, count:], batch()["labels"])
    their_loss.backward()
    b.loss.backward()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6 if family == "bloom" else 1e-12
    assert a.logits.shape == b.logits.shape == (3, count + 11, VOCAB_SIZE)
    assert relative(b.logits, a.logits) < tolerance
    assert relative(b.loss, their_loss) < tolerance
    gradient = their_prompt(theirs).grad
    assert gradient.abs().max() > 1e-4
    assert relative(ours.soft_prompt.weight.grad, gradient) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_one_supervised_token(family, tokenizer, tokenizer_folder):
    theirs, ours = pair(family, tokenizer, tokenizer_folder, 5)
    rows = batch(length=6, question=5)
    assert relative(ours(**rows).loss, theirs(**rows).loss) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_adamw_steps(family, tokenizer, tokenizer_folder):
    theirs, ours = pair(family, tokenizer, tokenizer_folder, 7)
    before = ours.soft_prompt.weight.detach().clone()
    optimizers = [torch.optim.AdamW([w], lr=0.05) for w in (their_prompt(theirs), ours.soft_prompt.weight)]
    for step in range(10):
        losses = []
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            loss = model(**batch(seed=step)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        # Adam divides by the gradient's own size, which enlarges roundings: 1e-4 after ten steps
        assert relative(losses[1], losses[0]) < 1e-4
    assert (ours.soft_prompt.weight - before).abs().max() > 0.1
    assert relative(ours.soft_prompt.weight.detach(), their_prompt(theirs).detach()) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 5, 61])
def test_greedy_ids(family, count, tokenizer, tokenizer_folder):
    theirs, ours = pair(family, tokenizer, tokenizer_folder, count)
    rows = {key: value for key, value in batch().items() if key != "labels"}
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected = theirs.generate(**rows, **settings)
    assert expected.shape == (3, 31)
    assert torch.equal(ours.generate(**rows, **settings), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_file_is_a_peft_adapter(family, tokenizer, tokenizer_folder, tmp_path):
    theirs, ours = pair(family, tokenizer, tokenizer_folder, 6)
    with torch.no_grad():
        ours.soft_prompt.weight += torch.randn_like(ours.soft_prompt.weight)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(theirs.peft_config["default"].to_dict(), default=str))
    save_prompt(adapter / "adapter_model.safetensors", ours.soft_prompt, {"base": "somewhere"})
    loaded = PeftModel.from_pretrained(make_model(family), adapter).eval()
    assert torch.equal(their_prompt(loaded), load_prompt(adapter / "adapter_model.safetensors").weight)
    assert relative(ours(**batch()).logits, loaded(**batch()).logits) < 1e-5
    assert relative(ours(**batch()).logits, theirs(**batch()).logits) > 1e-3
