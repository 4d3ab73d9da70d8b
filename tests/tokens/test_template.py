"""Which template an option or a prompt file stands for, and what is refused."""

import pytest
from helpers.models import make_tokenizer

from softprompt.errors import UserError
from softprompt.tokens import probe
from softprompt.tokens.probe import require_harmless
from softprompt.tokens.template import TUTORIAL, Template, choose_template, template_of, with_date

TURNS = "{{ messages[0]['content'] }}"
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def chat_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TURNS
    return tokenizer


def test_auto_takes_the_tokenizers_own_where_it_has_one(chat_tokenizer):
    assert choose_template("auto", make_tokenizer()) == TUTORIAL
    assert choose_template("auto", chat_tokenizer, system="Be.") == Template("chat", TURNS, system="Be.")
    assert choose_template("tutorial", chat_tokenizer) == TUTORIAL
    assert choose_template("plain", chat_tokenizer) == Template("plain")
    chat_tokenizer.chat_template = {"default": "d", "rag": "r"}
    assert choose_template("auto", chat_tokenizer).text == "d"
    with pytest.raises(UserError, match="`template` chat: this tokenizer has no chat template"):
        choose_template("chat", make_tokenizer())


def test_a_template_in_a_file(chat_tokenizer, tmp_path):
    path = tmp_path / "turns.jinja"
    path.write_text("{{ messages }}", "utf-8")
    assert choose_template(str(path), chat_tokenizer) == Template("file", "{{ messages }}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        choose_template(str(path), chat_tokenizer)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UserError, match="larger than 1 MB"):
        choose_template(str(path), chat_tokenizer)
    for name in (tmp_path, tmp_path / "none.jinja", "chatml"):
        with pytest.raises(UserError, match="no such file; the names of templates are auto, tutorial"):
            choose_template(str(name), chat_tokenizer)


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now( "%d %b %Y" )'])
def test_a_date_is_fixed(call):
    text, date = with_date("{% if strftime_now is defined %}{{ " + call + " }}{% endif %}", "2026-02-03")
    assert date == "2026-02-03" and "{{ '03 Feb 2026' }}" in text and "strftime_now is defined" in text
    assert with_date(TURNS, "2026-02-03") == (TURNS, "")
    assert with_date("{{ " + call + " }}", None)[1] > "2026"


@pytest.mark.parametrize(
    ("name", "text"), [("chat", ""), ("file", ""), ("tutorial", "x"), ("chatml", ""), ("text", "x")]
)
def test_a_file_that_names_what_is_not_there_is_refused(name, text):
    with pytest.raises(UserError, match="^p: was trained with the template"):
        template_of(name, text=text, prompt_file="p")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}", "cannot be rendered"),
        ("{{ raise_exception('go away') }}", "go away"),
        ("{{ 'a' * 2000000 }}", "writes 2,000,000 characters"),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
    ],
    ids=["syntax", "raises", "huge", "reaches out", "for ever"],
)
def test_a_strangers_template_is_tried_in_a_child(text, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user stands in for a library')")
    monkeypatch.setattr(probe, "SECONDS", 2)
    with pytest.raises(UserError) as caught:
        require_harmless(text, NAMES, what="`template` x")
    assert str(caught.value).startswith("`template` x: ") and words in str(caught.value)
    require_harmless(TURNS, NAMES, what="`template` x")
