"""Labels as answers: each one's log-probability against the untouched model, one label and one token at a time."""

import math

import pytest
import torch
from helpers.models import FAMILIES, make_model
from helpers.rows import ROWS, tutorial_question
from helpers.scoring import PAD, logits_of, prompt_of, with_prompt

from softprompt.analysis.choices import actual_choices, best_choices, choice_log_probabilities, encode_choices
from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.encoding import Encoder, encode_row, encode_text

CHOICES = ("red", "reddish", "a much longer label", "é")  # one begins another


def rows_with(outputs):
    return [
        Row.asked(row["instruction"], row["input"], output, number)
        for number, (row, output) in enumerate(zip(ROWS, outputs, strict=False), start=1)
    ]


def one_by_one(base, weight, tokenizer, rows):
    """Log-probability of a label's tokens and the eos behind the question, from the definition."""
    found = []
    for row in rows:
        question = encode_text(tutorial_question(**row.columns), tokenizer)
        scores = []
        for label in CHOICES:
            total, ids = 0.0, list(question)
            for token in [*encode_text(label, tokenizer), tokenizer.eos_token_id]:
                total += logits_of(base, weight, ids)[-1].double().log_softmax(-1)[token].item()
                ids.append(token)
            scores.append(total)
        found.append(scores)
    return found


@pytest.mark.parametrize("weight", [None, prompt_of()], ids=["alone", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_each_label_alone(family, weight, tokenizer):
    base, rows = make_model(family), rows_with(["red"] * 5)
    wanted = one_by_one(base, weight, tokenizer, rows)
    model, candidates = with_prompt(base, weight), encode_choices(rows, CHOICES, Encoder(tokenizer))
    for size in (1, 2, 5):  # rows at a time: what stands beside a label does not change it
        found = [
            scores
            for start in range(0, len(rows), size)
            for scores in choice_log_probabilities(model, candidates[start : start + size], pad_token_id=PAD)
        ]
        # fp32: a few roundings of 6e-8, times sums of up to 20 terms
        assert torch.tensor(found).flatten().tolist() == pytest.approx(
            torch.tensor(wanted).flatten().tolist(), rel=1e-5
        )
    assert best_choices(found, CHOICES) == best_choices(wanted, CHOICES)


def test_labels_that_begin_alike_are_told_apart_by_their_end(tokenizer):
    """Without the eos, "red" would be at least as probable as "reddish" whatever the model."""
    (candidates,) = encode_choices(rows_with(["red"]), CHOICES, Encoder(tokenizer))
    for candidate, label in zip(candidates, CHOICES, strict=True):
        supervised = [label for label in candidate.labels if label != -100]
        assert supervised == [*encode_text(label, tokenizer), tokenizer.eos_token_id]
        assert candidate.input_ids[-len(supervised) :] == supervised


def test_all_probabilities_are_at_most_one_together(tokenizer):
    base, rows = make_model("bloom"), rows_with(["red"])
    letters = [chr(code) for code in range(33, 127)]
    (scores,) = choice_log_probabilities(base, encode_choices(rows, letters, Encoder(tokenizer)), pad_token_id=PAD)
    assert len(scores) == 94 and 0 < sum(map(math.exp, scores)) < 1


def test_the_most_probable_label_is_chosen():
    scores = [[-1.0, -2.0, -3.0], [-9.0, -8.5, -8.0], [-1.0, -1.0, -2.0]]
    assert best_choices(scores, ["a", "b", "c"]) == ["a", "c", "a"]  # of equals the first
    assert best_choices([], ["a", "b"]) == []


def test_right_choices_leave_blanks_aside():
    assert actual_choices(rows_with(["red\n", " é ", "red"]), [" red", "é"], name="x") == [" red", "é", " red"]


def test_an_output_that_is_no_choice_is_named_with_its_row():
    long = "purple " * 20
    for output, shown in (("purple", "'purple'"), ("Red", "'Red'"), (long, "pu...'")):
        with pytest.raises(UserError) as caught:
            actual_choices(rows_with(["red", output, "nor this"]), CHOICES, name="rows.csv (test)")
        message = str(caught.value)
        assert message.startswith("rows.csv (test), row 2: its output ") and shown in message
        assert "red, reddish" in message and len(message) < 200


def test_only_the_label_counts_behind_earlier_answers(tokenizer):
    """A conversation's earlier answers are learnt in training and say nothing about a label."""
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    encoder = Encoder(tokenizer)
    (found,) = encode_choices([Row(turns, "red")], CHOICES, encoder)
    for label, candidate in zip(CHOICES, found, strict=True):
        assert candidate.supervised_ids == [*encode_text(label, tokenizer), tokenizer.eos_token_id]
    assert encode_row(Row(turns, "red"), encoder, max_length=99).num_supervised > found[0].num_supervised
