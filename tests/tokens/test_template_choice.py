"""Which template is taken, from where it is read, and which day stands in it."""

import datetime

import pytest
from helpers import templates
from helpers.tokenizers import small_tokenizer

from softprompt.errors import UserError
from softprompt.tokens.encoding import Encoder
from softprompt.tokens.template import (
    LARGEST_FILE,
    TUTORIAL,
    Template,
    choose_template,
    own_template,
    template_of,
    with_date,
)

NONE, CHAT = small_tokenizer("bytes"), small_tokenizer("bytes", templates.CHATML)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOOL = {"type": "function", "function": {"name": "f"}}
DAY = "2026-01-02"


def rendered(text, **settings):
    return NONE.apply_chat_template(TURNS, chat_template=text, tokenize=False, **settings)


def test_auto_is_the_bases_own_template_or_the_tutorials():
    assert choose_template("auto", NONE) == TUTORIAL
    assert choose_template("auto", CHAT) == Template("chat", templates.CHATML) == choose_template("chat", CHAT)
    assert choose_template("auto", CHAT).is_chat and not TUTORIAL.is_chat
    assert choose_template("tutorial", CHAT, system="Be brief.") == Template("tutorial", system="Be brief.")
    assert choose_template("plain", CHAT) == Template("plain")
    assert choose_template("chat", CHAT, system="Be brief.").system == "Be brief."


@pytest.mark.parametrize("own", [None, "", {}, {"tool_use": templates.TOOLS}])
def test_chat_is_refused_where_the_tokenizer_has_no_template(own):
    tokenizer = small_tokenizer("bytes", own)
    assert choose_template("auto", tokenizer) == TUTORIAL
    with pytest.raises(UserError, match="`template` chat: this tokenizer has no chat template"):
        choose_template("chat", tokenizer)


def test_the_default_of_several_templates():
    tokenizer = small_tokenizer("bytes", {"default": templates.CHATML, "rag": "{{ documents }}"})
    assert choose_template("auto", tokenizer) == Template("chat", templates.CHATML)


ODD = "\n  {% if true %}\n  kept{{ messages[0].content }}  \n{% endif %}\n  \n"


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize(
    ("default", "with_tools"),
    [
        (templates.CHATML, templates.TOOLS),
        (ODD, ODD + "T"),
        (ODD.strip(), "  " + ODD.strip("\n")),
        ("a\n\n", "b \n"),
        ("  {# a comment #}\n  x", "{%- set x = 1 %} y  "),
    ],
)
def test_rows_with_tools_take_the_template_for_tools(default, with_tools, tools):
    """What transformers takes of the two, character by character."""
    tokenizer = small_tokenizer("bytes", {"default": default, "tool_use": with_tools})
    text = choose_template("chat", tokenizer).text
    expected = tokenizer.apply_chat_template(TURNS, tools=tools, tokenize=False)
    assert rendered(text, tools=tools) == expected


def test_a_template_file(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_bytes(templates.NO_SPECIAL.encode())
    assert choose_template(str(path), CHAT, system="s") == Template("file", templates.NO_SPECIAL, system="s")
    path.write_bytes(b"\xef\xbb\xbf{{ messages }}\r\n 'x'")  # as an editor under Windows saves it
    assert choose_template(str(path), NONE).text == "{{ messages }}\n 'x'"


def test_a_template_file_beneath_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.jinja").write_text("{{ messages }}", "utf-8")
    assert choose_template("~/mine.jinja", NONE).name == "file"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file; the names of templates are auto, tutorial, chat and plain"),
        ("folder", "no such file"),
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xff\xfe{\x00", "cannot be read as UTF-8 text"),
        (b"caf\xe9", "cannot be read as UTF-8 text"),
        (b"x" * (LARGEST_FILE + 1), "larger than 1 MB"),
    ],
    ids=["missing", "folder", "empty", "blank", "utf-16", "latin-1", "large"],
)
def test_a_file_that_is_no_template_is_one_line(content, reason, tmp_path):
    path = tmp_path / "mine.jinja"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        choose_template(str(path), CHAT)
    message = str(caught.value)
    assert message.startswith(f"`template` {path}: ") and reason in message and "\n" not in message


@pytest.mark.parametrize("name", ["", "Chat", "a\0b", "x" * 5000, "~nobody-of-this-name/x.jinja"])
def test_a_name_that_can_be_no_file(name):
    with pytest.raises(UserError, match="`template` "):
        choose_template(name, CHAT)


@pytest.mark.parametrize(
    "call",
    [
        "{{ strftime_now('%d %b %Y') }}",
        '{{ strftime_now("%d %b %Y") }}',
        "{{ strftime_now( '%d %b %Y' ) }}",
        "{{ strftime_now (format='%d %b %Y') }}",
        "{% set date = strftime_now('%d %b %Y') %}{{ date }}",
        "{{ strftime_now('%d' + ' %b %Y') }}",
        "{% set form = '%d %b %Y' %}{{ strftime_now(form) }}",
        "{% if strftime_now is defined %}{{ strftime_now('%d %b') }}{% endif %}{{ ' ' + strftime_now('%' ~ 'Y') }}",
    ],
)
def test_a_template_gets_one_date(call):
    for front, behind in [("", ""), ("\n\n  {# x #}", "\n"), ("  {% if true %}\n a", "{% endif %}")]:
        text, date = with_date(front + call + behind, DAY)
        assert date == DAY
        expected = rendered(front + "{{ '02 Jan 2026' }}" + behind)
        assert "02 Jan 2026" in rendered(text) and rendered(text).lstrip() == expected.lstrip()
        assert with_date(text, "1999-09-09")[0].count("1999") == 0 or "macro" in text


@pytest.mark.parametrize("call", ["strftime_now('%-d.%-m.%y, %A %j')", "strftime_now('%-d.%-m.' ~ '%y, %A %j')"])
def test_every_part_of_a_date(call):
    assert rendered(with_date("{{ " + call + " }}", DAY)[0]) == "2.1.26, Friday 002"


def test_a_quote_in_a_date():
    text, _ = with_date("""{{ strftime_now("it's the %d") }}""", DAY)
    assert rendered(text) == "it's the 02"


def test_a_template_that_does_not_ask_for_the_date_has_none():
    assert with_date(templates.CHATML, DAY) == (templates.CHATML, "")
    assert choose_template("chat", CHAT, date=DAY).date == ""
    today = datetime.date.today()
    text, date = with_date(templates.DATED, None)
    assert date in (today.isoformat(), (today + datetime.timedelta(days=1)).isoformat())
    assert datetime.date.fromisoformat(date).strftime("%d %b %Y") in rendered(text)


def test_the_date_is_in_the_chosen_template(tmp_path):
    tokenizer = small_tokenizer("bytes", templates.DATED)
    (tmp_path / "dated.jinja").write_text(templates.DATED, "utf-8")
    for name in ("auto", "chat", str(tmp_path / "dated.jinja")):
        chosen = choose_template(name, tokenizer, date=DAY)
        assert chosen.date == DAY and "02 Jan 2026" in chosen.text
        assert template_of(chosen.name, text=chosen.text, date=DAY, prompt_file="p") == chosen


def test_what_a_prompt_file_may_state():
    assert template_of("plain", prompt_file="p") == Template("plain")
    assert template_of("text", prompt_file="p") == Template("text")
    assert template_of("file", text="x", system="s", prompt_file="p") == Template("file", "x", "", "s")
    for name, text in [("chat", ""), ("file", ""), ("tutorial", "x"), ("", "x"), ("auto", ""), ("x\ny", "")]:
        with pytest.raises(UserError, match="^p: .*update softprompt$"):
            template_of(name, text=text, prompt_file="p")
    for date in ("yesterday", "2026-13-01", "2026-01-02\n"):
        with pytest.raises(UserError, match=r"^p: the date of its template, "):
            template_of("file", text="x", date=date, prompt_file="p")


def test_own_template_is_what_auto_takes():
    assert own_template(NONE) == "" and own_template(CHAT) == templates.CHATML
    assert Encoder(CHAT, choose_template("auto", CHAT)).template.text == own_template(CHAT)
