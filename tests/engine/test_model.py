"""SoftPromptModel: row-exact batches, a base that never changes, generation lengths, recomputed layers."""

import pytest
import torch
from helpers.models import FAMILIES, HIDDEN_SIZE, VOCAB_SIZE, make_model
from transformers import GenerationConfig, OPTConfig, OPTForCausalLM, pipeline

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.packs.families import recomputed_layers

LENGTHS = (9, 1, 5, 14)  # rows of very different length, one of a single token
COUNTS = (1, 4, 40)  # one virtual token, a few, more than any row has text


def soft_model(base, count=4, dtype=torch.float32):
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(5))
    return SoftPromptModel(base, SoftPromptEmbedding.from_tensor(noise).to(dtype))


def rows(seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCAB_SIZE, (length,), generator=generator) for length in LENGTHS]


def pad(texts, side, fill=3):
    """Input ids and mask `[B, max length]`, pads on `side`; "middle" splits a row around its pads."""
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), fill), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        places = list(range(longest))
        spare = longest - len(text)
        head = {"right": len(text), "left": 0, "middle": len(text) // 2}[side]
        kept = places[:head] + places[head + spare :]
        ids[row, kept] = text
        mask[row, kept] = 1
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left", "middle"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_padded_row_computes_what_it_computes_alone(family, side, count):
    model = soft_model(make_model(family), count)
    ids, mask = pad(rows(), side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.shape == (len(LENGTHS), count + max(LENGTHS), VOCAB_SIZE)
    assert torch.isfinite(logits).all()
    for row, text in enumerate(rows()):
        alone = model(text[None]).logits[0]
        own = torch.cat([logits[row, :count], logits[row, count:][mask[row] == 1]])
        # 1e-5 relative: matrix products of another shape round differently
        assert ((own - alone).abs().max() / alone.abs().max()).item() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_finite_in_float64_where_eager_models_give_nan_on_masked_rows(family):
    model = soft_model(make_model(family, torch.float64), dtype=torch.float64)
    ids, mask = pad(rows(), "left")
    assert torch.isfinite(model(ids, attention_mask=mask).logits).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left", "middle"])
def test_loss_is_the_mean_over_supervised_tokens_of_all_rows(family, side):
    model = soft_model(make_model(family))
    ids, mask = pad(rows(), side)
    labels = torch.where(mask == 1, ids, -100)
    total, count = 0.0, 0
    for text in rows():  # the definition, a row and a token at a time
        logprobs = model(text[None]).logits[0].log_softmax(-1)
        for place, token in enumerate(text):
            total -= logprobs[4 + place - 1, token].item()
            count += 1
    assert count == sum(LENGTHS)
    loss = model(ids, attention_mask=mask, labels=labels).loss.item()
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert model.summed_loss(ids, mask, labels).item() == pytest.approx(total, rel=1e-5)


def test_no_supervised_token_gives_zero_and_not_nan(base):
    ids, mask = pad(rows(), "right")
    assert soft_model(base)(ids, mask, labels=torch.full_like(ids, -100)).loss.item() == 0.0


def test_one_step_changes_the_prompt_and_nothing_else(base):
    model = soft_model(base).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids, mask = pad(rows(), "right")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(ids, mask, labels=ids).loss.backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["soft_prompt.weight"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["soft_prompt.weight"]


def test_base_stays_in_eval_mode_and_keeps_its_dtype():
    base = make_model("gpt2", torch.bfloat16)
    model = soft_model(base).train()
    assert model.training and model.soft_prompt.training and not base.training
    assert not any(module.training for module in base.modules())
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert model.soft_prompt.weight.dtype == torch.float32
    ids, mask = pad(rows(), "right")
    model(ids, mask, labels=ids).loss.backward()
    assert model.soft_prompt.weight.grad.dtype == torch.float32


def test_a_prompt_of_another_width_is_refused(base):
    with pytest.raises(UserError, match="16 wide, the base's embeddings 32"):
        SoftPromptModel(base, SoftPromptEmbedding.from_tensor(torch.ones(2, 16)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", COUNTS)
def test_generation_from_a_padded_batch_equals_each_row_alone(family, count):
    model = soft_model(make_model(family), count)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    ids, mask = pad(rows(), "left")
    batch = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(batch[:, : ids.shape[1]], ids)
    for row, text in enumerate(rows()):
        alone = model.generate(text[None], **settings)[0, len(text) :]
        assert torch.equal(batch[row, ids.shape[1] :], alone)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_length": 16}, 16),
        ({"max_length": 16, "max_new_tokens": 3}, 12),
        ({"generation_config": GenerationConfig(max_length=17)}, 17),
        ({"generation_config": GenerationConfig(max_new_tokens=5)}, 14),
        ({}, 29),
    ],
)
def test_lengths_count_text_ids_only(base, settings, expected):
    text = rows()[0][None]
    output = soft_model(base, 40).generate(text, do_sample=False, eos_token_id=None, pad_token_id=3, **settings)
    assert output.shape == (1, expected)


def test_min_length_counts_text_ids_only(base):
    text = rows()[0][None]
    every_token_ends = list(range(VOCAB_SIZE - 1))
    settings = {"do_sample": False, "eos_token_id": every_token_ends, "pad_token_id": 3, "max_length": 30}
    assert soft_model(base, 40).generate(text, min_length=15, **settings).shape[1] >= 15
    assert soft_model(base, 40).generate(text, **settings).shape[1] < 15


def test_max_length_without_room_is_refused(base):
    with pytest.raises(UserError, match="no room behind 9 text tokens"):
        soft_model(base).generate(rows()[0][None], max_length=9)


def test_repetition_penalty_and_beams_reach_transformers(base):
    model, text = soft_model(base), rows()[3][None]
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    plain = model.generate(text, **settings)
    assert not torch.equal(plain, model.generate(text, repetition_penalty=5.0, **settings))
    assert model.generate(text, num_beams=3, **settings).shape == plain.shape


def test_sampling_with_one_seed_repeats(base):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(soft_model(base).generate(rows()[0][None], do_sample=True, max_new_tokens=15, pad_token_id=3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def small_opt():
    """OPT applies dropout in the layer itself, so recomputing must not switch the layer to train mode."""
    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN_SIZE, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTForCausalLM(
        OPTConfig(vocab_size=VOCAB_SIZE, word_embed_proj_dim=HIDDEN_SIZE, dropout=0.5, **shape)
    ).eval()


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_recomputed_layers_keep_less_and_change_nothing(family):
    gradients, kept = [], []
    for recompute in (False, True):
        model = soft_model(small_opt() if family == "opt" else make_model(family))
        ids, mask = pad(rows(), "right")
        saved = []

        def count(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            if recompute:
                with recomputed_layers(model.base_model):
                    model(ids, mask, labels=ids).loss.backward()
            else:
                model(ids, mask, labels=ids).loss.backward()
        gradients.append(model.soft_prompt.weight.grad)
        kept.append(sum(saved))
    assert torch.equal(*gradients)
    assert kept[1] < 0.7 * kept[0]
    assert not any("forward" in vars(module) for module in model.base_model.modules())


def test_trainable_parameters_line():
    base = make_model("bloom")
    size = sum(p.numel() for p in base.parameters())
    line = soft_model(base).trainable_parameters_line()
    assert line == f"trainable params: 128 || all params: {size + 128:,} || trainable%: {12800 / (size + 128):.4f}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_says_of_itself_what_its_base_says(base, dtype):
    model = soft_model(base.to(dtype))
    assert model.device == base.device == torch.device("cpu") and model.dtype == base.dtype == dtype
    assert model.config is base.config and model.generation_config is base.generation_config
    assert model.can_generate() is True
    base.can_generate = lambda: False  # the base is asked
    assert model.can_generate() is False


def test_a_pipeline_gives_the_ids_of_generate(base, tokenizer):
    model = soft_model(base)
    texts = ["Say red", "Say a longer thing", "Hi"]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for batch_size in (1, len(texts)):
        given = pipe(texts, return_tensors=True, batch_size=batch_size, **settings)
        for text, (answer,) in zip(texts, given, strict=True):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            wanted = model.generate(ids, **settings)[0].tolist()
            found = answer["generated_token_ids"]
            assert found[len(found) - len(wanted) :] == wanted  # a batch has pads in front
            assert wanted != base.generate(ids, **settings)[0].tolist()  # the prompt was there
    (written,) = pipe(texts[0], return_full_text=False, **settings)
    ids = tokenizer(texts[0], return_tensors="pt")["input_ids"]
    new = model.generate(ids, **settings)[0, ids.shape[1] :]
    assert written["generated_text"] == tokenizer.decode(new, skip_special_tokens=True) != ""
