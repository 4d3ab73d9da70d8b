"""Row scores and greedy answers against plain loops over the untouched model, one row at a time."""

import os

import pytest
import torch
from helpers.models import FAMILIES, VOCAB_SIZE, make_model
from helpers.rows import ROWS
from helpers.scoring import PAD, logits_of, prompt_of, with_prompt

from softprompt.answering.greedy import answers_beside_references, greedy_answers
from softprompt.data.row import Row
from softprompt.engine.cached_pass import Pass
from softprompt.engine.passes import Score, pass_losses, row_scores, total_score
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_rows


def one_by_one(base, weight, rows):
    """The definition: one row, one label at a time."""
    scores = []
    for row in rows:
        logits = logits_of(base, weight, row.input_ids).double()
        loss, correct, count = 0.0, 0, 0
        for place, label in enumerate(row.labels):
            if label != -100:
                loss -= logits[place - 1].log_softmax(-1)[label].item()
                correct += int(logits[place - 1].argmax()) == label
                count += 1
        scores.append(Score(loss, correct, count))
    return scores


def rows_of(base, weight, count=21, seed=1):
    """Rows of unlike length, of which some labels are what the model predicts, some not, and some places have none."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place in range(count):
        length = int(torch.randint(3, 40, (1,), generator=generator))
        ids = torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist()
        start = 1 + place % (length - 1)
        guesses = logits_of(base, weight, ids).argmax(-1).tolist()
        labels = [-100] * start + [guesses[i - 1] if i % 3 == 0 else ids[i] for i in range(start, length)]
        if place % 5 == 0 and length - start > 2:
            labels[start + 1] = -100
        rows.append(EncodedRow(ids, labels))
    return rows


@pytest.mark.parametrize("weight", [None, prompt_of()], ids=["alone", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packs", [True, False], ids=["packs", "batches"])
def test_a_row_scores_what_it_scores_alone(family, weight, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr("softprompt.engine.passes.can_pack", lambda base_model: False)
    base = make_model(family)
    rows = rows_of(base, weight)
    wanted = one_by_one(base, weight, rows)
    found = row_scores(with_prompt(base, weight), rows, pad_token_id=PAD)
    assert [score.num_supervised for score in found] == [row.num_supervised for row in rows]
    # fp32: products of other shapes round differently, by a few 6e-8 of sums that are at most about 300
    assert [score.loss_sum for score in found] == pytest.approx([score.loss_sum for score in wanted], rel=1e-5)
    assert [score.num_correct for score in found] == [score.num_correct for score in wanted]
    right, tokens = (sum(getattr(s, name) for s in wanted) for name in ("num_correct", "num_supervised"))
    assert 0.2 < right / tokens < 0.8


@pytest.mark.parametrize("weight", [None, prompt_of()], ids=["alone", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_add_up_to_the_loss_that_is_trained(family, weight):
    base = make_model(family)
    rows = rows_of(base, weight)
    model = with_prompt(base, weight)
    total = total_score(row_scores(model, rows, pad_token_id=PAD))
    losses = pass_losses(model, rows, max_tokens=4096, rows_per_batch=8, pad_token_id=PAD)
    assert total.loss_sum == pytest.approx(sum(loss.item() for loss in losses), rel=1e-5)
    assert total.loss == total.loss_sum / sum(row.num_supervised for row in rows)


def test_a_row_without_labels_scores_nothing():
    base = make_model("bloom")
    rows = [EncodedRow([5, 6, 7], [-100] * 3), EncodedRow([5, 6], [-100, 6])]
    first, second = row_scores(base, rows, pad_token_id=PAD)
    assert first == Score(0.0, 0, 0) and second.num_supervised == 1
    assert row_scores(base, [], pad_token_id=PAD) == []


def test_scores_in_bf16_are_near_those_in_fp32():
    """Sums of losses are widened: a bf16 sum of 40 terms would be off by percents."""
    rows = rows_of(make_model("bloom"), None)
    wide, narrow = (
        [score.loss_sum for score in row_scores(make_model("bloom", dtype), rows, pad_token_id=PAD)]
        for dtype in (torch.float32, torch.bfloat16)
    )
    # bf16 weights and activations have 8 bits: 2 % of a row's loss after two layers
    assert narrow == pytest.approx(wide, rel=0.02, abs=0.5)
    assert narrow != wide


# greedy answers


def answers_one_by_one(base, weight, tokenizer, questions, max_new_tokens):
    """No cache: the whole text again for every token."""
    texts = []
    for ids in questions:
        text = list(ids)
        while len(text) < len(ids) + max_new_tokens and text[-1] != tokenizer.eos_token_id:
            text.append(int(logits_of(base, weight, text)[-1].argmax()))
        texts.append(tokenizer.decode(text[len(ids) :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("weight", [None, prompt_of()], ids=["alone", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_each_question_alone(family, weight, tokenizer):
    base = make_model(family)
    rows = [Row.asked(**row, number=1 + place) for place, row in enumerate(ROWS)]
    questions = [Encoder(tokenizer).questions([row])[0] for row in rows]
    assert len({len(ids) for ids in questions}) > 3
    wanted = answers_one_by_one(base, weight, tokenizer, questions, 9)
    assert len(set(wanted)) > 4
    told = []
    for size in (1, 4, 64):
        settings = {"max_new_tokens": 9, "batch_size": size, "advance": told.append}
        assert greedy_answers(with_prompt(base, weight), Encoder(tokenizer), questions, **settings) == wanted
    assert told == [1] * 30


@pytest.mark.parametrize("weight", [None, prompt_of()], ids=["alone", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_questions_begin_with_is_read_once(family, weight, tokenizer, monkeypatch):
    """Whenever a question joins; and a row that is done makes room at once."""
    base, opening = make_model(family), [5 + place % 90 for place in range(40)]
    rows = [Row.asked(**row, number=1 + place) for place, row in enumerate(ROWS)]
    questions = [[*opening, *Encoder(tokenizer).questions([row])[0]] for row in rows]
    wanted = answers_one_by_one(base, weight, tokenizer, questions, 9)
    real, read, together = Pass.__init__, [], []

    def spied(self, cache, steps, segments=(), **settings):
        real(self, cache, steps, segments, **settings)
        read.append(len(self.ids))
        together.append(cache.rows)

    monkeypatch.setattr(Pass, "__init__", spied)
    settings = {"max_new_tokens": 9, "batch_size": 3}
    assert greedy_answers(with_prompt(base, weight), Encoder(tokenizer), questions, **settings) == wanted
    front, shared = 0 if weight is None else len(weight), len(os.path.commonprefix(questions))
    assert shared > 40 and read[0] == front + shared
    assert sum(read[1:]) <= sum(len(ids) - shared for ids in questions)
    assert together[1] == 3 and together[1:] == sorted(together[1:], reverse=True)  # full until the queue is empty


@pytest.mark.parametrize("room", [3, 400])
def test_answers_beside_references_are_greedy_and_stay_within_the_context(room, tokenizer):
    base = make_model("gpt2")
    rows = [Row.asked(**ROWS[place], number=1 + place) for place in (0, 2)]
    rows, _ = encode_rows(rows, Encoder(tokenizer), max_length=256)
    weight = prompt_of()
    front = max(len(row.input_ids) - row.num_supervised for row in rows) + len(weight)
    base.config.n_positions = front + room
    longest = min(2 * max(row.num_supervised for row in rows), room)
    found = answers_beside_references(with_prompt(base, weight), Encoder(tokenizer), rows, batch_size=2)
    questions = [row.input_ids[: -row.num_supervised] for row in rows]
    assert [row["answer"] for row in found] == answers_one_by_one(base, weight, tokenizer, questions, longest)
    assert [row["question"] for row in found] == [tokenizer.decode(ids) for ids in questions]
    assert [row["reference"] for row in found] == [ROWS[place]["output"] for place in (0, 2)]


def test_a_question_ends_where_the_response_begins(tokenizer):
    rows = [Row.asked(**row, number=1 + place) for place, row in enumerate(ROWS)]
    encoded, _ = encode_rows(rows, Encoder(tokenizer), max_length=256)
    for row, each in zip(rows, encoded, strict=True):
        front = sum(label == -100 for label in each.labels)
        assert Encoder(tokenizer).questions([row])[0] == each.input_ids[:front]
