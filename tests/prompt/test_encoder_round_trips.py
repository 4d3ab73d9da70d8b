"""What a prompt file says makes the same encoder again, over templates, bos, system texts, placements and dates."""

from types import SimpleNamespace

import pytest
from helpers import templates
from helpers.templates import SHAPES
from helpers.tokenizers import small_tokenizer

from softprompt.data.row import Row, RowKinds
from softprompt.errors import UserError
from softprompt.prompt.encoder import encoder_for, encoder_of, metadata_of
from softprompt.prompt.file import PromptMetadata
from softprompt.tokens.encoding import Encoder

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What is <|im_end|> it?"}
ROWS = [
    Row((ASK,), "it", 1),
    Row(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, ASK), "c </s>", 2),
]
TOOL = {"type": "function", "function": {"name": "f"}}
NAME = "p.safetensors"


def base_with(kind="bytes", template=None, end_ids=()):
    return SimpleNamespace(name="base", tokenizer=small_tokenizer(kind, template), end_ids=list(end_ids))


def reread(encoder, base):
    """The encoder that the prompt file of this one asks for, through the strings of the file."""
    strings = PromptMetadata(**metadata_of(encoder)).to_strings()
    return encoder_of(PromptMetadata.from_strings(strings), base, prompt_file=NAME)


def require_same(encoder, again, rows):
    assert again.questions(rows) == encoder.questions(rows)
    assert again.encode(rows, max_length=60) == encoder.encode(rows, max_length=60)
    for name in ("before_ids", "after_ids", "bos_id", "end_ids", "placement", "template"):
        assert getattr(again, name) == getattr(encoder, name)
    assert metadata_of(again) == metadata_of(encoder)
    assert again.baseline.questions(rows) == encoder.baseline.questions(rows)


@pytest.mark.parametrize("system", ["", "Speak <|im_end|> Dutch."])
@pytest.mark.parametrize("template", ["auto", "tutorial", "plain"])
@pytest.mark.parametrize("kind", ["bytes", "first", "always"])
def test_the_named_templates(kind, template, system):
    for own in (None, templates.CHATML_DEFAULT):
        base = base_with(kind, own)
        encoder = encoder_for(base, RowKinds.of(*ROWS), template=template, system=system)
        require_same(encoder, reread(encoder, base), ROWS)
        assert (encoder.bos_id is None) == (kind == "bytes")


@pytest.mark.parametrize(
    ("shape", "placement"),
    [(shape, placement) for shape, facts in SHAPES.items() for placement in ("front", "system")[: 1 + facts.system]],
)
def test_chat_templates(shape, placement):
    base = base_with("first", SHAPES[shape].text, end_ids=[0])
    encoder = encoder_for(base, RowKinds.of(*ROWS), placement=placement, date="2026-01-02")
    require_same(encoder, reread(encoder, base), ROWS)
    assert encoder.template.date == ("2026-01-02" if shape == "dated" else "") and 0 in encoder.end_ids


@pytest.mark.parametrize(
    "row", [Row((SYSTEM, ASK), "it", 3), Row((ASK,), "it", 3, tools=(TOOL,))], ids=["system", "tools"]
)
def test_rows_that_differ_behind_the_prompt(row):
    base = base_with("bytes", templates.TOOLS)
    encoder = encoder_for(base, RowKinds.of(*ROWS, row), placement="system")
    assert encoder.after_ids == []
    require_same(encoder, reread(encoder, base), [*ROWS, row])
    assert encoder_for(base, RowKinds.of(*ROWS), placement="system").after_ids != []


def test_a_template_file(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(templates.NO_SPECIAL, "utf-8")
    base = base_with("first", templates.CHATML)
    encoder = encoder_for(base, RowKinds.of(*ROWS), template=str(path))
    path.unlink()  # the prompt file holds the text
    require_same(encoder, reread(encoder, base), ROWS)


def test_a_later_template_of_the_base_changes_no_answer():
    encoder = encoder_for(base_with("bytes", templates.CHATML), RowKinds.of(*ROWS))
    require_same(encoder, reread(encoder, base_with("bytes", templates.NO_SPECIAL)), ROWS)
    require_same(encoder, reread(encoder, base_with("bytes")), ROWS)


@pytest.mark.parametrize("name", ["", "alpaca"])
def test_files_of_version_1_have_the_tutorials_template_and_no_bos(name):
    base = base_with("first", templates.CHATML)  # whose tokenizer would put one in front
    encoder = encoder_of(PromptMetadata(template=name), base, prompt_file=NAME)
    require_same(Encoder(base.tokenizer), encoder, ROWS)
    assert encoder.bos_id is None and encoder.template.name == "tutorial" and encoder.placement == "front"


CHAT = {"template": "chat", "template_text": templates.CHATML}


@pytest.mark.parametrize(
    "facts",
    [
        {"template": "no\nsuch"},
        {"template": "file", "template_text": "{% for"},
        {"template": "file", "template_text": "{{ raise_exception('no\nway') }}"},
        {"template": "file", "template_text": "{% if messages | length == 2 %}{{ 1 // 0 }}{% endif %}"},
        CHAT | {"template_date": "today\n"},
        {"template": "tutorial", "template_date": "2026-02-30"},
        CHAT | {"bos_token": "<no such>"},
        CHAT | {"bos_token": "a b\n"},
        CHAT | {"placement": "behind\n"},
        CHAT | {"placement": "system"},  # without the ids around the prompt
        CHAT | {"placement": "system", "before_ids": [5]},
        CHAT | {"before_ids": [5]},
        CHAT | {"after_ids": [2**62]},
        {"placement": "system"},
        {"template": "plain", "placement": "system"},
        {"template": "file", "template_text": templates.NO_SYSTEM, "placement": "system"},
    ],
    ids=lambda facts: "-".join(map(ascii, facts.values()))[:60],
)
def test_a_file_that_states_nonsense_is_one_line(facts):
    with pytest.raises(UserError) as caught:
        encoder_of(PromptMetadata(**facts), base_with("bytes", templates.DATED), prompt_file=NAME)
    message = str(caught.value)
    assert message.startswith(f"{NAME}: ") and "\n" not in message and len(message) < 400


def test_another_base_whose_tokenizer_writes_other_ids_around_the_prompt():
    encoder = encoder_for(base_with("bytes", templates.CHATML), RowKinds.of(*ROWS), placement="system")
    with pytest.raises(UserError, match=f"^{NAME}: this base's tokenizer writes other ids around the prompt"):
        reread(encoder, base_with("first", templates.CHATML))
