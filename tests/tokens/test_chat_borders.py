"""Where answers begin and end under chat templates of odd shapes, with tokenizers that join characters."""

import random

import pytest
from helpers.models import make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from softprompt.data.row import Row
from softprompt.tokens.encoding import IGNORE_INDEX, Encoder, bos_of, encode_row
from softprompt.tokens.special_text import SENTINEL
from softprompt.tokens.template import Template, with_date

OPEN, CLOSE = "<|in|>", "<|out|>"
LOOP = "{% for m in messages %}"
TURN = "<|in|>{{ m['role'] }}\n{{ m['content'] }}<|out|>\n"
CUE = "{% if add_generation_prompt %}<|in|>assistant\n{% endif %}"
TURNS = LOOP + TURN + "{% endfor %}" + CUE
MARKED = (
    LOOP + "<|in|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}\n{% generation %}{{ m['content'] }}<|out|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|out|>{% endif %}\n{% endfor %}" + CUE
)
PLAIN_LINES = LOOP + "{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
END_OF_ALL = PLAIN_LINES + "{% if add_generation_prompt %}assistant: {% else %}</s>{% endif %}"
OPEN_THOUGHT = LOOP + TURN + "{% endfor %}{% if add_generation_prompt %}<|in|>assistant\n<think>\n{% endif %}"
TALK = ["Hi\n\nyou", "\n\nHo ho", "What now?\n", "\nRest, then."]
JOINED = ["\n\n", ":\n", ".\n\n", "assistant\n", " the", "ing", "\n\n\n", "ho ho ho", "><", "|>\n", ": ", "n\n\n"]


def finish(tokenizer, **settings):
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    special = [AddedToken(text, special=True, normalized=False, **settings) for text in (OPEN, CLOSE)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return tokenizer


def merging():
    """A byte-level BPE that joins line breaks and whatever else is frequent, with no splitting before."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        special_tokens=["<unk>", "<s>", "</s>"], vocab_size=380, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(JOINED * 20, trainer)
    return tokenizer


def blank_first(scheme):
    """A tokenizer as those of Llama: a blank in front of a text, or of every piece behind a special token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        special_tokens=["<unk>", "<s>", "</s>"], vocab_size=140, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(JOINED * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


TOKENIZERS = {
    "merges": lambda: finish(merging()),
    "merges, stripped around marks": lambda: finish(merging(), lstrip=True, rstrip=True),
    "blank in front": lambda: finish(blank_first("first")),
    "blank everywhere": lambda: finish(blank_first("always")),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def user(text):
    return {"role": "user", "content": text}


def said(text, **others):
    return {"role": "assistant", "content": text, **others}


def talk(texts, **settings):
    return Row((user(texts[0]), said(texts[1]), user(texts[2])), texts[3], **settings)


def encoder_with(tokenizer, template, **settings):
    return Encoder(tokenizer, Template("chat", template), bos_id=bos_of(tokenizer), **settings)


def learnt(row):
    """The stretches of labels."""
    stretches, joined = [], False
    for label in row.labels:
        if label != IGNORE_INDEX:
            stretches = [*stretches[:-1], [*stretches[-1], label]] if joined else [*stretches, [label]]
        joined = label != IGNORE_INDEX
    return stretches


def reference_of(tokenizer, template, messages, *, cue):
    tokenizer.chat_template = template
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=cue, return_dict=False)
    bos = bos_of(tokenizer)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


@pytest.mark.parametrize(
    "template", [TURNS, MARKED, END_OF_ALL, OPEN_THOUGHT], ids=["turns", "marks", "end", "thought"]
)
def test_what_is_asked_begins_what_is_learnt(tokenizer, template):
    """Also where the tokenizer would join the end of the question to the beginning of the answer."""
    encoder, draw = encoder_with(tokenizer, template), random.Random(1)
    for number in range(30):
        texts = ["x" + "".join(draw.choices([*JOINED, CLOSE, "a", " "], k=4)) + "y" for _ in range(4)]
        texts[1:4:2] = ["".join(draw.choices(["\n", " ", "", CLOSE])) + text for text in texts[1:4:2]]
        row = talk(texts, number=number)
        encoded, (question,) = encode_row(row, encoder, max_length=9999), encoder.questions([row])
        assert encoded.input_ids[: len(question)] == question
        assert set(encoded.labels[: len(question)]) != set(question)
        assert encoded.labels[-1] == encoded.input_ids[-1] in encoder.end_ids
        if not any(CLOSE in text for text in (*texts[:3:2], texts[1])):
            messages = [user(texts[0]), said(texts[1]), user(texts[2])]
            assert question == reference_of(tokenizer, template, messages, cue=True)


def test_text_of_special_tokens_moves_no_border(tokenizer):
    """With such text in the last answer alone, all in front of it is encoded and learnt as it is without."""
    encoder = encoder_with(tokenizer, TURNS)
    texts = ["Hi you", "Ho ho", "What now?", "Rest"]
    plain = encode_row(talk(texts), encoder, max_length=999)
    held = encode_row(talk([*texts[:3], f"Rest {CLOSE} now"]), encoder, max_length=999)
    (question,) = encoder.questions([talk(texts)])
    assert held.input_ids[: len(question)] == plain.input_ids[: len(question)] == question
    assert held.labels[: len(question)] == plain.labels[: len(question)]
    messages = [*map(user, texts[:1]), said(texts[1]), user(texts[2]), said(texts[3])]
    reference = reference_of(tokenizer, TURNS, messages, cue=False)
    assert plain.input_ids == reference[: len(plain.input_ids)]


def test_text_of_special_tokens_changes_nothing_around_it(tokenizer):
    """A question with such text has the ids of one without, apart from the place where it stands."""
    encoder = encoder_with(tokenizer, TURNS)
    (held,) = encoder.questions([Row((user("Hi"), said("Ho"), user(f"a{CLOSE}")), "")])
    plain = reference_of(tokenizer, TURNS, [user("Hi"), said("Ho"), user("a")], cue=True)
    start, close = tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
    places = [place for place, id in enumerate(plain) if id == start]
    end = len(plain) - 1 - plain[::-1].index(close)
    assert held[: places[2] + 1] == plain[: places[2] + 1] and held[end - len(plain) :] == plain[end:]
    assert held.count(close) == plain.count(close) and len(held) > len(plain)


def test_an_end_behind_everything_ends_the_last_answer_alone(tokenizer):
    """An earlier answer that no token closes is not learnt, and nothing that users said behind it is."""
    encoder = encoder_with(tokenizer, END_OF_ALL)
    (last,) = learnt(encode_row(talk(["Hi", "Ho.", "What now?", "Rest."]), encoder, max_length=999))
    assert encoder.lost_turns == 1 and last[-1] == tokenizer.eos_token_id
    assert "What" not in tokenizer.decode(last) and "Rest" in tokenizer.decode(last)


def test_an_open_thought_keeps_the_templates_own_end_and_calls():
    template = OPEN_THOUGHT.replace("}}<|out|>", "}}{% for c in m.tool_calls or [] %}!{{ c.name }}{% endfor %}<|out|>")
    tokenizer = TOKENIZERS["merges"]()
    encoder = encoder_with(tokenizer, template)
    row = Row((user("Go"),), "", answer={"tool_calls": [{"name": "look"}]})
    (last,) = learnt(encode_row(row, encoder, max_length=999))
    assert tokenizer.decode(last) == f"!look{CLOSE}"
    (last,) = learnt(encode_row(Row((user("Go"),), "Went"), encoder, max_length=999))
    assert tokenizer.decode(last) == f"Went{CLOSE}"


def test_calls_behind_the_text_are_learnt_where_no_token_closes_a_turn():
    template = LOOP + "{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}!{{ c.name }}{% endfor %}\n"
    template += "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = make_tokenizer()
    row = Row((user("Go"),), "Yes", answer={"tool_calls": [{"name": "look"}]})
    (last,) = learnt(encode_row(row, encoder_with(tokenizer, template), max_length=999))
    assert tokenizer.decode(last) == "Yes!look</s>"


def test_an_empty_earlier_answer_learns_nothing_of_later_turns():
    tokenizer = make_tokenizer()
    encoded = encode_row(talk(["Hi", "", "What now?", "Rest."]), encoder_with(tokenizer, END_OF_ALL), max_length=999)
    assert "What" not in tokenizer.decode([id for stretch in learnt(encoded) for id in stretch])


@pytest.mark.parametrize(
    "call", ["strftime_now('%Y-%m-%d')", "strftime_now(f)", "strftime_now('%Y' ~ '-%m-%d')", "g(f)"]
)
def test_the_date_is_the_same_however_a_template_asks_for_it(call):
    source = "{% set f = '%Y-%m-%d' %}{% set g = strftime_now %}{{ " + call + " }} " + TURNS
    text, date = with_date(source, "2020-02-03")
    encoder = Encoder(make_tokenizer(), Template("chat", text, date), bos_id=None)
    assert date == "2020-02-03" and encoder.question_text(Row((user("a"),))).startswith("2020-02-03 ")


def test_a_template_that_only_looks_for_the_date_does_not_ask_for_it():
    text = "{% if strftime_now is defined and strftime_now is not defined %}{% endif %}" + TURNS
    assert with_date(text, "2020-02-03") == (text, "")


def test_what_is_shown_has_the_rows_own_characters():
    """Only the place of the prompt is shown as dots, and not a character of the row that is like its mark."""
    tokenizer = TOKENIZERS["merges"]()
    row = Row((user(f"a{SENTINEL}b{CLOSE}"),))
    shown = encoder_with(tokenizer, TURNS, placement="system").question_text(row)
    assert shown == f"{OPEN}system\n[...]{CLOSE}\n{OPEN}user\na{SENTINEL}b{CLOSE}{CLOSE}\n{OPEN}assistant\n"
