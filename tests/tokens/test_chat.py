"""Rows under chat templates: ids as `apply_chat_template` gives them, answers and their ends learnt, text only text."""

import random

import pytest
from helpers.models import make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.encoding import IGNORE_INDEX, Encoder, bos_of, encode_row
from softprompt.tokens.special_text import SENTINEL
from softprompt.tokens.template import Template

LOOP = "{% for m in messages %}"
CUE = "{% if add_generation_prompt %}<|in|>assistant\n{% endif %}"
TURN = "<|in|>{{ m['role'] }}\n{{ m['content'] }}<|out|>\n"
DEFAULT = "{% if messages[0]['role'] != 'system' %}<|in|>system\nBe good.<|out|>\n{% endif %}"
TEMPLATES = {
    "plain turns": LOOP + TURN + "{% endfor %}" + CUE,
    "a default system turn": DEFAULT + LOOP + TURN + "{% endfor %}" + CUE,
    "bos and no system role": (
        "<s>" + LOOP + "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% if m['role'] == 'user' %}[I]{{ m['content'] }}[/I]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "an end of all behind the last turn": LOOP + TURN + "{% endfor %}{% if add_generation_prompt %}<|in|>assistant\n"
    "{% else %}</s>{% endif %}",
    "content is trimmed": LOOP + TURN.replace("m['content']", "m['content'] | trim") + "{% endfor %}" + CUE,
    "an empty thought in the last turn": (
        LOOP + "<|in|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] }}<|out|>\n{% endfor %}" + CUE
    ),
    "marks": (
        LOOP + "<|in|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|out|>"
        "{% endgeneration %}{% else %}{{ m['content'] }}<|out|>{% endif %}\n{% endfor %}" + CUE
    ),
    "marks around nothing": LOOP + TURN + "{% generation %}{% endgeneration %}{% endfor %}" + CUE,
    "no token closes a turn": (
        LOOP + "### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    ),
}
SPECIAL = ["<|in|>", "<|out|>"]


def with_tokens(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return tokenizer


def metaspace():
    """A tokenizer as Llama's: a blank in front of the first word, and a bos in front of every text."""
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    vocabulary = {token: place for place, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


TOKENIZERS = {"bytes": lambda: with_tokens(make_tokenizer()), "metaspace": lambda: with_tokens(metaspace())}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def encoder_with(tokenizer, template, **settings):
    return Encoder(tokenizer, Template("chat", template), bos_id=bos_of(tokenizer), **settings)


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


TALK = Row((user("Hi you"), said("Ho"), user("What now?")), "Rest, then.", 3)


def learnt(row):
    """The stretches of labels."""
    stretches, last = [], None
    for place, label in enumerate(row.labels):
        if label != IGNORE_INDEX:
            if last != place - 1:
                stretches.append([])
            stretches[-1].append(label)
            last = place
    return stretches


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_apply_chat_template_and_answers_are_learnt(tokenizer, name):
    encoder = encoder_with(tokenizer, TEMPLATES[name])
    tokenizer.chat_template = TEMPLATES[name]
    conversation = [*map(dict, TALK.messages), said(TALK.output)]
    reference = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    asked = tokenizer.apply_chat_template(
        conversation[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    bos = bos_of(tokenizer)
    if bos is not None and reference[0] != bos:
        reference, asked = [bos, *reference], [bos, *asked]
    row, (question,) = encode_row(TALK, encoder, max_length=999), encoder.questions([TALK])
    assert question == asked == row.input_ids[: len(asked)]
    closed = name != "no token closes a turn"
    assert row.input_ids[: -1 if not closed else None] == reference[: len(row.input_ids) - (not closed)]
    assert row.input_ids.count(bos) == 1 if bos is not None else True
    last = learnt(row)[-1]
    assert row.input_ids[-len(last) :] == last and row.labels[len(question)] != IGNORE_INDEX
    assert last[-1] in encoder.end_ids and not set(last[:-1]) & set(encoder.end_ids)
    assert tokenizer.decode(last[:-1], skip_special_tokens=True).strip().endswith("Rest, then.")
    if name == "an empty thought in the last turn":  # the earlier turn is written otherwise than as the last
        assert len(learnt(row)) == encoder.lost_turns == 1
    elif closed:
        first, _ = learnt(row)
        assert tokenizer.decode(first[:-1]).strip() == "Ho" and first[-1] in encoder.end_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_alone(tokenizer, name):
    row = encode_row(TALK, encoder_with(tokenizer, TEMPLATES[name], last_turn_only=True), max_length=999)
    assert len(learnt(row)) == 1 and row.num_supervised > 5


def test_a_cue_that_finished_turns_do_not_have(tokenizer):
    """Templates of reasoning models ask with an open thought, which finished turns do not show."""
    template = LOOP + TURN + "{% endfor %}{% if add_generation_prompt %}<|in|>assistant\n<think>\n{% endif %}"
    encoder = encoder_with(tokenizer, template)
    row, (question,) = encode_row(TALK, encoder, max_length=999), encoder.questions([TALK])
    assert row.input_ids[: len(question)] == question and encoder.lost_turns == 1
    (last,) = learnt(row)
    assert last == row.input_ids[len(question) :] and last[-1] == tokenizer.convert_tokens_to_ids("<|out|>")


def test_a_template_that_refuses_a_row_is_one_line_with_its_number(tokenizer):
    encoder = encoder_with(tokenizer, TEMPLATES["bos and no system role"])
    with pytest.raises(UserError, match=r"^row 8: the chat template refuses it \(no system role\)"):
        encoder.encode([Row(({"role": "system", "content": "a"}, user("b")), "c", 8)], max_length=99)


def test_tools_and_calls_reach_the_template(tokenizer):
    template = (
        "{% for t in tools or [] %}{{ t['name'] }};{% endfor %}" + LOOP + "<|in|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% for c in m.get('tool_calls') or [] %}{{ c['name'] }}!{% endfor %}<|out|>\n{% endfor %}" + CUE
    )
    row = Row((user("Go"),), "", 1, answer={"tool_calls": [{"name": "find <|out|>"}]}, tools=({"name": "look"},))
    encoded = encode_row(row, encoder_with(tokenizer, template), max_length=999)
    (last,) = learnt(encoded)
    assert tokenizer.decode(last).replace(" ", "") == "find<|out|>!<|out|>"
    out = tokenizer.convert_tokens_to_ids("<|out|>")
    assert last.count(out) == 1 and last[-1] == out
    assert tokenizer.decode(encoded.input_ids).replace("<s>", "").strip().startswith("look;")


def test_text_of_special_tokens_is_only_text(tokenizer):
    """In every field, at any place; the ids of such tokens come from the template alone."""
    draw, encoder = random.Random(0), encoder_with(tokenizer, TEMPLATES["plain turns"])
    pieces = [*SPECIAL, "</s>", "<s>", SENTINEL, "\U000f0000", "\U000f0001", "a", "b ", " c", "<|", "|>", "in"]
    specials = {tokenizer.convert_tokens_to_ids(each) for each in (*SPECIAL, "</s>", "<s>")}
    plain = encode_row(Row((user("x"), said("y"), user("z")), "w"), encoder, max_length=999)
    wanted = [id for id in plain.input_ids if id in specials]
    for number in range(60):
        texts = ["x" + "".join(draw.choices(pieces, k=6)) + "x" for _ in range(4)]
        row = Row((user(texts[0]), said(texts[1]), user(texts[2])), texts[3], number)
        encoded, (question,) = encode_row(row, encoder, max_length=9999), encoder.questions([row])
        assert [id for id in encoded.input_ids if id in specials] == wanted
        assert encoded.input_ids[: len(question)] == question
        if tokenizer.unk_token_id not in encoded.input_ids:
            shown = tokenizer.decode(encoded.input_ids)
            assert all(text in shown for text in texts)
    assert max(len(text) for text in texts) > 8


@pytest.mark.parametrize("name", ["plain turns", "a default system turn", "content is trimmed"])
def test_a_prompt_in_the_system_turn(tokenizer, name):
    encoder = encoder_with(tokenizer, TEMPLATES[name], placement="system")
    row, (question,) = encode_row(TALK, encoder, max_length=999), encoder.questions([TALK])
    assert row.input_ids[: len(question)] == question
    shown = tokenizer.decode(encoder.before_ids) + "P" + tokenizer.decode([*encoder.after_ids, *row.input_ids])
    assert shown.replace("<s>", "").replace(" ", "").startswith("<|in|>system\nP<|out|>\n<|in|>user\nHiyou<|out|>")
    own = Row(({"role": "system", "content": "Now."}, *TALK.messages), TALK.output, 9)
    with pytest.raises(UserError, match="row 9: .*`placement` system"):
        encoder.encode([own], max_length=999)
    several = encoder_with(tokenizer, TEMPLATES[name], placement="system", shares_close=False)
    assert several.after_ids == [] and several.before_ids == encoder.before_ids
    told = tokenizer.decode(encode_row(own, several, max_length=999).input_ids).replace(" ", "")
    assert told.startswith("Now.<|out|>")
    alone = encode_row(TALK, encoder.baseline, max_length=999)
    assert alone == encode_row(TALK, encoder_with(tokenizer, TEMPLATES[name]), max_length=999)


@pytest.mark.parametrize("name", ["bos and no system role", "marks"])
def test_a_template_without_a_system_turn_has_no_place_in_it(tokenizer, name):
    template = TEMPLATES[name].replace("{{ m['role'] }}", "x").replace("{% for m in messages %}", (
        "{% for m in messages if m['role'] != 'system' %}"))  # fmt: skip
    with pytest.raises(UserError, match="`placement` system: this chat template has no system turn"):
        encoder_with(tokenizer, template, placement="system")
