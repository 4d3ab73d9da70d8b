"""Chat templates: the ids are those of `apply_chat_template`, and the labels are the answers with what closes them."""

import pytest
from helpers import templates
from helpers.templates import SHAPES
from helpers.tokenizers import MAKERS, WITH_BOS, small_tokenizer

from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.encoding import IGNORE_INDEX, Encoder, bos_of
from softprompt.tokens.template import choose_template

SYSTEM = {"role": "system", "content": "Be brief, robot."}
ASK = {"role": "user", "content": "What is the capital of France?"}
TOLD = {"role": "assistant", "content": "Paris, I think."}
MORE = {"role": "user", "content": "And that of Italy? 你好"}
ANSWER = "Rome: the other one."
CONVERSATIONS = {
    "one": [ASK],
    "two": [ASK, TOLD, MORE],
    "three": [MORE, {"role": "assistant", "content": "No."}, ASK, TOLD, {"role": "user", "content": "Why?"}],
}
DAY = "2026-01-02"


def encoder_with(kind, text, end_ids=(), names=None, **settings):
    tokenizer = small_tokenizer(kind, text, **(names or {}))
    template = choose_template("chat", tokenizer, date=DAY)
    return Encoder(tokenizer, template, bos_id=bos_of(tokenizer), end_ids=list(end_ids), **settings)


def reference(encoder, turns, **settings):
    """What transformers gives for the turns, with the bos that the base's tokenizer puts in front if none is there."""
    tokenizer = encoder.tokenizer
    ids = tokenizer.apply_chat_template(
        turns, chat_template=encoder.template.text, tokenize=True, return_dict=False, **settings
    )
    bos = bos_of(tokenizer)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def learnt(encoded):
    """The stretches of ids with labels, one list each."""
    found, behind = [], False
    for id, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label != IGNORE_INDEX:
            assert label == id
            found = [*found[:-1], [*found[-1], id]] if behind else [*found, [id]]
        behind = label != IGNORE_INDEX
    return found


def texts_of(encoder, stretches):
    """The texts of stretches of ids without blanks, which some tokenizers put behind special tokens."""
    return [encoder.tokenizer.decode(ids).replace(" ", "") for ids in stretches]


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("with_system", [False, True], ids=["", "system"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", MAKERS)
def test_ids_and_labels(kind, shape, with_system, turns):
    facts = SHAPES[shape]
    encoder = encoder_with(kind, facts.text)
    before = [SYSTEM, *CONVERSATIONS[turns]] if with_system else CONVERSATIONS[turns]
    row = Row(tuple(before), ANSWER)
    if with_system and not facts.system:
        with pytest.raises(UserError, match="there is no system role"):
            encoder.encode([row], max_length=10_000)
        return
    (encoded,) = encoder.encode([row], max_length=10_000)
    (question,) = encoder.questions([row])

    # what is sent to be answered is what transformers gives, and how the row begins
    assert question == reference(encoder, before, add_generation_prompt=True)
    assert encoded.input_ids[: len(question)] == question
    assert set(encoded.labels[len(question) :]) != {IGNORE_INDEX}

    # the whole row is what transformers gives, up to what closes the last answer
    whole = reference(encoder, [*before, {"role": "assistant", "content": ANSWER}])
    length = len(encoded.input_ids)
    eos = encoder.tokenizer.eos_token_id
    closer = facts.closer or encoder.tokenizer.eos_token
    assert encoded.input_ids[-1] == encoder.tokenizer.convert_tokens_to_ids(closer)
    # not their ids, if a token reaches over the beginning of the last answer or over an end without a close
    joined = whole[: len(question)] != question
    assert not joined or (shape == "opened thought" and kind in WITH_BOS)
    if joined or facts.appended:
        beginning = encoder.tokenizer.decode(encoded.input_ids[:-1])
        assert encoder.tokenizer.decode(whole).replace(" ", "").startswith(beginning.replace(" ", ""))
    else:
        assert encoded.input_ids == whole[:length]

    # labels: the answers, each with its close, and nothing else
    stretches = learnt(encoded)
    answers = [turn["content"] for turn in before if turn["role"] == "assistant"] + [ANSWER]
    answers = answers if facts.several else answers[-1:]
    closes = [facts.closer] * (len(answers) - 1) + [closer]
    expected = [facts.between + answer + close for answer, close in zip(answers, closes, strict=True)]
    assert texts_of(encoder, stretches) == [text.replace(" ", "") for text in expected]
    assert encoded.labels[-1] == encoded.input_ids[-1]

    # exactly one bos, where the tokenizer or the template writes one
    bos = encoder.tokenizer.bos_token_id
    wants = kind in WITH_BOS or "bos_token" in facts.text
    assert encoded.input_ids.count(bos) == question.count(bos) == int(wants)
    assert (encoded.input_ids[0] == bos) == wants

    # whatever closes an answer ends generation
    assert encoded.input_ids[-1] in encoder.end_ids and eos in encoder.end_ids
    assert len(set(encoder.end_ids)) == len(encoder.end_ids)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_turn_only(kind, shape):
    """The ids stay, and one answer has labels."""
    rows = [Row(tuple(CONVERSATIONS["three"]), ANSWER)]
    (every,) = encoder_with(kind, SHAPES[shape].text).encode(rows, max_length=10_000)
    (last,) = encoder_with(kind, SHAPES[shape].text, last_turn_only=True).encode(rows, max_length=10_000)
    assert last.input_ids == every.input_ids
    assert len(learnt(last)) == 1 and learnt(last) == learnt(every)[-1:]


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_that_are_not_learnt_are_counted(shape):
    encoder = encoder_with("bytes", SHAPES[shape].text)
    encoder.encode([Row(tuple(turns), ANSWER) for turns in CONVERSATIONS.values()], max_length=10_000)
    by_template = SHAPES[shape].several or shape == "marked last"  # there the template says it
    assert encoder.lost_turns == (0 if by_template else 3)
    last = encoder_with("bytes", SHAPES[shape].text, last_turn_only=True)
    last.encode([Row(tuple(turns), ANSWER) for turns in CONVERSATIONS.values()], max_length=10_000)
    assert last.lost_turns == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_a_thought_that_only_the_cue_opens(kind):
    """The answer follows the cue, with what the template writes for it: its text, its calls and its close."""
    encoder = encoder_with(kind, templates.LOST_THOUGHT)
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    rows = [
        Row((ASK, TOLD, MORE), " Rome \n"),
        Row((ASK,), "", answer={"tool_calls": [call]}),
        Row((ASK,), "Let me add.", answer={"tool_calls": [call]}),
        Row((ASK,), "<thin"),
    ]
    wanted = [
        "Rome<|im_end|>",
        "<tool_call>add</tool_call><|im_end|>",
        "Let me add.<tool_call>add</tool_call><|im_end|>",
        "<thin<|im_end|>",
    ]
    encoded = encoder.encode(rows, max_length=10_000)
    for row, each, text in zip(rows, encoded, wanted, strict=True):
        (question,) = encoder.questions([row])
        assert each.input_ids[: len(question)] == question
        assert encoder.tokenizer.decode(question).replace(" ", "").endswith("<|bot|><think>\n")
        assert texts_of(encoder, learnt(each)) == [text.replace(" ", "")]
        assert each.labels[: len(question)] == [IGNORE_INDEX] * len(question)
    assert encoder.lost_turns == 1


@pytest.mark.parametrize("shape", ["reasoning", "opened thought"])
def test_the_thoughts_of_the_last_turn_are_learnt(shape):
    encoder = encoder_with("bytes", SHAPES[shape].text)
    content = "<think>\nIt is in Italy.\n</think>\n\nRome."
    for row in [Row((ASK,), content), Row((ASK,), "Rome.", answer={"reasoning_content": "It is in Italy."})]:
        (encoded,) = encoder.encode([row], max_length=10_000)
        expected = content + "<|im_end|>"
        expected = expected if shape == "reasoning" else expected.removeprefix("<think>\n")
        assert texts_of(encoder, learnt(encoded)) == [expected.replace(" ", "")]
        whole = reference(encoder, [ASK, {"role": "assistant", "content": content}])
        assert encoded.input_ids == whole[: len(encoded.input_ids)]
        assert encoder.tokenizer.convert_tokens_to_ids("</think>") in encoded.supervised_ids


CALL = {"type": "function", "function": {"name": "capital", "arguments": {"of": "Italy", "n": 1.50}}}
TOOL = {
    "type": "function",
    "function": {"name": "capital", "parameters": {"type": "object", "properties": {"of": {"type": "string"}}}},
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("shape", ["tools", "tools first"])
@pytest.mark.parametrize("with_system", [False, True])
def test_tools_calls_and_results(kind, shape, with_system):
    encoder = encoder_with(kind, SHAPES[shape].text)
    before = [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": '{"found": "Rome"}'}]
    before = [SYSTEM, *before] if with_system else before
    row = Row(tuple(before), ANSWER, tools=(TOOL,))
    (encoded,) = encoder.encode([row], max_length=10_000)
    assert encoder.questions([row]) == [reference(encoder, before, tools=[TOOL], add_generation_prompt=True)]
    whole = reference(encoder, [*before, {"role": "assistant", "content": ANSWER}], tools=[TOOL])
    assert encoded.input_ids == whole[: len(encoded.input_ids)]
    written = '<tool_call>\n{"name": "capital", "arguments": {"of": "Italy", "n": 1.5}}\n</tool_call><|im_end|>'
    assert texts_of(encoder, learnt(encoded)) == [written.replace(" ", ""), (ANSWER + "<|im_end|>").replace(" ", "")]
    # a call as the answer
    asked = Row((ASK,), "", answer={"tool_calls": [CALL]}, tools=(TOOL,))
    (encoded,) = encoder.encode([asked], max_length=10_000)
    assert texts_of(encoder, learnt(encoded)) == [written.replace(" ", "")]


def test_the_ends_of_the_base_close_a_turn():
    """A base whose turns are closed by the opening of the next one names it among its ends."""
    tokenizer = small_tokenizer("bytes")
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    encoder = encoder_with("bytes", templates.OPENED_ONLY, end_ids=[tokenizer.eos_token_id, user])
    (encoded,) = encoder.encode([Row(tuple(CONVERSATIONS["two"]), ANSWER)], max_length=10_000)
    assert [ids[-1] for ids in learnt(encoded)][0] == user
    assert {user, tokenizer.eos_token_id} <= set(encoder.end_ids)


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>"])
def test_eos_may_be_what_closes_a_turn_or_another(end):
    encoder = encoder_with("bytes", templates.CHATML, names={"eos_token": end})
    (encoded,) = encoder.encode([Row((ASK,), ANSWER)], max_length=10_000)
    close = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoded.labels[-1] == close and set(encoder.end_ids) == {close, encoder.tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [([SYSTEM, ASK], "there is no system role"), ([ASK, MORE], "turns must go user, assistant, user, assistant")],
)
def test_a_row_that_the_template_refuses_is_named_in_one_line(turns, reason):
    text = templates.NO_SYSTEM if turns[0] is SYSTEM else templates.ALTERNATING
    encoder = encoder_with("bytes", text)
    with pytest.raises(UserError) as caught:
        encoder.encode([Row((ASK,), ANSWER, 1), Row(tuple(turns), ANSWER, 17)], max_length=100)
    message = str(caught.value)
    assert message.startswith("row 17: ") and reason in message and "\n" not in message and "tutorial" in message


@pytest.mark.parametrize(
    "text", ["{{ messages[0].nothing.at_all }}", "{% for", "{{ raise_exception('') }}", "{{ 1 / 0 }}"]
)
def test_a_template_that_cannot_be_rendered(text):
    with pytest.raises(UserError, match="the chat template cannot be rendered") as caught:
        encoder_with("bytes", text)
    assert "\n" not in str(caught.value) and "()" not in str(caught.value)


def test_a_row_that_is_not_usable_need_not_suit_the_template():
    """It is left out later, and counted."""
    picky = (
        "{% if not messages or not messages[0].content %}{{ raise_exception('empty') }}{% endif %}" + templates.CHATML
    )
    encoder = encoder_with("bytes", picky)
    rows = [Row((), ANSWER, 1), Row((ASK,), ANSWER, 2), Row(({"role": "user", "content": ""},), ANSWER, 3)]
    encoded = encoder.encode(rows, max_length=100)
    assert [bool(each.num_supervised) for each in encoded] == [False, True, False]


def test_one_date_for_all_rows_of_a_template_that_asks_for_it():
    encoder = encoder_with("bytes", templates.DATED)
    assert encoder.template.date == DAY
    assert "It is the 02 Jan 2026." in encoder.question_text(Row((ASK,)))


def test_the_cut_and_the_text_shown():
    encoder = encoder_with("bytes", templates.CHATML)
    row = Row((SYSTEM, ASK), ANSWER)
    (whole,) = encoder.encode([row], max_length=10_000)
    (cut,) = encoder.encode([row], max_length=len(whole.input_ids) - 3)
    assert cut.input_ids == whole.input_ids[:-3] and cut.labels == whole.labels[:-3] and cut.num_cut == 3
    shown = encoder.question_text(row)
    assert shown == encoder.tokenizer.decode(encoder.questions([row])[0])


def test_the_system_text_of_rows_that_have_none():
    tokenizer = small_tokenizer("bytes", templates.CHATML_DEFAULT)
    encoder = Encoder(tokenizer, choose_template("chat", tokenizer, system="Speak Dutch."))
    own, none = encoder.question_text(Row((SYSTEM, ASK))), encoder.question_text(Row((ASK,)))
    assert "Be brief, robot." in own and "Speak Dutch." not in own
    assert "Speak Dutch." in none and "helpful" not in none


@pytest.mark.parametrize("kind", MAKERS)
def test_a_token_that_would_reach_over_the_cue(kind):
    """The cue ends in a blank that the tokenizer joins to the answer: the question stays as it is sent."""
    text = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    encoder = encoder_with(kind, text + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    row = Row((ASK,), "the answer is Paris")
    (encoded,), (question,) = encoder.encode([row], max_length=10_000), encoder.questions([row])
    assert encoded.input_ids[: len(question)] == question
    assert encoded.labels[: len(question)] == [IGNORE_INDEX] * len(question)
    decoded = encoder.tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False)
    assert decoded.endswith("assistant: the answer is Paris<|im_end|>")


def test_a_token_that_reaches_over_an_earlier_cue_is_learnt():
    """It holds the beginning of that answer; the last answer is tokenised apart."""
    encoder = encoder_with("first", templates.CHATML)
    turns = (ASK, {"role": "assistant", "content": "\nParis."}, MORE)
    (encoded,) = encoder.encode([Row(turns, "\nRome.")], max_length=10_000)
    stretches = learnt(encoded)
    joined, alone = (encoder.tokenizer.convert_tokens_to_ids(text) for text in ("\n\n", "\n"))
    assert stretches[0][0] == joined and stretches[1][0] == alone
    assert texts_of(encoder, stretches) == ["\n\nParis.<|im_end|>", "\nRome.<|im_end|>"]
