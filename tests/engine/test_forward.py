"""Packs against the untouched transformers model, one row at a time behind the prompt, for every family.

Tolerances, relative. fp64: 1e-9. Where the model itself narrows to fp32 whatever its dtype, 1e-6: BLOOM's and eager
Gemma 2's softmax, and the RMS norms (Cohere's layer norm) of Llama and its kin, where both sides narrow at the same
place but gradients come back through other sums. fp32: 1e-5, a few roundings of 6e-8 times the depth of the sums.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from helpers.families import CONFIGS, HIDDEN_SIZE, SPECIAL, VOCAB_SIZE, make_family
from transformers import GPTJConfig, GPTJForCausalLM

from softprompt import SoftPromptEmbedding, SoftPromptModel
from softprompt.engine.forward import attention_note, pack_hidden_states, pack_loss
from softprompt.engine.front import Front
from softprompt.engine.passes import pass_losses
from softprompt.packs import attention
from softprompt.packs.batches import pack_rows
from softprompt.packs.families import THROUGH_INTERFACE, can_pack
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

COUNTS = (1, 4, 40)  # one virtual token, a few, more than any row has text
ALWAYS_FP32 = set(CONFIGS) - {"gpt2", "gpt_neox", "opt", "phi", "starcoder2"}
ROWS = {  # (length, first labelled token) of each row
    "mixed": [(9, 4), (1, 0), (14, 13), (5, 1), (14, 2), (3, 2)],
    "one supervised token": [(7, 6)],
    "one-token rows": [(1, 0), (1, 0)],
    "cut off within the answer": [(8, 3), (8, 7)],
}


def rows_of(kind, seed=1, opening=(7, 8)):
    """Random rows with a common opening; pads (id 3) stand in the middle, where they are text like any other."""
    draw = random.Random(seed)
    rows = []
    for length, question in ROWS[kind]:
        ids = [*opening, *(draw.randrange(4, VOCAB_SIZE) for _ in range(length))][:length]
        if length > 8:
            ids[length // 2] = 3
        rows.append(EncodedRow(ids, [IGNORE_INDEX] * question + ids[question:]))
    return rows


def prompt_of(count, dtype):
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return noise.to(dtype).requires_grad_()


def one_by_one(model, prompt, rows):
    """Summed loss and its gradient, from the definition."""
    total, count = 0.0, 0
    for row in rows:
        text = model.get_input_embeddings()(torch.tensor(row.input_ids))
        logits = model(inputs_embeds=torch.cat([prompt, text])[None], use_cache=False).logits[0]
        logprobs = logits.to(prompt.dtype).log_softmax(-1)
        for token, label in enumerate(row.labels):
            if label != IGNORE_INDEX:
                total, count = total - logprobs[len(prompt) + token - 1, label], count + 1
    assert count > 0
    return total, *torch.autograd.grad(total, prompt)


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_pack_is_its_rows_one_by_one(family, count, kind, dtype):
    model, prompt, rows = make_family(family, dtype), prompt_of(count, dtype), rows_of(kind)
    loss, gradient = one_by_one(model, prompt, rows)
    packed = pack_loss(model, Front(prompt=prompt), pack_rows(rows, front_length=count))
    narrow = 1e-6 if family in ALWAYS_FP32 else 1e-9
    tolerance = narrow if dtype == torch.float64 else 1e-5
    assert packed.dtype == dtype
    assert relative(packed, loss) < tolerance
    assert relative(*torch.autograd.grad(packed, prompt), gradient) < tolerance


@pytest.mark.parametrize("family", CONFIGS)
def test_recomputed_packs_are_the_same_and_keep_less(family):
    model, prompt = make_family(family), prompt_of(4, torch.float32)
    pack = pack_rows(rows_of("mixed"), front_length=4)
    gradients, kept = [], []
    for recompute in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = pack_loss(model, Front(prompt=prompt), pack, recompute=recompute)
            gradients.append(torch.autograd.grad(loss, prompt)[0])
        kept.append(sum(saved))
    assert torch.equal(*gradients)
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_row_hears_nothing_of_another(family):
    model, prompt = make_family(family, torch.float64), prompt_of(4, torch.float64)
    rows = rows_of("mixed")
    others = [*rows]
    changed = rows[4].input_ids[:2] + [9] * (len(rows[4].input_ids) - 2)  # the opening stays
    others[4] = EncodedRow(changed, rows[4].labels)
    packs = [pack_rows(side, front_length=4) for side in (rows, others)]
    before, after = (pack_hidden_states(model, Front(prompt=prompt), pack) for pack in packs)
    first = sum(row.num_supervised for row in rows[:4])
    own = slice(first, first + rows[4].num_supervised)
    mine = torch.zeros(len(before), dtype=torch.bool)
    mine[own] = True
    assert (before - after)[~mine].abs().max() == 0
    assert (before - after)[mine].abs().max() > 1e-3
    # gradients: the prompt's is a sum over rows, so what row 4 adds is all that may change
    pairs = [(side, [*side[:4], *side[5:]]) for side in (rows, others)]
    rests = []
    for whole, rest in pairs:
        terms = [
            torch.autograd.grad(pack_loss(model, Front(prompt=prompt), pack_rows(r, front_length=4)), prompt)[0]
            for r in (whole, [whole[4]], rest)
        ]
        rests.append(terms[0] - terms[1])
        assert relative(rests[-1], terms[2]) < 1e-6
    assert relative(*rests) < 1e-6


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_traffic_between_rows_would_be_seen(family, monkeypatch):
    """The comparison above fails by far if every row sees every other."""
    model, prompt, rows = make_family(family), prompt_of(4, torch.float32), rows_of("mixed")
    loss, _ = one_by_one(model, prompt, rows)
    pack = pack_rows(rows, front_length=4)
    right = attention.Layout.of(pack, torch.device("cpu"))
    blind = attention.Layout([right.bounds[0], right.bounds[-1]], right.positions)
    monkeypatch.setattr("softprompt.engine.forward.Layout.of", lambda *of_pack: blind)
    assert relative(pack_loss(model, Front(prompt=prompt), pack), loss) > 1e-2


@pytest.mark.parametrize("limit", [1, 10, 25, 4096])
def test_passes_add_up_whatever_the_budget(limit):
    model, rows = make_family("bloom"), rows_of("mixed")
    soft = SoftPromptModel(model, SoftPromptEmbedding.from_tensor(prompt_of(4, torch.float32)))
    losses = list(pass_losses(soft, rows, max_tokens=limit, rows_per_batch=1, pad_token_id=3))
    assert len(losses) == {1: 6, 10: 4, 25: 2, 4096: 1}[limit]
    loss, gradient = one_by_one(model, soft.soft_prompt.weight, rows)
    assert relative(sum(losses), loss) < 1e-5
    assert relative(*torch.autograd.grad(sum(losses), soft.soft_prompt.weight), gradient) < 1e-5


def test_the_base_alone_is_a_pack_without_prompt():
    model, rows = make_family("bloom"), rows_of("mixed")
    total = 0.0
    for row in rows:
        logprobs = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        total -= sum(logprobs[i - 1, label].item() for i, label in enumerate(row.labels) if label != -100 and i > 0)
    (loss,) = pass_losses(model, rows, max_tokens=4096, rows_per_batch=1, pad_token_id=3)
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_other_families_run_as_padded_batches(recompute):
    torch.manual_seed(0)
    config = GPTJConfig(n_embd=HIDDEN_SIZE, n_layer=2, n_head=4, rotary_dim=4, n_positions=512, **SPECIAL)
    model, rows = GPTJForCausalLM(config).eval(), rows_of("mixed")
    assert not can_pack(model)
    soft = SoftPromptModel(model, SoftPromptEmbedding.from_tensor(prompt_of(4, torch.float32)))
    limits = {"max_tokens": 4096, "rows_per_batch": 4, "pad_token_id": 3}
    losses = list(pass_losses(soft, rows, **limits, recompute=recompute))
    loss, gradient = one_by_one(model, soft.soft_prompt.weight, rows)
    assert len(losses) == 2
    assert relative(*torch.autograd.grad(sum(losses), soft.soft_prompt.weight), gradient) < 1e-5


def test_only_tested_families_are_packed():
    assert THROUGH_INTERFACE | {"bloom"} == {make_family(name).config.model_type for name in CONFIGS}
    model = make_family("llama")
    assert can_pack(model)
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not can_pack(model)


def test_nothing_of_the_model_is_changed():
    model = make_family("llama")
    before = (model.config._attn_implementation, {name: p.clone() for name, p in model.named_parameters()})
    prompt = prompt_of(4, torch.float32)
    pack_loss(model, Front(prompt=prompt), pack_rows(rows_of("mixed"), front_length=4), recompute=True).backward()
    assert model.config._attn_implementation == before[0]
    assert all(torch.equal(p, before[1][name]) and p.grad is None for name, p in model.named_parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_kernel_that_is_not_used_is_told(monkeypatch):
    model = make_family("llama")
    assert attention_note(model) is None  # on the CPU nothing else was meant
    asked = []
    monkeypatch.setattr("softprompt.packs.flex_attention.problem", lambda *heads: asked.append(heads) or "no Triton")
    card = SimpleNamespace(config=model.config, dtype=torch.bfloat16, device=torch.device("cuda:0"))
    assert attention_note(card) == "note: rows attend one by one, since FlexAttention does not work here (no Triton)"
    assert asked == [(torch.device("cuda:0"), torch.bfloat16, 4, 2, 8)]
