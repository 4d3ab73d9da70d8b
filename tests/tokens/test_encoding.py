"""Rows to ids as the tutorial does it, and the one place where softprompt differs: text in a row is only text."""

import random

import pytest
from helpers.models import make_tokenizer
from helpers.rows import tutorial_question
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_row, encode_rows, encode_text, require_eos
from softprompt.tokens.template import TUTORIAL, Template, template_of

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
ALPHABET = list("abcXYZ 0123.,!?\n\t") + ["…", "。", "，", "你", "好", "考", "试", "é", "🙂", "  ", "the ", "Human: "]


def make_bloom_tokenizer():
    """BLOOM's pre-tokenizer, words split by its regex and then bytes, with merges learnt from a few lines."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = [
        "Human: the dialog of a human and the robot, 你好。",
        "Assistant: the answer is 12, the 考试 ends.\n\n",
    ] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)


TOKENIZERS = {"bytes": make_tokenizer(), "bloom": make_bloom_tokenizer()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def row(instruction="Say it", input="", output="it", number=1):
    return Row.asked(instruction, input, output, number)


def tutorial(row, tokenizer, max_length):
    """What the tutorial's preprocessing gives: the eos goes through the tokenizer as text."""
    asked = ("Human: " + row.columns["instruction"] + "\n" + row.columns["input"]).strip() + "\n\nAssistant: "
    question = tokenizer(asked, add_special_tokens=False).input_ids
    answer = tokenizer(row.output + tokenizer.eos_token, add_special_tokens=False).input_ids
    ids, labels = [*question, *answer], [*(-100 for _ in question), *answer]
    return EncodedRow(ids[:max_length], labels[:max_length])


def random_rows(count):
    draw = random.Random(0)

    def text(low):
        return "".join(draw.choices(ALPHABET, k=draw.randint(low, 40)))

    return [row(text(1), text(0) if place % 2 else "", text(1)) for place in range(count)]


def test_bloom_tokenizer_is_one():
    tokenizer = TOKENIZERS["bloom"]
    assert [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    words = tokenizer.convert_ids_to_tokens(encode_text("the human, the robot", tokenizer))
    assert len(words) < 12 and "Ġthe" in words


@pytest.mark.parametrize(
    ("instruction", "input", "expected"),
    [
        ("Ask", "", "Human: Ask\n\nAssistant: "),
        ("Ask", "this", "Human: Ask\nthis\n\nAssistant: "),
        ("Ask \n", " \n ", "Human: Ask\n\nAssistant: "),
        (" Ask", "two\nlines\n", "Human:  Ask\ntwo\nlines\n\nAssistant: "),
        ("考试有哪些技巧？", "", "Human: 考试有哪些技巧？\n\nAssistant: "),
    ],
)
def test_template(instruction, input, expected):
    assert Encoder(make_tokenizer()).question_text(row(instruction, input)) == expected


def test_the_tutorials_template_has_a_name_and_stands_in_for_none():
    assert template_of(TUTORIAL.name, prompt_file="p.safetensors") == TUTORIAL
    assert template_of("", prompt_file="p.safetensors") == TUTORIAL
    assert TUTORIAL.name == "tutorial" and template_of("alpaca", prompt_file="p") == TUTORIAL  # an older name


@pytest.mark.parametrize("name", ["chatml", "Alpaca", "alpaca ", "\n"])
def test_a_template_of_another_name_is_refused(name):
    with pytest.raises(UserError) as caught:
        template_of(name, prompt_file="p.safetensors")
    message = str(caught.value)
    assert message.startswith("p.safetensors: ") and repr(name) in message and "update softprompt" in message
    assert "\n" not in message


@pytest.mark.parametrize("max_length", [1, 7, 40, 256])
def test_ids_are_the_tutorials(tokenizer, max_length):
    rows = random_rows(150)
    longer = 0
    for each in rows:
        encoded = encode_row(each, Encoder(tokenizer), max_length=max_length)
        assert encoded == tutorial(each, tokenizer, max_length)
        assert len(encoded.input_ids) == len(encoded.labels) <= max_length
        longer += len(encoded.input_ids) == max_length
    assert longer > 10 or max_length == 256


def test_labels_cover_response_and_eos_only(tokenizer):
    encoded = encode_row(row("Ask", "this", "so"), Encoder(tokenizer), max_length=256)
    answer = encode_text("so", tokenizer) + [tokenizer.eos_token_id]
    question = len(encode_text("Human: Ask\nthis\n\nAssistant: ", tokenizer))
    assert encoded.labels == [-100] * question + answer
    assert encoded.input_ids[question:] == answer
    assert -100 not in encoded.input_ids
    assert encoded.num_supervised == len(answer)
    assert tokenizer.decode(encoded.input_ids) == "Human: Ask\nthis\n\nAssistant: so</s>"


@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_inside_a_row_are_text(tokenizer, text):
    told = row(f"What does {text} mean?", text, f"{text} ends a text{text}")
    encoded = encode_row(told, Encoder(tokenizer), max_length=256)
    assert [place for place, token in enumerate(encoded.input_ids) if token < 4] == [len(encoded.input_ids) - 1]
    assert encoded.input_ids[-1] == encoded.labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded.input_ids[:-1]).count(text) == 4
    # the tutorial's own call takes them for the tokens
    assert tutorial(told, tokenizer, 256).input_ids.count(SPECIAL.index(text)) >= 4


def test_nothing_is_added_by_a_tokenizer_that_adds(tokenizer):
    from tokenizers.processors import TemplateProcessing

    adding = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), bos_token="<s>", eos_token="</s>"
    )
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert adding("a").input_ids[0] == 1
    encoded = encode_row(row(), Encoder(adding), max_length=256)
    assert 1 not in encoded.input_ids
    assert encoded == encode_row(row(), Encoder(tokenizer), max_length=256)


def test_cut_keeps_the_front_and_drops_the_eos(tokenizer):
    whole = encode_row(row(output="a long answer"), Encoder(tokenizer), max_length=256)
    length = len(whole.input_ids)
    cut = encode_row(row(output="a long answer"), Encoder(tokenizer), max_length=length - 1)
    assert cut == EncodedRow(whole.input_ids[:-1], whole.labels[:-1])
    assert cut.input_ids[-1] != tokenizer.eos_token_id
    assert encode_row(row(output="a long answer"), Encoder(tokenizer), max_length=length) == whole


def test_rows_with_nothing_to_learn_are_reported(tokenizer):
    question = len(encode_text(tutorial_question("Say it"), tokenizer))
    rows = [
        row(number=1),
        row(output="", number=2),
        row(output=" \n\t", number=3),
        row(number=4),
        row(instruction="Say it " + "again " * 50, number=9),
    ]
    kept, skipped = encode_rows(rows, Encoder(tokenizer), max_length=question + 1)
    assert skipped == [2, 3, 9]
    assert len(kept) == 2 and all(each.num_supervised == 1 for each in kept)
    assert encode_rows(rows, Encoder(tokenizer), max_length=question) == ([], [1, 2, 3, 4, 9])
    kept, skipped = encode_rows(rows, Encoder(tokenizer), max_length=10_000)
    assert (len(kept), skipped) == (3, [2, 3])


def test_rows_without_a_question_are_reported_and_an_input_is_one(tokenizer):
    rows = [row("", "", "x", 1), row(" \n", "\t", "x", 2), row("", "why?", "x", 3), row("why?", "", "x", 4)]
    kept, skipped = encode_rows(rows, Encoder(tokenizer), max_length=100)
    assert skipped == [1, 2]
    assert [tokenizer.decode(each.input_ids) for each in kept] == [
        "Human: \nwhy?\n\nAssistant: x</s>",
        "Human: why?\n\nAssistant: x</s>",
    ]


def test_tokenizer_without_an_end_is_refused(tokenizer):
    require_eos(tokenizer, "fine")
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="`model` somewhere.*no eos token"):
        require_eos(endless, "somewhere")


@pytest.mark.parametrize("name", ["tutorial", "plain"])
def test_which_turns_are_learnt_changes_labels_and_never_ids(tokenizer, name):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    talk = Row(tuple(turns), "d")
    whole, last = (Encoder(tokenizer, Template(name), last_turn_only=only) for only in (False, True))
    (question,) = last.questions([talk])
    everything, alone = (encode_row(talk, encoder, max_length=256) for encoder in (whole, last))
    assert everything.input_ids == alone.input_ids and alone.input_ids[: len(question)] == question
    assert question.count(tokenizer.eos_token_id) == 1  # behind the first answer
    end = [*encode_text("d", tokenizer), tokenizer.eos_token_id]
    assert alone.supervised_ids == end == alone.input_ids[len(question) :]
    assert everything.supervised_ids == [*encode_text("b", tokenizer), tokenizer.eos_token_id, *end]
