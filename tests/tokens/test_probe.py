"""A template that was not used before is first rendered in a child process: what it may not do."""

import time

import pytest
from helpers import templates

from softprompt.errors import UserError
from softprompt.tokens import probe
from softprompt.tokens.probe import require_harmless, require_harmless_once

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
LONG_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("text", [templates.CHATML, templates.NO_SYSTEM, templates.MARKED, "é 你好 {{ eos_token }}"])
def test_a_harmless_template(text):
    require_harmless(text, NAMES, what="here")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no\nsuch\nthing') }}", "no such thing"),
        ("{{ messages[0].a.b }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% if messages | length > 1 %}{{ raise_exception('an answer') }}{% endif %}", "an answer"),
    ],
)
def test_a_template_that_fails_is_one_line(text, reason):
    with pytest.raises(UserError) as caught:
        require_harmless(text, NAMES, what="`template` x.jinja")
    message = str(caught.value)
    assert message.startswith("`template` x.jinja: the template cannot be rendered (") and reason in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize("text", [LONG_LOOP, "{% if messages | length > 1 %}" + LONG_LOOP + "{% endif %}"])
def test_a_template_that_does_not_end(text, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^p: the template does not end within 0.5 s"):
        require_harmless(text, NAMES, what="p")
    assert time.monotonic() - start < 60  # the time of the imports, on a slow machine


@pytest.mark.parametrize("text", ["{{ 'ab' * 2 ** 20 }}", "{% for a in range(90000) %}{{ 'abcd' * 9 }}{% endfor %}"])
def test_a_template_that_writes_too_much(text):
    with pytest.raises(UserError, match=r"^p: the template writes [\d,]{9} characters for one row"):
        require_harmless(text, NAMES, what="p")


def test_a_template_that_fills_the_memory(monkeypatch):
    pytest.importorskip("resource", reason="this system has no limit of memory for a process")
    with pytest.raises(UserError, match="MemoryError|does not end"):
        require_harmless("{{ 'a' * 10 ** 13 }}", NAMES, what="p")


@pytest.mark.parametrize(
    "program", ["raise SystemExit(3)", "import os; os.abort()", "print('ready')", "print('no\\nno')"]
)
def test_a_child_that_crashes_is_one_line(program, monkeypatch):
    monkeypatch.setattr(probe, "PROGRAM", program)
    with pytest.raises(UserError, match=r"^p: the template ends its process; give another$"):
        require_harmless(templates.CHATML, NAMES, what="p")


def test_a_file_of_the_users_is_no_library(tmp_path, monkeypatch):
    """The child imports nothing from the current folder."""
    for name in ("json", "transformers", "jinja2", "resource", "sys", "re"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')", "utf-8")
    monkeypatch.chdir(tmp_path)
    require_harmless(templates.CHATML, NAMES, what="p")
    with pytest.raises(UserError, match="never"):
        require_harmless("{{ raise_exception('never') }}", NAMES, what="p")


def test_a_template_that_was_harmless_is_not_rendered_in_a_child_again(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "_harmless", set())
    require_harmless_once(templates.CHATML, NAMES, what="p", own=True)
    with monkeypatch.context() as patched:
        patched.setattr(probe, "PROGRAM", "raise SystemExit(3)")
        require_harmless_once(templates.CHATML, NAMES, what="p", own=True)
        probe._harmless.clear()  # as in another process, which has the list on disk
        require_harmless_once(templates.CHATML, NAMES, what="p", own=True)
        others = [(templates.MARKED, NAMES, True), (templates.CHATML, {}, True), (templates.CHATML, NAMES, False)]
        for text, names, own in others:
            with pytest.raises(UserError, match="ends its process"):
                require_harmless_once(text, names, what="p", own=own)
    (path,) = tmp_path.rglob(probe.FILE)
    path.write_text('{"sha256": "", "value": 5}')
    probe._harmless.clear()
    require_harmless_once(templates.CHATML, NAMES, what="p", own=True)


def test_what_a_base_says_itself_may_fail_here_and_must_end(monkeypatch):
    require_harmless("{{ raise_exception('rows must have tools') }}", NAMES, what="p", own=True)
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    for text in (LONG_LOOP, "{{ 'a' * 10 ** 13 }}", "{{ 'ab' * 2 ** 20 }}"):
        with pytest.raises(UserError, match=r"^p: the template "):
            require_harmless(text, NAMES, what="p", own=True)
