"""Ids around the prompt, against transformers' own model on embeddings that are put together here, one row at a time.

Tolerances as in `test_forward.py`: in fp64 1e-9, or 1e-6 where the model narrows to fp32 by itself; in fp32 1e-5.
"""

import pytest
import torch
from helpers.families import CONFIGS, HIDDEN_SIZE, SPECIAL, VOCAB_SIZE, make_family
from helpers.fronts import ALWAYS_FP32, draw_ids, front_of, make_rows, relative
from helpers.models import make_model
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.generation.streamers import BaseStreamer

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.answering.greedy import answers_beside_references, greedy_answers
from softprompt.engine import fronts as fronts_module
from softprompt.engine.forward import pack_loss, pack_scores
from softprompt.engine.front import Front
from softprompt.engine.fronts import front_cache
from softprompt.engine.passes import pass_losses, row_scores
from softprompt.packs.batches import pack_rows
from softprompt.packs.families import can_pack
from softprompt.tokens.encoding import IGNORE_INDEX, Encoder

# (ids before, virtual tokens, ids after); the windows of the families are 5 to 7 wide
FRONTS = [(3, 4, 2), (11, 1, 9), (0, 4, 3), (3, 4, 0), (1, 20, 1)]
PAD = 3
FREE = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": PAD}
GREEDY = {**FREE, "do_sample": False}
SAMPLED = {**FREE, "do_sample": True, "top_k": 40, "top_p": 0.9, "temperature": 1.3}


def soft_model(base, front):
    front = front_of(front)
    return SoftPromptModel(base, SoftPromptEmbedding(front.prompt), before=front.before, after=front.after)


def by_hand(base, front, ids):
    """Embeddings `[1, F + T, H]` of one row."""
    embed = base.get_input_embeddings()
    parts = [embed(torch.tensor(part, dtype=torch.long)) for part in (front.before, front.after, ids)]
    return torch.cat([parts[0], front.prompt.to(parts[0].dtype), *parts[1:]])[None]


def one_by_one(base, front, rows):
    """The loss of every row, from the definition, by transformers' forward."""
    losses = []
    for row in rows:
        logits = base(inputs_embeds=by_hand(base, front, row.input_ids), use_cache=False).logits[0]
        logprobs = logits.log_softmax(-1)
        labelled = [(token, label) for token, label in enumerate(row.labels) if label != IGNORE_INDEX]
        losses.append(-sum((logprobs[len(front) + token - 1, label] for token, label in labelled), torch.tensor(0.0)))
    return losses


def padded_family():
    """A base that cannot take packs, and decodes by transformers' own loops."""
    torch.manual_seed(0)
    config = GPTJConfig(n_embd=HIDDEN_SIZE, n_layer=2, n_head=4, rotary_dim=4, n_positions=512, **SPECIAL)
    base = GPTJForCausalLM(config).eval()
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    assert not can_pack(base)
    return base


# packs


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("front", FRONTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_pack_is_its_rows_one_by_one(family, front, dtype):
    base, front, rows = make_family(family, dtype), front_of(front, dtype), make_rows()
    loss = sum(one_by_one(base, front, rows))
    (gradient,) = torch.autograd.grad(loss, front.prompt)
    pack = pack_rows(rows, front_length=len(front))
    assert len(pack.targets) == sum(row.num_supervised for row in rows)  # also those of first tokens
    narrow = 1e-6 if family in ALWAYS_FP32 else 1e-9
    tolerance = narrow if dtype == torch.float64 else 1e-5
    gradients = []
    for recompute in (False, True):
        packed = pack_loss(base, front, pack, recompute=recompute)
        assert packed.dtype == dtype and relative(packed, loss) < tolerance
        gradients += torch.autograd.grad(packed, front.prompt)
        assert relative(gradients[-1], gradient) < tolerance
    assert torch.equal(*gradients)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("front", [Front(draw_ids(9, 6)), Front(draw_ids(2, 6), None, draw_ids(1, 7))], ids=len)
def test_a_front_of_ids_alone_is_text_in_front_of_every_row(family, front):
    base, rows = make_family(family, torch.float64), make_rows()
    pack = pack_rows(rows, front_length=len(front))
    losses, hits = pack_scores(base, front, pack)
    wanted = []
    for row in rows:
        logprobs = base(torch.tensor([[*front.before, *front.after, *row.input_ids]])).logits[0].log_softmax(-1)
        wanted += [-logprobs[len(front) + i - 1, label] for i, label in enumerate(row.labels) if label != IGNORE_INDEX]
    assert relative(losses, torch.stack(wanted)) < (1e-6 if family in ALWAYS_FP32 else 1e-9)
    assert len(hits) == len(wanted) == sum(row.num_supervised for row in rows)


def test_an_empty_front_predicts_nothing():
    base, rows = make_family("gpt2", torch.float64), make_rows()
    losses, _ = pack_scores(base, Front(), pack_rows(rows, front_length=len(Front())))
    assert len(losses) == sum(row.num_supervised for row in rows) - 2  # of two rows, the first token is a label


def test_in_bloom_s_first_layer_only_the_prompt_learns():
    base, front, rows = make_family("bloom"), front_of((3, 4, 2)), make_rows()
    seen = []
    norm = base.transformer.h[0].input_layernorm
    with norm.register_forward_hook(lambda module, inputs, output: seen.append((len(output), output.requires_grad))):
        pack = pack_rows(rows, front_length=len(front))
        pack_loss(base, front, pack).backward()
    assert seen == [(3, False), (4, True), (len(pack.position_ids) - 7, False)]


@pytest.mark.parametrize("front", FRONTS, ids=str)
def test_a_step_trains_the_prompt_and_nothing_else(front):
    model = soft_model(make_family("gemma3_text"), front)
    (loss,) = pass_losses(model, make_rows(), max_tokens=4096, rows_per_batch=1, pad_token_id=PAD)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["soft_prompt.weight"]
    assert model.soft_prompt.weight.grad.shape == (front[1], HIDDEN_SIZE)


# scores and answers, as training and `evaluate` ask for them


@pytest.mark.parametrize("family", ["bloom", "gemma2", "mistral", "padded"])
@pytest.mark.parametrize("front", FRONTS, ids=str)
def test_a_row_scores_what_it_scores_alone(family, front):
    base, rows = padded_family() if family == "padded" else make_family(family), make_rows()
    model = soft_model(base, front)
    wanted = one_by_one(base, front_of(front), rows)
    found = row_scores(model, rows, pad_token_id=PAD)
    assert [score.loss_sum for score in found] == pytest.approx([loss.item() for loss in wanted], rel=1e-5)
    assert [score.num_supervised for score in found] == [row.num_supervised for row in rows]


@pytest.mark.parametrize("recompute", [False, True])
def test_padded_batches_have_the_same_gradient(recompute):
    base, rows = padded_family(), make_rows()
    model, front = soft_model(base, (3, 4, 2)), front_of((3, 4, 2))
    limits = {"max_tokens": 4096, "rows_per_batch": 4, "pad_token_id": PAD}
    losses = list(pass_losses(model, rows, **limits, recompute=recompute))
    (gradient,) = torch.autograd.grad(sum(one_by_one(base, front, rows)), front.prompt)
    assert len(losses) == 2
    assert relative(*torch.autograd.grad(sum(losses), model.soft_prompt.weight), gradient) < 1e-5


@pytest.mark.parametrize("front", FRONTS, ids=str)
def test_answers_are_those_of_each_question_alone(front, tokenizer):
    base = make_model("llama")
    questions = [[7, *draw_ids(length, length)] for length in (1, 8, 3, 20)]
    wanted = []
    for ids in questions:
        text = list(ids)
        while len(text) < len(ids) + 9 and text[-1] != tokenizer.eos_token_id:
            text.append(base(inputs_embeds=by_hand(base, front_of(front), text)).logits[0, -1].argmax().item())
        wanted.append(tokenizer.decode(text[len(ids) :], skip_special_tokens=True))
    model = soft_model(base, front)
    assert greedy_answers(model, Encoder(tokenizer), questions, max_new_tokens=9, batch_size=3) == wanted
    assert len(set(wanted)) > 2


def test_answers_beside_references_leave_room_for_the_whole_front(tokenizer, monkeypatch):
    model, rows = soft_model(make_model("gpt2"), (11, 1, 9)), make_rows()[:1]
    model.base_model.config.n_positions = 21 + 4 + 3  # of the row, 4 tokens are the question
    asked = []
    monkeypatch.setattr(
        "softprompt.answering.greedy.greedy_answers",
        lambda *_, max_new_tokens, **__: asked.append(max_new_tokens) or [""],
    )
    answers_beside_references(model, Encoder(tokenizer), rows, batch_size=1)
    assert asked == [3]


# the model's own forward


@pytest.mark.parametrize("family", ["bloom", "llama", "gpt2", "gemma3_text", "padded"])
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_a_padded_row_computes_what_it_computes_alone(family, side):
    base = padded_family() if family == "padded" else make_family(family)
    for each in FRONTS:
        model, front = soft_model(base, each), front_of(each)
        texts = [draw_ids(length, length) for length in (9, 1, 5, 14)]
        ids, mask = pad(texts, side)
        labels = torch.where(mask == 1, ids, IGNORE_INDEX)
        output = model(ids, attention_mask=mask, labels=labels)
        assert output.logits.shape == (4, len(front) + 14, VOCAB_SIZE)
        total = 0.0
        for row, text in enumerate(texts):
            alone = base(inputs_embeds=by_hand(base, front, text), use_cache=False).logits[0]
            own = output.logits[row, [True] * len(front) + (mask[row] == 1).tolist()]
            assert relative(own, alone) < 1e-5
            places = torch.arange(len(text))
            total -= alone.log_softmax(-1)[len(front) - 1 + places, torch.tensor(text)].sum().item()
        assert output.loss.item() == pytest.approx(total / mask.sum().item(), rel=1e-5)


def pad(texts, side):
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), PAD), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        head = {"right": len(text), "left": 0, "middle": len(text) // 2}[side]
        kept = [*range(head), *range(head + longest - len(text), longest)]
        ids[row, kept], mask[row, kept] = torch.tensor(text), 1
    return ids, mask


@pytest.mark.parametrize(("before", "after"), [([5, VOCAB_SIZE], []), ([], [-1])])
def test_an_id_without_an_embedding_is_refused(before, after):
    with pytest.raises(UserError, match="holds id (260|-1); the base has embeddings for the ids 0 to 259"):
        SoftPromptModel(make_family("llama"), SoftPromptEmbedding(torch.ones(2, HIDDEN_SIZE)), before, after)


# decoding


def theirs(base, front, ids, **settings):
    """transformers' `generate` on the front and the text, `[B, T]`."""
    embeds = torch.cat([by_hand(base, front, text) for text in ids.tolist()]).detach()
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    return base.generate(ids, inputs_embeds=embeds, attention_mask=mask, **settings)


@pytest.mark.parametrize("family", [*CONFIGS, "padded"])
@pytest.mark.parametrize(
    "settings",
    [GREEDY, SAMPLED, {**SAMPLED, "num_return_sequences": 2}, {**GREEDY, "num_beams": 2}],
    ids=["greedy", "sampled", "several", "beams"],
)
def test_ids_are_those_of_transformers(family, settings):
    base = padded_family() if family == "padded" else make_family(family)
    for front, length in zip(FRONTS, (7, 1, 7, 9, 2), strict=True):
        ids = torch.tensor([draw_ids(length, seed) for seed in (1, 2, 3)])
        torch.manual_seed(1)
        expected = theirs(base, front_of(front), ids, **settings)
        torch.manual_seed(1)
        assert torch.equal(soft_model(base, front).generate(ids, **settings), expected)
        assert expected.shape == (3 * settings.get("num_return_sequences", 1), length + 9)


@pytest.mark.parametrize("family", [*CONFIGS, "padded"])
def test_a_padded_row_gets_what_it_gets_alone(family):
    base = padded_family() if family == "padded" else make_family(family)
    texts = [draw_ids(length, length) for length in (9, 1, 5, 14)]
    for front, side in zip(FRONTS, ("left", "right", "middle", "left", "left"), strict=True):
        ids, mask = pad(texts, side)
        batch = soft_model(base, front).generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(batch[:, : ids.shape[1]], ids)
        for row, text in enumerate(texts):
            alone = theirs(base, front_of(front), torch.tensor([text]), **GREEDY)[0, len(text) :]
            assert torch.equal(batch[row, ids.shape[1] :], alone)


class Recorded(BaseStreamer):
    def __init__(self):
        self.pieces = []

    def put(self, value):
        self.pieces.append(value.reshape(-1))

    def end(self):
        pass


@pytest.mark.parametrize("family", ["bloom", "llama", "padded"])
def test_streams_and_lengths_hold_the_text_alone(family):
    base = padded_family() if family == "padded" else make_family(family)
    model, ids, streamer = soft_model(base, (11, 1, 9)), torch.tensor([draw_ids(6, 1)]), Recorded()
    lengths = {"max_length": 16, "min_length": 12, "do_sample": False, "pad_token_id": PAD}
    ends = {"eos_token_id": list(range(VOCAB_SIZE - 1))}  # without a least length, the first new id would be the last
    output = model.generate(ids, streamer=streamer, **lengths, **ends)
    assert 12 <= output.shape[1] <= 16 and torch.equal(torch.cat(streamer.pieces), output[0])
    assert torch.equal(output[:, :6], ids) and model.generate(ids, **lengths, eos_token_id=None).shape == (1, 16)
    with pytest.raises(UserError, match="no room behind 6 text tokens"):
        model.generate(ids, max_length=6)


def test_the_front_runs_once_until_it_changes(monkeypatch):
    runs = []

    def counted(base_model, embeds):
        runs.append(len(embeds))
        return front_cache(base_model, embeds)

    monkeypatch.setattr(fronts_module, "front_cache", counted)
    base, ids = make_family("gemma3_text"), torch.tensor([draw_ids(6, 1)] * 2)
    model, front = soft_model(base, (3, 4, 2)), front_of((3, 4, 2))
    for _ in range(3):
        assert torch.equal(model.generate(ids, **GREEDY), theirs(base, front, ids, **GREEDY))
    assert runs == [9]
    model.soft_prompt.weight.data.mul_(-1)
    front.prompt.data.mul_(-1)
    assert torch.equal(model.generate(ids, **GREEDY), theirs(base, front, ids, **GREEDY)) and runs == [9, 9]
    base.get_input_embeddings().weight.data[front.after[0]] += 1  # no number of the prompt changes
    assert torch.equal(model.generate(ids, **GREEDY), theirs(base, front, ids, **GREEDY)) and runs == [9, 9, 9]
