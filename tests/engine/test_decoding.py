"""Decoding behind the cached prompt: the ids and draws of transformers' own loop, whatever the family and the pads."""

import random

import pytest
import torch
from helpers.families import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE, make_family
from helpers.models import make_model
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.engine import cached_pass, decoding
from softprompt.engine import fronts as fronts_module
from softprompt.engine import model as model_module
from softprompt.engine.cache import Cache, bias
from softprompt.engine.cached_pass import Pass, segments_of
from softprompt.engine.fronts import front_cache
from softprompt.engine.running import feed, running
from softprompt.packs import cpu_kernels
from softprompt.packs.attention import Rules
from softprompt.packs.cpu_kernels import thin_linear, thin_linears

FREE = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 3}
GREEDY = {**FREE, "do_sample": False}
SAMPLED = {**FREE, "do_sample": True, "top_k": 40, "top_p": 0.9, "temperature": 1.3}
LENGTHS = (9, 1, 5, 14)  # with window sizes of 5 to 7, some rows leave the prompt behind and some do not


def soft_model(base, count=4, seed=5):
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))
    return SoftPromptModel(base, SoftPromptEmbedding.from_tensor(noise))


def texts(*lengths, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def pad(rows, side):
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), 3), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, text in enumerate(rows):
        head = {"right": len(text), "left": 0, "middle": len(text) // 2}[side]
        kept = [*range(head), *range(head + longest - len(text), longest)]
        ids[row, kept], mask[row, kept] = text, 1
    return ids, mask


def theirs(model, ids, **settings):
    """transformers' `generate`, with the prompt's embeddings in front of the text's."""
    embeds = torch.cat([model.soft_prompt(len(ids)), model.base_model.get_input_embeddings()(ids)], dim=1).detach()
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    return model.base_model.generate(
        ids, inputs_embeds=embeds.to(model.base_model.dtype), attention_mask=mask, **settings
    )


@pytest.fixture
def loops(monkeypatch):
    """How often our own loop ran."""
    runs = []

    def counted(*arguments, **settings):
        runs.append(settings)
        return decoding.decode(*arguments, **settings)

    monkeypatch.setattr(model_module, "decode", counted)
    return runs


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_ids_are_those_of_transformers(family, settings, loops):
    for count, length in ((1, 7), (4, 7), (20, 1)):
        model, ids = soft_model(make_family(family), count), torch.stack(texts(length, length, length))
        torch.manual_seed(1)
        expected = theirs(model, ids, **settings)
        torch.manual_seed(1)
        assert torch.equal(model.generate(ids, **settings), expected)
        assert expected.shape == (3, length + 9)
    assert len(loops) == 3


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_padded_row_gets_what_it_gets_alone(family, dtype):
    for count, side in ((1, "left"), (4, "right"), (20, "middle")):
        model, rows = soft_model(make_family(family, dtype), count), texts(*LENGTHS)
        ids, mask = pad(rows, side)
        batch = model.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(batch[:, : ids.shape[1]], ids)
        for row, text in enumerate(rows):
            assert torch.equal(batch[row, ids.shape[1] :], theirs(model, text[None], **GREEDY)[0, len(text) :])


def test_draws_follow_the_distribution():
    model, (text,) = soft_model(make_family("llama")), texts(6)
    draws = 20_000
    settings = {"do_sample": True, "top_k": 12, "temperature": 0.8, "max_new_tokens": 1, "pad_token_id": 3}
    torch.manual_seed(3)
    drawn = model.generate(text[None], num_return_sequences=draws, **settings)[:, -1]
    probabilities = (model(text[None]).logits[0, -1] / 0.8).softmax(-1)
    probabilities[probabilities < probabilities.topk(12).values[-1]] = 0
    expected = draws * probabilities / probabilities.sum()
    counts = drawn.bincount(minlength=VOCAB_SIZE)
    likely = expected > 0
    assert counts[~likely].sum() == 0 and likely.sum() == 12
    # chi-square with 11 degrees of freedom exceeds 31 once in a thousand times
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 31


def test_the_prompt_runs_once_until_it_changes(monkeypatch):
    runs = []

    def counted(base_model, prompt):
        runs.append(prompt)
        return front_cache(base_model, prompt)

    monkeypatch.setattr(fronts_module, "front_cache", counted)
    model, ids = soft_model(make_family("bloom")), torch.stack(texts(6, 6))
    first = [model.generate(ids, **GREEDY) for _ in range(3)]
    assert len(runs) == 1 and torch.equal(first[0], first[2])
    optimizer = torch.optim.SGD([model.soft_prompt.weight], lr=5.0)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    changed = model.generate(ids, **GREEDY)
    assert len(runs) == 2 and torch.equal(changed, theirs(model, ids, **GREEDY))
    model.soft_prompt.weight.data.mul_(-1)  # which no version counter sees
    assert torch.equal(model.generate(ids, **GREEDY), theirs(model, ids, **GREEDY)) and len(runs) == 3
    model.base_model.double()
    assert torch.equal(model.generate(ids, **GREEDY), theirs(model, ids, **GREEDY)) and len(runs) == 4
    assert "_prompt" not in " ".join(model.state_dict()).replace("soft_prompt", "")


class Recorded(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.reshape(-1))

    def end(self):
        self.ended = True


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_a_streamer_gets_the_same_ids(family):
    model, (text,) = soft_model(make_family(family)), texts(6)
    streamer = Recorded()
    output = model.generate(text[None], streamer=streamer, **GREEDY)
    assert torch.equal(torch.cat(streamer.pieces), output[0]) and streamer.ended and len(streamer.pieces) == 10


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_rows_end_at_any_eos_and_are_filled_with_pads(family, loops):
    model, ids = soft_model(make_family(family)), torch.stack(texts(6, 6, 6))
    free = model.generate(ids, **{**GREEDY, "max_new_tokens": 30})[:, 6:]
    ends = [free[0, 3].item(), free[1, 12].item()]
    settings = {**GREEDY, "max_new_tokens": 30, "eos_token_id": ends}
    output = model.generate(ids, **settings)
    assert torch.equal(output, theirs(model, ids, **settings))
    for row, alone in zip(output[:, 6:], free, strict=True):
        end = next((i for i, token in enumerate(alone.tolist()) if token in ends), len(row) - 1)
        assert torch.equal(row[: end + 1], alone[: end + 1]) and (row[end + 1 :] == 3).all()
    single = {**settings, "eos_token_id": ends[0]}
    assert torch.equal(model.generate(ids[:1], **single), theirs(model, ids[:1], **single))
    assert model.generate(ids[:1], **single).shape[1] <= 10
    assert len(loops) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 3},
        {"repetition_penalty": 3.0},
        {"min_new_tokens": 6, "eos_token_id": list(range(200))},
        {"min_length": 12, "max_length": 20, "max_new_tokens": None, "eos_token_id": list(range(200))},
        {"min_p": 0.1, "typical_p": 0.9, "top_k": 0},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [7, 8], "bad_words_ids": [[9]], "forced_eos_token_id": 5},
        {"generation_config": GenerationConfig(do_sample=True, top_k=3, max_new_tokens=5, pad_token_id=3)},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_every_implemented_setting_does_what_it_does_in_transformers(settings, loops):
    model, ids = soft_model(make_family("bloom")), torch.stack(texts(6, 6))
    settings = settings if "generation_config" in settings else {**SAMPLED, **settings}
    torch.manual_seed(1)
    ours = model.generate(ids, **settings)
    torch.manual_seed(1)
    assert torch.equal(ours, theirs(model, ids, **decoding.text_lengths(model.base_model, settings, 6)))
    assert len(loops) == 1


def test_the_base_s_own_settings_count(loops):
    base = make_family("llama")
    base.generation_config.update(do_sample=True, top_k=4, repetition_penalty=2.0, max_new_tokens=7)
    model, ids = soft_model(base), torch.stack(texts(6, 6))
    torch.manual_seed(1)
    ours = model.generate(ids)
    torch.manual_seed(1)
    assert torch.equal(ours, theirs(model, ids)) and ours.shape == (2, 13) and len(loops) == 1
    base.generation_config.num_beams = 2
    torch.manual_seed(1)
    ours = model.generate(ids)
    torch.manual_seed(1)
    assert torch.equal(ours, theirs(model, ids)) and len(loops) == 1


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_the_repetition_penalty_sees_text_only_and_no_pads(family):
    """Against the definition, token by token; pads carry an id that the texts hold nowhere."""
    model, rows = soft_model(make_family(family), count=20), texts(3, 8)
    ids, mask = pad(rows, "right")
    settings = {**GREEDY, "repetition_penalty": 1.5}
    output = model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    for row, text in enumerate(rows):
        known = text.tolist()
        for _ in range(9):
            logits = model(torch.tensor([known])).logits[0, -1].detach()
            for token in set(known):
                logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
            known.append(logits.argmax().item())
        assert output[row].tolist() == known[len(text) :]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
        {"logits_processor": [lambda ids, scores: scores.roll(1, -1)]},
        {"stopping_criteria": [lambda ids, scores: torch.tensor([ids.shape[1] >= 9] * len(ids))]},
        {"prompt_lookup_num_tokens": 3},
        {"prefix_allowed_tokens_fn": lambda row, ids: [5, 6, 7]},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_everything_else_reaches_transformers(settings, loops):
    model, ids = soft_model(make_family("llama")), torch.stack(texts(6, 6))
    if "prompt_lookup_num_tokens" in settings:
        ids = ids[:1]
    torch.manual_seed(1)
    ours = model.generate(ids, **{**GREEDY, **settings})
    torch.manual_seed(1)
    assert torch.equal(ours, theirs(model, ids, **{**GREEDY, **settings}))
    assert loops == []
    if not settings.keys() & {"num_beams", "prompt_lookup_num_tokens"}:  # which may well end at the same ids
        assert not torch.equal(ours, model.generate(ids, **GREEDY))


def test_scores_reach_transformers_and_keep_the_callers_ids(loops):
    model, rows = soft_model(make_family("gpt2")), texts(2, 5)
    ids, mask = pad(rows, "right")
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert len(output.scores) == 9 and torch.equal(output.sequences[:, :5], ids) and loops == []
    assert torch.equal(output.sequences, model.generate(ids, attention_mask=mask, **GREEDY))


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="temprature"):
        soft_model(make_family("bloom")).generate(torch.stack(texts(3)), temprature=2.0)


def test_beams_from_padded_rows_in_float64_are_refused_where_they_could_be_nan():
    model = soft_model(make_family("bloom", torch.float64))
    ids, mask = pad(texts(3, 6), "left")
    with pytest.raises(UserError, match="not exact in fp64"):
        model.generate(ids, attention_mask=mask, num_beams=2, **GREEDY)


def test_a_row_without_text_goes_on_from_the_prompt(loops):
    model = soft_model(make_family("llama"))
    ids, mask = pad([texts(4)[0], torch.tensor([], dtype=torch.long)], "left")
    output = model.generate(ids, attention_mask=mask, **GREEDY)
    token = model(torch.tensor([[5]])).logits[0, 3].argmax()  # of the last virtual token
    assert output[1, 4] == token and loops == []


def test_other_families_and_batch_dependent_angles_reach_transformers(loops):
    base = make_family("llama")
    base.config.rope_parameters = {**base.config.rope_parameters, "rope_type": "dynamic"}
    model, ids = soft_model(base), torch.stack(texts(6, 6))
    assert torch.equal(model.generate(ids, **GREEDY), theirs(model, ids, **GREEDY)) and loops == []


def test_the_base_is_left_as_it_was():
    model, ids = soft_model(make_family("llama")), torch.stack(texts(3))
    before = model.base_model.config._attn_implementation
    model.generate(ids, **GREEDY)
    assert model.base_model.config._attn_implementation == before == "sdpa"
    assert model.generate(ids, **GREEDY).is_inference() is False


@pytest.mark.parametrize("family", ["bloom", "gemma2", "mistral", "gpt2"])
def test_slots_that_are_given_as_a_tensor_are_the_same(family):
    """What the CUDA graph does, whose shapes and slots stand in tensors."""
    base, rows = make_family(family), [text.tolist() for text in texts(7, 4)]
    front = front_cache(base, torch.randn(3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1)))
    logits = []
    for fixed in (False, True):
        cache = Cache()
        cache.join([front] * 2)
        with torch.no_grad(), running(base) as run:
            feed(base, run, cache, None, rows)
            if fixed:
                cache.reserve(2, 100)
            for _ in range(5):
                ids = torch.tensor([row[-1] for row in rows])
                if not fixed:
                    last = feed(base, run, cache, ids)
                    continue
                tokens = Pass(cache, torch.tensor(cache.lengths), device=base.device)
                last = run(tokens, base.get_input_embeddings()(ids))
                cache.lengths = [length + 1 for length in cache.lengths]
        logits.append(last)
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5)


def counted_tokens(monkeypatch):
    """The tokens of every pass behind a front."""
    counts = []
    plan = Pass.__init__

    def counted(self, cache, steps, segments=(), **device):
        plan(self, cache, steps, segments, **device)
        counts.append(len(self.position_ids))

    monkeypatch.setattr(Pass, "__init__", counted)
    return counts


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_what_rows_have_in_common_is_computed_once(family, dtype, monkeypatch):
    """A document of 20 ids, and behind it 5 that only some share, rows that are the same and one that ends early."""
    model = soft_model(make_family(family, dtype))
    document, turn, *ends = (text.tolist() for text in texts(20, 5, 3, 6, 1))
    rows = [document + turn + ends[0], document + ends[1], document + turn + ends[0], document, document + turn]
    rows += [ends[1], document + turn + ends[2]]
    ids, mask = pad([torch.tensor(row) for row in rows], "left")
    model.generate(ids[:1], attention_mask=mask[:1], **GREEDY)  # computes the front
    counts = counted_tokens(monkeypatch)
    batch = model.generate(ids, attention_mask=mask, **GREEDY)
    assert counts == [20 + 5 + 3 + 6 + 6 + 1] + [7] * 8  # each piece once
    for row, text in enumerate(rows):
        alone = theirs(model, torch.tensor([text]), **GREEDY)[0, len(text) :]
        assert torch.equal(batch[row, ids.shape[1] :], alone)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_long_text_attends_in_parts(family, monkeypatch):
    """The logits of float64 within 1e-12 of those of one part, since only the order of sums differs."""
    model = soft_model(make_family(family).double())
    rows = [row.tolist() for row in texts(*LENGTHS)]

    def logits():
        cache = Cache()
        with torch.no_grad(), running(model.base_model) as run:
            cache.join([front_cache(model.base_model, model.soft_prompt.weight.double())] * len(rows))
            return feed(model.base_model, run, cache, None, rows)

    whole = logits()
    for most in (1, 40):
        monkeypatch.setattr(cached_pass, "MOST_SCORES", most)
        torch.testing.assert_close(logits(), whole, rtol=0, atol=1e-12)


def test_parts_hold_every_place_once_and_no_more_scores_than_allowed():
    segment = cached_pass.Segment([0], 100, range(16_000))
    parts = segment.parts
    assert [place for start, end in parts for place in range(start, end)] == [*range(100, 16_100)]
    assert all((end - start) * end <= cached_pass.MOST_SCORES for start, end in parts)


def test_pieces_hold_every_id_of_every_row_once():
    generator = random.Random(3)
    for count in range(1, 9):
        texts = [[generator.choice((1, 2)) for _ in range(generator.randint(1, 12))] for _ in range(count)]
        cache = Cache()
        cache.join([Cache(rows=1)] * (count + 2))
        found = {row: [] for row in range(count)}
        for piece in segments_of(cache, texts, 2):
            for row in piece.rows:
                assert len(found[row - 2]) == piece.start  # behind those that it continues
                found[row - 2] += piece.ids
            assert len(piece.rows) == 1 or len(piece.ids) >= cached_pass.SHARED or len({*map(str, texts)}) < count
        assert [*found.values()] == texts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", CONFIGS)
def test_a_cuda_graph_gives_the_same_ids(family, capsys):
    model, rows = soft_model(make_family(family).cuda()), texts(*LENGTHS)
    ids, mask = pad(rows, "left")
    batch = model.generate(ids.cuda(), attention_mask=mask.cuda(), **GREEDY).cpu()
    assert torch.equal(batch, soft_model(make_family(family)).generate(ids, attention_mask=mask, **GREEDY))
    assert "without a CUDA graph" not in capsys.readouterr().err


def test_bias_is_the_definition():
    slopes = torch.tensor([0.5, 0.25])
    ours = bias(torch.arange(4, -4, -1), Rules(1.0, slopes=slopes, window=3))
    assert ours.shape == (2, 8)
    for head in range(2):
        for place, distance in enumerate(range(4, -4, -1)):
            expected = -slopes[head].item() * distance if 0 <= distance < 3 else -torch.inf
            assert ours[head, place].item() == expected


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("shape", [(3, 1), (1, 5)], ids=["steps", "a text"])
def test_attention_by_products_is_the_definition(softcap, shape):
    """In fp64, with grouped queries, a bias for every head and scores that may be capped."""
    (rows, length), generator = shape, torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, keys, values, added = (
        draw(rows, 4, length, 8),
        draw(rows, 2, 9, 8),
        draw(rows, 2, 9, 8),
        draw(1, 4, length, 9),
    )
    ours = cached_pass._by_products(query, keys, values, added, Rules(0.3, softcap=softcap))
    scores = 0.3 * query @ keys.repeat_interleave(2, dim=1).transpose(2, 3)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = (scores + added).softmax(-1) @ values.repeat_interleave(2, dim=1)
    assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)
    if softcap is None:
        fused = cached_pass.attention(query, keys, values, added, Rules(0.3))
        assert torch.allclose(fused, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [(), (1,), (7,), (2, 3), (600,)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_thin_products_are_linear_layers(rows, with_bias, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "cpu_uses_amx", lambda: True)  # the products are the same on every CPU
    layer = torch.nn.Linear(24, 40, bias=with_bias).to(torch.bfloat16).requires_grad_(False)
    x, thin = torch.randn(*rows, 24, dtype=torch.bfloat16), []
    monkeypatch.setattr(cpu_kernels, "thin_linear", lambda *given: thin.append(given) or thin_linear(*given))
    expected = layer(x)
    with thin_linears(torch.nn.Sequential(layer)):
        output = layer(x)
    assert len(thin) == (rows != (600,)) and "forward" not in vars(layer)
    assert output.shape == expected.shape and output.dtype == torch.bfloat16
    assert torch.allclose(output, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("has_amx", "limit", "used"),
    [
        (True, None, True),
        (True, "ALL", True),
        (True, "avx512_core_amx", True),
        (True, "AVX512_CORE_BF16", False),  # a CPU with AMX that stands in for one without
        (False, None, False),
        (False, "AVX512_CORE_AMX", False),
    ],
)
def test_the_weight_goes_left_where_the_cpu_multiplies_with_amx(monkeypatch, has_amx, limit, used):
    """The feature of the hardware decides, as oneDNN sees it; no timing does."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    cpu_kernels.cpu_uses_amx.cache_clear()
    x, weight = torch.zeros(1, 4, dtype=torch.bfloat16), torch.zeros(3, 4, dtype=torch.bfloat16)
    try:
        assert cpu_kernels.fits(x, weight) is used
        assert not cpu_kernels.fits(x.float(), weight.float())
    finally:
        cpu_kernels.cpu_uses_amx.cache_clear()


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_half_precision_stays_close_to_full(family):
    """Not the ids, which roundings may change, but the logits behind every token."""
    model, half = make_model(family), make_model(family, torch.bfloat16)
    ids = torch.stack(texts(9, 9))
    logits = []
    for base in (model, half):
        noise = torch.randn(3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
        cache = Cache()
        with torch.no_grad(), running(base) as run:
            cache.join([front_cache(base, noise.to(base.dtype))] * 2)
            found = [feed(base, run, cache, None, ids.tolist())]
            found += [feed(base, run, cache, ids[:, place]) for place in range(3)]
        logits.append(torch.stack(found).float())
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].abs().max()
