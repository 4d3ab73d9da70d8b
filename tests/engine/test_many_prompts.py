"""Rows of one batch behind fronts of their own: every row gets what transformers' own model gives it alone."""

import pytest
import torch
from helpers.families import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE, make_family
from transformers import MptConfig, MptForCausalLM

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.engine import fronts as fronts_module
from softprompt.engine import model as model_module
from softprompt.engine.cache import Cache
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches, front_cache
from softprompt.engine.running import feed, running

GREEDY = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 3, "do_sample": False}
# the ids before the prompt, P and the ids after it; None is the base alone. Windows are of 5 to 7 positions
SHAPES = [(0, 4, 0), None, (3, 1, 2), (0, 20, 0), (0, 0, 5), (2, 7, 0)]
LENGTHS = [9, 6, 1, 14, 5, 2]


def draw_ids(count, seed):
    return torch.randint(4, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed))


def make_front(shape, seed):
    if shape is None:
        return None
    before, count, after = shape
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed)) if count else None
    return Front(draw_ids(before, seed + 50).tolist(), noise, draw_ids(after, seed + 90).tolist())


def make_rows():
    fronts = [make_front(shape, seed) for seed, shape in enumerate(SHAPES)]
    return fronts, [draw_ids(length, seed + 10) for seed, length in enumerate(LENGTHS)]


def pad(rows, side="left"):
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), 3), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, text in enumerate(rows):
        kept = slice(longest - len(text), None) if side == "left" else slice(len(text))
        ids[row, kept], mask[row, kept] = text, 1
    return ids, mask


def soft_model(base):
    return SoftPromptModel(base, SoftPromptEmbedding.from_tensor(torch.ones(2, HIDDEN_SIZE)))


def embeds_alone(base, front, text):
    """The row from the definition: embeddings of ids, the vectors, embeddings of ids, embeddings of the text."""
    embed = base.get_input_embeddings()
    front = front or Front()
    prompt = torch.empty(0, HIDDEN_SIZE) if front.prompt is None else front.prompt
    parts = [embed(torch.tensor(front.before, dtype=torch.long)), prompt, embed(torch.tensor([*front.after, *text]))]
    return torch.cat([part.to(base.dtype) for part in parts])[None]


def theirs(base, front, text, **settings):
    """transformers' own `generate` of one row: its new ids."""
    embeds = embeds_alone(base, front, text)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    output = base.generate(text[None], inputs_embeds=embeds, attention_mask=mask, **settings)
    return output[0, len(text) :]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)], ids=["fp64", "fp32"])
def test_logits_of_a_mixed_batch_are_those_of_each_row_alone(family, dtype, tolerance):
    """Behind the text and behind two more ids, which decoding puts into further slots."""
    base, (fronts, rows) = make_family(family, dtype), make_rows()
    caches = [FrontCaches().of(base, front or Front()) for front in fronts]
    cache, found = Cache(), []
    cache.join(caches)
    more = torch.stack([draw_ids(2, seed) for seed in range(len(rows))])
    with torch.no_grad(), running(base) as run:
        found.append(feed(base, run, cache, None, [row.tolist() for row in rows]))
        found += [feed(base, run, cache, more[:, place]) for place in range(2)]
    for row, (front, text) in enumerate(zip(fronts, rows, strict=True)):
        with torch.no_grad():
            expected = base(inputs_embeds=embeds_alone(base, front, torch.cat([text, more[row]]))).logits[0, -3:]
        ours = torch.stack([logits[row] for logits in found])
        # BLOOM's softmax and the norms of others are in fp32 whatever the base's dtype
        assert (ours - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_of_a_mixed_batch_are_those_of_each_row_alone(family, dtype, side):
    base, (fronts, rows) = make_family(family, dtype), make_rows()
    ids, mask = pad(rows, side)
    output = soft_model(base).generate(ids, mask, prompts=fronts, **GREEDY)
    assert torch.equal(output[:, : ids.shape[1]], ids)
    new = output[:, ids.shape[1] :]
    for row, (front, text) in enumerate(zip(fronts, rows, strict=True)):
        assert torch.equal(new[row], theirs(base, front, text, **GREEDY))
    assert len({tuple(row.tolist()) for row in new}) > 3  # some random bases repeat one id whatever they read


def test_a_prompt_stands_between_the_models_own_ids():
    base = make_family("llama")
    prompts = [SoftPromptEmbedding.from_tensor(make_front((0, count, 0), count).prompt) for count in (3, 8)]
    model = SoftPromptModel(base, prompts[0], before=(9, 8), after=(7,))
    ids = torch.stack([draw_ids(6, 1)] * 3)
    output = model.generate(ids, prompts=[prompts[1], None, prompts[0]], **GREEDY)[:, 6:]
    fronts = [Front((9, 8), prompts[1].weight.detach(), (7,)), None, model.front]
    for row, front in enumerate(fronts):
        assert torch.equal(output[row], theirs(base, front, ids[row], **GREEDY))
    assert torch.equal(output[2:], model.generate(ids[:1], **GREEDY)[:, 6:])


def test_one_prompt_for_all_rows_draws_what_the_models_own_prompt_draws():
    model, ids = soft_model(make_family("bloom")), torch.stack([draw_ids(6, 1), draw_ids(6, 2)])
    settings = {**GREEDY, "do_sample": True, "temperature": 1.5, "num_return_sequences": 3}
    outputs = []
    for prompts in (None, [model.soft_prompt] * 2):
        torch.manual_seed(4)
        outputs.append(model.generate(ids, prompts=prompts, **settings))
    assert torch.equal(*outputs) and len(set(map(tuple, outputs[0].tolist()))) == 6


@pytest.mark.parametrize("family", ["bloom", "mistral"])
def test_several_answers_to_a_row_stand_behind_its_own_front(family):
    """With so low a temperature each draw is the greedy id."""
    base, (fronts, rows) = make_family(family), make_rows()
    ids, mask = pad(rows)
    settings = {**GREEDY, "do_sample": True, "temperature": 1e-6, "num_return_sequences": 2}
    output = soft_model(base).generate(ids, mask, prompts=fronts, **settings)[:, ids.shape[1] :]
    for row, (front, text) in enumerate(zip(fronts, rows, strict=True)):
        expected = theirs(base, front, text, **GREEDY)
        assert torch.equal(output[2 * row], expected) and torch.equal(output[2 * row + 1], expected)


def test_rows_end_each_at_its_own_eos():
    base, (fronts, rows) = make_family("llama"), make_rows()
    ids, mask = pad(rows)
    free = soft_model(base).generate(ids, mask, prompts=fronts, **GREEDY)[:, ids.shape[1] :]
    ends = [free[0, 2].item(), free[3, 5].item()]
    output = soft_model(base).generate(ids, mask, prompts=fronts, **{**GREEDY, "eos_token_id": ends})
    for row, alone in zip(output[:, ids.shape[1] :], free, strict=True):
        end = next((i for i, token in enumerate(alone.tolist()) if token in ends), len(row) - 1)
        assert torch.equal(row[: end + 1], alone[: end + 1]) and (row[end + 1 :] == 3).all()


def padded_base():
    """A family that does not pack."""
    torch.manual_seed(0)
    base = MptForCausalLM(MptConfig(d_model=HIDDEN_SIZE, n_heads=4, n_layers=2, vocab_size=VOCAB_SIZE))
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return base.eval()


@pytest.mark.parametrize(("name", "settings"), [("mpt", {}), ("mpt", {"num_beams": 3}), ("llama", {"num_beams": 3})])
def test_rows_that_transformers_decodes_run_one_by_one(name, settings, monkeypatch):
    monkeypatch.setattr(model_module, "decode", None)
    base, (fronts, rows) = padded_base() if name == "mpt" else make_family(name), make_rows()
    ids, mask = pad(rows, "right")
    settings = {**GREEDY, **settings}
    free = [theirs(base, front, text, **settings) for front, text in zip(fronts, rows, strict=True)]
    settings |= {"eos_token_id": free[3][4].item()}
    output = soft_model(base).generate(ids, mask, prompts=fronts, **settings)
    assert torch.equal(output[:, : ids.shape[1]], ids)
    for row, (front, text) in enumerate(zip(fronts, rows, strict=True)):
        expected = theirs(base, front, text, **settings)
        new = output[row, ids.shape[1] :]
        assert torch.equal(new[: len(expected)], expected) and (new[len(expected) :] == 3).all()
    with pytest.raises(UserError, match="one by one"):
        soft_model(base).generate(ids, mask, prompts=fronts, return_dict_in_generate=True, **settings)


def test_what_does_not_fit_is_refused():
    model, ids = soft_model(make_family("llama")), torch.stack([draw_ids(6, 1)] * 2)
    with pytest.raises(UserError, match="1 for 2 rows"):
        model.generate(ids, prompts=[None], **GREEDY)
    with pytest.raises(UserError, match="row 1: is 16 wide"):
        model.generate(ids, prompts=[None, SoftPromptEmbedding.from_tensor(torch.ones(2, 16))], **GREEDY)
    with pytest.raises(UserError, match="`after` holds id 999"):
        model.generate(ids, prompts=[None, Front(after=(999,))], **GREEDY)
    mask = torch.tensor([[1] * 6, [0] * 6])
    with pytest.raises(UserError, match="row 1: has neither a prompt nor text"):
        model.generate(ids, mask, prompts=[None, None], **GREEDY)


def test_a_front_is_computed_once_and_the_least_recently_used_goes(monkeypatch):
    runs = []

    def counted(base_model, embeds):
        runs.append(len(embeds))
        return front_cache(base_model, embeds)

    monkeypatch.setattr(fronts_module, "front_cache", counted)
    base, caches = make_family("gemma2"), FrontCaches(kept=2)
    one, two, three = (make_front((0, count, 0), count) for count in (1, 2, 3))
    first = caches.of(base, one)
    caches.of(base, two)
    assert caches.of(base, one) is first and runs == [1, 2]
    caches.of(base, three)  # the second goes, which was used before the first
    assert caches.of(base, one) is first and len(caches) == 2 and runs == [1, 2, 3]
    caches.of(base, two)
    assert runs == [1, 2, 3, 2]
    two.prompt.mul_(-1)
    assert caches.of(base, two).lengths == [2] and runs == [1, 2, 3, 2, 2]


def test_more_prompts_than_are_kept_share_a_batch():
    model = soft_model(make_family("qwen3"))
    model.front_caches.kept = 2
    fronts, rows = make_rows()
    ids, mask = pad(rows)
    output = model.generate(ids, mask, prompts=fronts, **GREEDY)
    model.front_caches = FrontCaches()
    assert torch.equal(output, model.generate(ids, mask, prompts=fronts, **GREEDY))
