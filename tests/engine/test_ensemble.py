"""Ensembles: the next id comes from the mean of the members' distributions, each taken from the member alone."""

import pytest
import torch
from helpers.families import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE, make_family
from transformers import MptConfig, MptForCausalLM

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.engine.decoding import mean_distribution

GREEDY = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 3, "do_sample": False}


def draw_ids(count, seed):
    return torch.randint(4, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def members_of(base):
    noises = [torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(count)) for count in (2, 11, 5)]
    return [SoftPromptModel(base, SoftPromptEmbedding.from_tensor(noise)) for noise in noises]


def mean_of(members, ids):
    """The mean of the members' distributions behind ids, in fp64."""
    with torch.no_grad():
        logits = [member(torch.tensor([ids])).logits[0, -1] for member in members]
    return torch.stack([each.double().softmax(-1) for each in logits]).mean(0)


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_ids_are_those_of_the_mean_distribution(family):
    """From texts of unlike length in one batch, against the definition, token by token."""
    members = members_of(make_family(family))
    texts = [draw_ids(8, 1), draw_ids(3, 2)]
    ids = torch.tensor([texts[0], [3] * 5 + texts[1]])
    mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3])
    ensemble = [member.soft_prompt for member in members]
    output = members[0].generate(ids, mask, ensemble=ensemble, **GREEDY)[:, 8:]
    assert output.shape == (2, 9)
    for row, text in zip(output, texts, strict=True):
        known = list(text)
        for _ in range(9):
            known.append(int(mean_of(members, known).argmax()))
        assert row.tolist() == known[len(text) :]


def test_draws_follow_the_mean_distribution():
    members, text = members_of(make_family("llama")), draw_ids(6, 1)
    draws = 20_000
    torch.manual_seed(3)
    drawn = members[0].generate(
        torch.tensor([text]),
        ensemble=[member.soft_prompt for member in members],
        **{**GREEDY, "do_sample": True, "top_k": 12, "max_new_tokens": 1, "num_return_sequences": draws},
    )[:, -1]
    expected = mean_of(members, text)
    expected[expected < expected.topk(12).values[-1]] = 0
    expected *= draws / expected.sum()
    counts, likely = drawn.bincount(minlength=VOCAB_SIZE), expected > 0
    assert counts[~likely].sum() == 0 and likely.sum() == 12
    # chi-square with 11 degrees of freedom exceeds 31 once in a thousand times
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 31


def test_the_mean_of_distributions():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = logits.softmax(-1).view(3, 2, 9).mean(1)
    assert torch.allclose(mean_distribution(logits, 2).exp(), expected, rtol=1e-12)
    assert mean_distribution(logits.bfloat16(), 2).dtype == torch.float32


def test_one_pass_computes_all_members():
    base = make_family("bloom")
    members = members_of(base)
    ensemble = [member.soft_prompt for member in members]
    members[0].generate(torch.tensor([draw_ids(5, 1)]), ensemble=ensemble, **GREEDY)
    shapes = []
    handle = base.get_input_embeddings().register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    members[0].generate(torch.tensor([draw_ids(5, 1)]), ensemble=ensemble, **GREEDY)
    handle.remove()
    assert [tuple(shape) for shape in shapes if shape.numel()] == [(3 * 5,)] + [(3,)] * 8


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {}], ids=["beams", "another family"])
def test_where_ensembles_do_not_run_they_are_refused(settings):
    base = MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=VOCAB_SIZE))
    base = make_family("llama") if settings else base
    model = SoftPromptModel(base, SoftPromptEmbedding.from_tensor(torch.ones(2, 32)))
    with pytest.raises(UserError, match="`ensemble`"):
        model.generate(torch.tensor([[5, 6]]), ensemble=[model.soft_prompt] * 2, **GREEDY, **settings)
