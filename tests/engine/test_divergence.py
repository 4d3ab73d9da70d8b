"""KL from a teacher: chunks against torch on whole logits, and packs against the untouched model with the text in."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import CONFIGS, VOCAB_SIZE, make_family

from softprompt import SoftPromptEmbedding, SoftPromptModel
from softprompt.engine import divergence
from softprompt.engine.divergence import divergence_of_each, head_divergence
from softprompt.engine.front import Front
from softprompt.engine.loss import Head
from softprompt.engine.teacher import Teacher, divergence_losses, divergence_scores, divergence_tokens
from softprompt.tokens.encoding import EncodedRow

BEFORE, AFTER = [5, 6, 7], [8, 9]  # what a template writes around the text
TEXT = [40 + place * 7 % 200 for place in range(23)]
FRONT = Front([*BEFORE, *TEXT, *AFTER])


def sides(count, width=16, vocabulary=50, seed=0, **settings):
    """Random hidden states of student and teacher, a head and targets, in fp64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    head = Head(normal(vocabulary, width), normal(vocabulary), **settings)
    targets = torch.randint(vocabulary, (count,), generator=generator)
    return normal(count, width).requires_grad_(), normal(count, width), head, targets


def whole(hidden, goal, head, targets, temperature, ce):
    """The definition by torch's own functions, on whole logits."""

    def logits(states):
        found = (states @ head.weight.T + head.bias) * head.scale
        return found if head.softcap is None else head.softcap * torch.tanh(found / head.softcap)

    student, teacher = logits(hidden), logits(goal)
    log_p, log_q = ((side / temperature).log_softmax(-1) for side in (teacher, student))
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return (1 - ce) * temperature**2 * kl + ce * F.cross_entropy(student, targets, reduction="sum")


@pytest.mark.parametrize("settings", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 0.5, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize(("temperature", "ce"), [(1.0, 0.0), (2.5, 0.0), (0.5, 0.3), (1.0, 0.9)])
@pytest.mark.parametrize("cut", [True, False])
def test_chunks_give_the_divergence_of_whole_logits(settings, temperature, ce, cut, monkeypatch):
    if cut:
        monkeypatch.setattr(divergence, "MIN_CHUNK", 3)
        monkeypatch.setattr(divergence, "CHUNK_LOGITS", 1)
        monkeypatch.setattr(divergence, "FINE_LOGITS", 100)
    hidden, goal, head, targets = sides(23, **settings)
    wanted = whole(hidden, goal, head, targets, temperature, ce)
    (gradient,) = torch.autograd.grad(wanted, hidden)
    found = head_divergence(hidden, goal, head, targets, temperature=temperature, ce=ce)
    (ours,) = torch.autograd.grad(3 * found, hidden)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert (ours / 3 - gradient).abs().max() < 1e-12 * gradient.abs().max()
    assert wanted.item() > 1 and gradient.abs().max() > 0.1


def test_the_divergence_of_each_token_is_torchs():
    hidden, goal, head, _ = sides(200, vocabulary=7)
    student, teacher = (states.detach() @ head.weight.T + head.bias for states in (hidden, goal))
    wanted = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    found, same = divergence_of_each(hidden.detach(), goal, head)
    assert (found - wanted).abs().max() < 1e-12
    assert torch.equal(same, student.argmax(-1) == teacher.argmax(-1)) and 0 < same.sum() < 200
    nothing, all_same = divergence_of_each(goal, goal, head)
    assert nothing.abs().max() == 0 and all_same.all()


NARROW = ("bloom", "bloom_post_norm", "gemma2")


def make_rows(count=7):
    generator = torch.Generator().manual_seed(3)
    rows = []
    for place in range(count):
        length = 6 + 5 * place % 17
        ids = [11, 12, *torch.randint(20, VOCAB_SIZE, (length,), generator=generator).tolist()]
        start = 3 + place % 4
        rows.append(EncodedRow(ids, [-100] * start + ids[start:], number=place + 1))
    return rows


def logits_behind(base, front, row):
    """The untouched model's logits at the places that predict a label, the front recomputed for this row."""
    embeds = torch.cat([front, base.get_input_embeddings()(torch.tensor(row.input_ids))])[None]
    logits = base(inputs_embeds=embeds).logits[0, len(front) :]
    return torch.stack([logits[place - 1] for place, label in enumerate(row.labels) if label != -100])


@pytest.mark.parametrize("family", CONFIGS)
def test_packs_give_the_divergence_of_rows_alone_with_the_text_in_front(family):
    """Loss and gradient of the prompt, float64: every row alone, the text recomputed, KL on whole logits."""
    base = make_family(family, torch.float64)
    embedding, rows = base.get_input_embeddings(), make_rows()
    prompt = SoftPromptEmbedding(0.5 * torch.randn(4, embedding.weight.shape[1], generator=torch.manual_seed(1)))
    student = SoftPromptModel(base, prompt, BEFORE, AFTER)
    teacher = Teacher(base, FRONT, rows)
    goals = [teacher.states(row) for row in rows]
    losses = list(divergence_losses(base, student.front, rows, goals, max_tokens=60))
    (ours,) = torch.autograd.grad(sum(losses), prompt.weight)
    assert len(losses) > 1

    # where transformers itself narrows to fp32 inside (test_forward.py), the two sides agree to fp32
    tolerance = 1e-6 if family in NARROW else 1e-10
    before, text, after = (embedding(torch.tensor(ids)) for ids in (BEFORE, TEXT, AFTER))
    total = 0.0
    for row in rows:
        # the model of transformers takes the ids as a person would write them
        wanted = logits_behind(base, torch.cat([before, text, after]), row).log_softmax(-1)
        got = logits_behind(base, torch.cat([before, prompt.weight.double(), after]), row).log_softmax(-1)
        each = F.kl_div(got, wanted, log_target=True, reduction="sum")
        ((score, same),) = divergence_tokens(base, student.front, [row], [teacher.states(row)])
        assert score.sum().item() == pytest.approx(each.item(), rel=tolerance)
        assert torch.equal(same, got.argmax(-1) == wanted.argmax(-1))
        total = total + each
    (gradient,) = torch.autograd.grad(total, prompt.weight)
    assert sum(losses).item() == pytest.approx(total.item(), rel=tolerance)
    # the prompt is fp32, and so is its gradient
    assert (ours - gradient).abs().max() < 1e-6 * gradient.abs().max()
    assert total.item() > 0.1 and gradient.abs().max() > 1e-3


def test_states_are_computed_once_and_the_same_in_any_order(monkeypatch):
    monkeypatch.setattr("softprompt.engine.teacher.TOKENS_PER_PASS", 30)
    base, rows = make_family("llama"), make_rows()
    first, second = Teacher(base, FRONT, rows), Teacher(base, FRONT, rows)
    forwards = {row.number: first.states(row) for row in rows}
    backwards = {row.number: second.states(row) for row in reversed(rows)}
    assert all(torch.equal(forwards[number], backwards[number]) for number in forwards)
    passes = first.passes_run
    assert 1 < passes == second.passes_run < len(rows)
    for row in rows:
        first.states(row)
    assert first.passes_run == passes
    assert first.bytes_of_all == sum(states.nbytes for states in forwards.values())


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma2"])
def test_the_text_goes_through_the_base_once_in_a_run(family, monkeypatch):
    monkeypatch.setattr("softprompt.engine.teacher.TOKENS_PER_PASS", 30)
    base, rows, counts = make_family(family), make_rows(), []
    layer = next(each for each in base.modules() if each.__class__.__name__.endswith(("DecoderLayer", "Block")))
    (layer.self_attn.q_proj if family != "bloom" else layer.self_attention.query_key_value).register_forward_hook(
        lambda module, inputs, output: counts.append(output.numel() // output.shape[-1])
    )
    teacher = Teacher(base, FRONT, rows)
    for row in rows:
        teacher.states(row)
    assert teacher.passes_run > 1 and len(counts) == teacher.passes_run + 1
    assert sum(counts) == teacher.positions_of_all and counts[0] == len(FRONT) - 1
    # every pass has one position of the front, and no more of a row than its ids
    assert sum(counts[1:]) <= teacher.passes_run + sum(len(row.input_ids) for row in rows)


@pytest.mark.parametrize("front", [Front([7]), FRONT], ids=["one id", "many"])
def test_a_front_predicts_the_first_token_of_a_row(front):
    base = make_family("llama", torch.float64)
    row = EncodedRow([30, 31, 32], [30, 31, 32])
    teacher = Teacher(base, front, [row, EncodedRow([40, 41], [-100, 41])])
    ids = torch.tensor([[*front.before, *row.input_ids]])
    hidden = base.base_model(ids).last_hidden_state[0, len(front) - 1 : -1]
    assert (teacher.states(row) - hidden).abs().max() < 1e-10


def test_states_that_do_not_fit_are_computed_again_to_the_same_bits(monkeypatch):
    monkeypatch.setattr("softprompt.engine.teacher.TOKENS_PER_PASS", 30)
    base, rows = make_family("llama"), make_rows()
    kept, poor = Teacher(base, FRONT, rows), Teacher(base, FRONT, rows, most_bytes=0)
    for _ in range(2):
        assert all(torch.equal(kept.states(row), poor.states(row)) for row in rows)
    assert poor.passes_run > kept.passes_run


def test_the_base_alone_is_judged_by_the_same_states():
    """Rows that the base alone reads in another way are compared at the same answers."""
    base, rows = make_family("gpt2"), make_rows()
    alone = [EncodedRow([13, *row.input_ids], [-100, *row.labels]) for row in rows]
    teacher = Teacher(base, FRONT, rows)
    goals = [teacher.states(row) for row in rows]
    head = Head.of(base)
    for row, goal, score in zip(alone, goals, divergence_scores(base, Front(), alone, goals), strict=True):
        got = logits_behind(base, base.get_input_embeddings()(torch.tensor([], dtype=torch.long)), row).log_softmax(-1)
        wanted = F.linear(goal, head.weight, head.bias).log_softmax(-1)
        assert score.loss_sum == pytest.approx(F.kl_div(got, wanted, log_target=True, reduction="sum").item(), rel=1e-4)
        assert score.num_supervised == len(goal)
