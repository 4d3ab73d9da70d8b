"""What a prompt file says of its rows makes the encoder again that wrote them."""

import dataclasses

import pytest
import torch
from helpers.models import make_tokenizer
from helpers.rows import ROWS

from softprompt.base.loading import load_base
from softprompt.data.row import Row, RowKinds
from softprompt.errors import UserError
from softprompt.prompt.encoder import encoder_for, encoder_of, metadata_of
from softprompt.prompt.metadata import PromptMetadata

TURNS = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
TURNS += "{% if add_generation_prompt %}<s>assistant: {% endif %}"
DATED = "{{ strftime_now('%j of %Y') }} " + TURNS
ANSWER = {"role": "assistant", "content": "an answer of some length"}
TALK = Row(({"role": "user", "content": "a"}, ANSWER, {"role": "user", "content": "b"}), "c")
ASKED = [Row.asked(**row, number=place) for place, row in enumerate(ROWS, start=1)]


@pytest.fixture
def base(model_folder):
    return load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")


def again(encoder, base):
    """The encoder of a file that keeps what `encoder` says of itself."""
    facts = PromptMetadata.from_strings(PromptMetadata(**metadata_of(encoder)).to_strings())
    return encoder_of(facts, base, prompt_file="p.safetensors")


@pytest.mark.parametrize("own", ["", TURNS, DATED], ids=["no template", "template", "date"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"system": "Be brief."}, {"template": "plain"}, {"template": "tutorial"}, {"placement": "system"}],
    ids=str,
)
@pytest.mark.parametrize("last_turn_only", [False, True])
def test_a_round_trip_gives_the_same_ids(base, own, settings, last_turn_only):
    base.tokenizer.chat_template = own or None
    if settings.get("placement") and not own:
        with pytest.raises(UserError, match="`placement` system"):
            encoder_for(base, RowKinds.of(*ASKED), **settings)
        return
    encoder = encoder_for(base, RowKinds.of(*ASKED), date="2026-03-04", last_turn_only=last_turn_only, **settings)
    found = again(encoder, base)
    assert found.encode(ASKED, max_length=80) == encoder.encode(ASKED, max_length=80)
    assert found.questions(ASKED) == encoder.questions(ASKED)
    (talk,), (same,) = (each.encode([TALK], max_length=999) for each in (encoder, found))
    assert talk == same and (len(talk.supervised_ids) > 20) != last_turn_only
    assert (found.before_ids, found.after_ids) == (encoder.before_ids, encoder.after_ids)
    assert (found.end_ids, found.bos_id, found.template) == (encoder.end_ids, encoder.bos_id, encoder.template)
    if own == DATED and not settings.get("template"):
        assert "063 of 2026" in encoder.template.text and encoder.template.date == "2026-03-04"


def test_a_base_with_another_template_of_its_own_still_asks_as_in_training(base):
    base.tokenizer.chat_template = TURNS
    encoder = encoder_for(base, RowKinds.of(*ASKED))
    wanted = encoder.questions(ASKED)
    base.tokenizer.chat_template = "{{ messages }}"
    assert again(encoder, base).questions(ASKED) == wanted


@pytest.mark.parametrize("template", ["tutorial", "chat"])
def test_answers_end_where_they_ended_in_training_whatever_the_base_says_now(base, template):
    base.tokenizer.chat_template, base.model.generation_config.eos_token_id = TURNS, [2, 77]
    encoder = encoder_for(base, RowKinds.of(*ASKED), template=template)
    assert 77 in encoder.end_ids
    base.model.generation_config.eos_token_id = [2, 99]
    found = again(encoder, base)
    assert {*found.end_ids} == {*encoder.end_ids, 99} and {*found.baseline.end_ids} == {*found.end_ids}
    assert found.encode(ASKED, max_length=80) == encoder.encode(ASKED, max_length=80)


def test_a_file_of_version_1_is_the_tutorials_without_bos(base):
    base.tokenizer.chat_template = TURNS
    for name in ("", "alpaca"):
        encoder = encoder_of(PromptMetadata(template=name), base, prompt_file="p")
        assert encoder.template.name == "tutorial" and encoder.bos_id is None and encoder.placement == "front"


def test_texts_and_ids_need_no_template(base):
    texts = [Row(text="Once.", number=1), Row(text="Twice.", number=2)]
    encoder = encoder_for(base, RowKinds.of(*texts))
    first, _ = encoder.encode(texts, max_length=99)
    assert first.labels == first.input_ids and first.input_ids[-1] == base.tokenizer.eos_token_id
    assert make_tokenizer().decode(first.input_ids[:-1]) == "Once."
    with pytest.raises(UserError, match="`template`: these rows are text"):
        encoder_for(base, RowKinds.of(*texts), template="plain")
    ids = [Row(encoded=([5, 6, 7], [-100, 6, 7]), number=1)]
    (row,) = encoder_for(base, RowKinds.of(*ids)).encode(ids, max_length=2)
    assert (row.input_ids, row.labels, row.num_cut) == ([5, 6], [-100, 6], 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template": "chat", "template_text": "{% for %}"}, "cannot be rendered"),
        ({"template": "chat", "template_text": "{{ 1 // 0 }}"}, "cannot be rendered"),
        ({"template": "chat"}, "which is not known"),
        ({"placement": "behind"}, "placement 'behind' is not known"),
        ({"placement": "system"}, "`placement` system"),
        ({"learnt_turns": "first"}, "learnt turns 'first' are not known"),
        ({"bos_token": "<nowhere>"}, "begin with '<nowhere>'"),
        ({"template": "chat", "template_text": TURNS, "template_date": "soon"}, "date"),
    ],
    ids=str,
)
def test_what_a_strangers_file_says_is_refused_in_one_line(base, changes, words):
    facts = dataclasses.replace(PromptMetadata(), **changes)
    with pytest.raises(UserError) as caught:
        encoder_of(facts, base, prompt_file="p.safetensors")
    assert words in str(caught.value) and "\n" not in str(caught.value)
