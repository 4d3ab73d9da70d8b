"""Rows that join and leave between tokens: each gets what transformers' own loop gives it alone."""

import random

import pytest
import torch
from helpers.families import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE, make_family
from transformers import MptConfig, MptForCausalLM

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.engine.continuous import ContinuousDecoding, RunningRow
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches

COUNT = 14


def draw_ids(count, seed):
    return torch.randint(4, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_front(count, seed):
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed)) if count else None
    return Front((), noise)


def make_rows(seed=1, **settings):
    """Rows of unlike fronts, lengths and budgets; some without a front."""
    source = random.Random(seed)
    fronts = [make_front(count, count) for count in (0, 1, 4, 20)]
    return [
        RunningRow(draw_ids(source.randint(1, 12), place), source.choice(fronts), source.randint(1, 9), **settings)
        for place in range(COUNT)
    ]


def alone(base, row, **changes):
    """transformers' own `generate` of the row: its new ids."""
    embed, ids = base.get_input_embeddings(), torch.tensor([row.ids])
    prompt = torch.empty(0, HIDDEN_SIZE) if row.front.prompt is None else row.front.prompt
    embeds = torch.cat([prompt.to(base.dtype)[None], embed(ids)], dim=1)
    settings = {"max_new_tokens": row.max_new_tokens, "eos_token_id": list(row.end_ids) or None, "do_sample": False}
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    settings |= {"pad_token_id": 3} | changes
    return base.generate(ids, inputs_embeds=embeds, attention_mask=mask, **settings)[0, len(row.ids) :].tolist()


def drive(decoding, rows, *, at_a_time=3):
    """Let rows join as soon as there is room, and count the passes."""
    waiting, passes = list(rows), 0
    while waiting or decoding.rows:
        joining = []
        while waiting and len(joining) < at_a_time and decoding.has_room(*joining, waiting[0]):
            joining.append(waiting.pop(0))
        if joining:
            decoding.join(joining)
        if decoding.rows:
            decoding.step()
            passes += 1
    return passes


def running(base, **limits):
    return ContinuousDecoding(base, FrontCaches(), **{"max_rows": 4, "max_slots": 200} | limits)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_every_row_gets_what_it_gets_alone(family, dtype):
    base, rows = make_family(family, dtype), make_rows()
    passes = drive(running(base), rows)
    assert passes < sum(row.max_new_tokens - 1 for row in rows)  # rows shared passes
    for row in rows:
        assert row.new_ids == alone(base, row)


@pytest.mark.parametrize("family", ["bloom", "qwen2"])
def test_a_row_ends_at_its_own_end_ids(family):
    base, rows = make_family(family), make_rows()
    free = [alone(base, row) for row in rows]
    for row, ids in zip(rows, free, strict=True):
        row.end_ids = [ids[len(ids) // 2]]
    drive(running(base), rows)
    for row, ids in zip(rows, free, strict=True):
        assert row.new_ids == ids[: ids.index(row.end_ids[0]) + 1] and row.is_finished


def test_a_row_may_leave_before_its_end():
    base, rows = make_family("llama"), make_rows()[:6]
    for row in rows:
        row.max_new_tokens = 9
    decoding = running(base, max_rows=6, max_slots=1000)
    decoding.join(rows)
    for gone in (rows[5], rows[0], rows[3]):
        decoding.step()
        decoding.leave(gone)
    while decoding.rows:
        decoding.step()
    for row, count in zip(rows, (2, 9, 9, 3, 9, 1), strict=True):
        assert row.new_ids == alone(base, row)[:count]


def test_what_a_row_left_behind_is_not_seen():
    """A short row takes the place of a long one, whose values are made so large that seeing them would show."""
    base, rows = make_family("gpt2"), make_rows()
    decoding = running(base, max_rows=2, max_slots=200)
    long, kept = RunningRow(draw_ids(30, 90), Front(), 2), RunningRow(draw_ids(3, 91), Front(), 40)
    decoding.join([long, kept])
    decoding.step()
    for tensor in (*decoding._cache.keys.values(), *decoding._cache.values.values()):
        tensor[1, :, 3:] = 1e4  # behind the filled slots of the row that stays
    while kept in decoding.rows:
        decoding.step()
        if len(decoding.rows) < 2 and rows:
            decoding.join([rows.pop()])
    assert kept.new_ids == alone(base, kept)


def test_logits_that_are_not_finite_end_their_row_alone():
    base, rows = make_family("llama"), make_rows()[:4]
    broken = RunningRow([9, 8], Front((), torch.full((2, HIDDEN_SIZE), torch.nan)), 5)
    decoding = running(base, max_rows=3, max_slots=1000)
    drive(decoding, [rows[0], broken, *rows[1:]])
    assert broken.failed and broken.new_ids == []
    for row in rows:
        assert row.new_ids == alone(base, row) and not row.failed


def test_room_is_counted_in_slots():
    decoding = running(make_family("bloom"), max_rows=3, max_slots=60)
    small, large = RunningRow(draw_ids(5, 1), make_front(4, 1), 12), RunningRow(draw_ids(20, 1), Front(), 22)
    assert small.slots == 20 and large.slots == 41
    assert decoding.fits(small) and decoding.fits(small, small, small) and not decoding.fits(small, small, small, small)
    assert decoding.fits(large) and not decoding.fits(small, large)
    decoding.join([RunningRow(draw_ids(5, 2), make_front(4, 1), 12)])
    assert decoding.has_room(small) and not decoding.has_room(large)
    assert not decoding.fits(RunningRow([1], Front(), 61))


def test_memory_is_given_back_when_no_row_is_left():
    decoding = running(make_family("bloom"))
    drive(decoding, make_rows())
    assert decoding._cache.keys == {} and decoding._cache.values == {} and decoding._cache.rows == 0


def test_a_sampled_row_draws_what_it_draws_alone():
    base, rows = make_family("bloom"), make_rows()
    model = SoftPromptModel(base, SoftPromptEmbedding.from_tensor(torch.ones(1, HIDDEN_SIZE)))

    def choose(seed):
        generator = torch.Generator().manual_seed(seed)
        return lambda ids, logits: int(torch.multinomial((logits / 1.3).softmax(-1), 1, generator=generator))

    for seed, row in enumerate(rows):
        row.choose = choose(seed)
    drive(running(base), rows)
    for seed, row in enumerate(rows):
        torch.manual_seed(seed)
        settings = {"do_sample": True, "temperature": 1.3, "top_k": 0, "top_p": 1.0, "pad_token_id": 3}
        settings |= {"max_new_tokens": row.max_new_tokens, "eos_token_id": None}
        output = model.generate(torch.tensor([row.ids]), prompts=[row.front], **settings)
        assert row.new_ids == output[0, len(row.ids) :].tolist()


def test_a_family_whose_rows_run_one_by_one_is_refused():
    base = MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=VOCAB_SIZE))
    with pytest.raises(UserError, match="do not share passes"):
        running(base)
