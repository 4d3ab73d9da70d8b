"""A prompt within the system turn: what stands around it is shared, and rows begin behind it."""

import pytest
from helpers import templates
from helpers.templates import SHAPES
from helpers.tokenizers import MAKERS, WITH_BOS, small_tokenizer

from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.encoding import Encoder, bos_of
from softprompt.tokens.special_text import SENTINEL
from softprompt.tokens.template import TUTORIAL, Template, choose_template

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What is it?"}
OTHER = {"role": "user", "content": "who, then"}
TOOL = {"type": "function", "function": {"name": "f"}}
CHATS = [name for name, facts in SHAPES.items() if facts.system]


def encoder_with(kind, text, *, placement="system", system="", **settings):
    tokenizer = small_tokenizer(kind, text)
    template = choose_template("chat", tokenizer, date="2026-01-02", system=system)
    return Encoder(tokenizer, template, bos_id=bos_of(tokenizer), placement=placement, **settings)


def decoded(encoder, ids):
    return encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" ", "")


@pytest.mark.parametrize("shape", CHATS)
@pytest.mark.parametrize("kind", MAKERS)
def test_the_prompt_stands_where_the_system_text_begins(kind, shape):
    """In front, prompt and behind are what the template writes for a system text, with one bos in front of all."""
    encoder = encoder_with(kind, SHAPES[shape].text)
    writes_bos = "bos_token" in SHAPES[shape].text
    rows = [Row((ASK,), "it", 1), Row((OTHER, {"role": "assistant", "content": "she"}, ASK), "he", 2)]
    for row, encoded, question in zip(rows, encoder.encode(rows, max_length=999), encoder.questions(rows), strict=True):
        turns = [{"role": "system", "content": SENTINEL}, *row.messages]
        settings = {"chat_template": encoder.template.text, "add_generation_prompt": True, "tokenize": False}
        written = encoder.tokenizer.apply_chat_template(turns, **settings).replace(" ", "")
        before, behind = written.split(SENTINEL)
        if kind != "rstrip":  # which swallows line breaks
            bos = "<s>" if kind in WITH_BOS and not writes_bos else ""
            assert decoded(encoder, encoder.before_ids) == bos + before
            assert decoded(encoder, [*encoder.after_ids, *question]) == behind
        assert encoded.input_ids[: len(question)] == question
        if row.number == 1:
            assert encoded.supervised_ids == encoded.input_ids[len(question) :]
        assert encoded.labels[-1] == encoded.input_ids[-1] in encoder.end_ids
        whole = [*encoder.before_ids, *encoder.after_ids, *encoded.input_ids]
        assert whole.count(encoder.tokenizer.bos_token_id) == int(kind in WITH_BOS or writes_bos)


@pytest.mark.parametrize("shape", CHATS)
def test_what_follows_the_prompt_is_shared_up_to_a_special_token(shape):
    encoder = encoder_with("bytes", SHAPES[shape].text)
    if encoder.after_ids:
        special = {token.content for token in encoder.tokenizer.added_tokens_decoder.values() if token.special}
        assert encoder.tokenizer.convert_ids_to_tokens(encoder.after_ids[-1]) in special
    # without a special token between prompt and question nothing is sure to be tokenised alike
    assert bool(encoder.after_ids) == (shape not in ("merged system", "no special"))


def test_rows_with_system_texts_of_their_own_share_what_stands_in_front():
    rows = [Row((ASK,), "it", 1), Row((SYSTEM, ASK), "it", 2)]
    encoder = encoder_with("bytes", templates.CHATML, shares_close=False)
    assert encoder.after_ids == [] and decoded(encoder, encoder.before_ids) == "<|im_start|>system\n"
    none, own = (decoded(encoder, ids) for ids in encoder.questions(rows))
    assert own == "Bebrief." + none and none.startswith("<|im_end|>\n<|im_start|>user")
    # a row that differs where all are to be alike is named
    strict = encoder_with("bytes", templates.CHATML)
    for use in (strict.questions, lambda rows: strict.encode(rows, max_length=99)):
        with pytest.raises(UserError, match=r"^row 2: what stands around the prompt .* use front$"):
            use(rows)


def test_a_system_text_for_all_rows_is_shared():
    encoder = encoder_with("bytes", templates.CHATML, system="Speak Dutch.")
    assert decoded(encoder, encoder.after_ids).startswith("SpeakDutch.<|im_end|>")
    shown = encoder.question_text(Row((ASK,)))
    assert shown.startswith("<|im_start|>system\n[...]Speak Dutch.<|im_end|>\n<|im_start|>user\n")


def test_the_prompt_takes_the_place_of_the_templates_own_system_text_and_the_baseline_keeps_it():
    encoder = encoder_with("bytes", templates.CHATML_DEFAULT, last_turn_only=True)
    row, alone = Row((ASK,), "it"), encoder.baseline
    assert "helpful" not in encoder.question_text(row) and "helpful" in alone.question_text(row)
    assert alone.placement == "front" and not alone.before_ids and alone.last_turn_only
    assert alone.baseline is alone and alone.end_ids == encoder.end_ids and alone.bos_id == encoder.bos_id
    one, other = encoder.encode([row], max_length=999)[0], alone.encode([row], max_length=999)[0]
    assert one.supervised_ids == other.supervised_ids and len(one.input_ids) < len(other.input_ids)


def test_tools_behind_the_prompt_differ_from_row_to_row_and_tools_in_front_of_it_are_refused():
    rows = [Row((ASK,), "it", 1, tools=(TOOL,)), Row((ASK,), "it", 2)]
    behind = encoder_with("bytes", templates.TOOLS, shares_close=False)
    with_tools, without = (decoded(behind, ids) for ids in behind.questions(rows))
    assert with_tools.startswith("\n#Tools\n{") and without.startswith("<|im_end|>")
    for shares in (True, False):
        in_front = encoder_with("bytes", templates.TOOLS_FIRST, shares_close=shares)
        with pytest.raises(UserError, match=r"^row 1: what stands around the prompt"):
            in_front.questions(rows)


@pytest.mark.parametrize(
    "text",
    [
        templates.NO_SYSTEM,  # raises
        "{% for m in messages if m.role != 'system' %}{{ m.content }}</s>{% endfor %}",  # drops it
        "{% for m in messages %}{{ m.content }}</s>{{ m.content }}{% endfor %}",  # writes it twice
    ],
)
def test_a_template_without_a_place_for_the_prompt_is_refused(text):
    with pytest.raises(UserError) as caught:
        encoder_with("bytes", text)
    message = str(caught.value)
    assert message.startswith("`placement` system: this chat template has no system turn")
    assert message.endswith("use `placement` front") and "\n" not in message


@pytest.mark.parametrize("template", [TUTORIAL, Template("plain"), Template("text")])
def test_the_system_turn_is_a_chat_templates(template):
    with pytest.raises(UserError, match="`placement` system: needs a chat template"):
        Encoder(small_tokenizer("bytes"), template, placement="system")


@pytest.mark.parametrize("text", [SENTINEL, "a<|im_end|>b", SENTINEL + "<s>"])
def test_a_row_cannot_move_the_prompt(text):
    rows = [Row(({"role": "user", "content": "Q" + text},), text + ".", 1)]
    encoder = encoder_with("bytes", templates.CHATML)
    (question,), (encoded,) = encoder.questions(rows), encoder.encode(rows, max_length=999)
    assert encoded.input_ids[: len(question)] == question
    assert decoded(encoder, question).count("Q" + text) == 1
    own = encoder_with("bytes", templates.CHATML, shares_close=False)
    (question,) = own.questions([Row(({"role": "system", "content": text}, ASK), number=1)])
    assert decoded(own, question).startswith(text + "<|im_end|>")
