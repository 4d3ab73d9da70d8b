"""`softprompt chat`: a line in, an answer out, with one base that is loaded once, until the input ends."""

import io
import sys

import pytest
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.prompts import save_for

from softprompt.prompt import fit

WORDS = ["--device", "cpu", "--precision", "fp32", "--max-new-tokens", 6]
LONG = "long " * 40  # with the template more than the 128 tokens of the random BLOOM's byte tokenizer


@pytest.fixture
def work(tmp_path, monkeypatch, model_folder):
    """The folder that the commands run in, with a prompt for the random BLOOM."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    save_for(model_folder, "prompt.safetensors")
    return tmp_path / "work"


@pytest.fixture
def chat(capfd, work, monkeypatch):
    """Send bytes to standard input and read what comes; nothing is written to disk."""

    def run(sent, *words, errors="strict", stream=io.TextIOWrapper):
        content = sent.encode("utf-8") if isinstance(sent, str) else sent
        monkeypatch.setattr(sys, "stdin", stream(io.BytesIO(content), "utf-8", errors))
        before = snapshot(work)
        result = run_command(capfd, "chat", *words)
        assert snapshot(work) == before and len(before) > 0
        return result

    return run


@pytest.fixture
def loads(monkeypatch):
    """The names of the bases that are loaded."""
    names, real = [], fit.load_base

    def counted(name, **settings):
        names.append(name)
        return real(name, **settings)

    monkeypatch.setattr(fit, "load_base", counted)
    return names


def answer(capfd, question, *words):
    """What `generate` answers to one question."""
    result = run_command(capfd, "generate", question, *words)
    assert result.status == 0, result.err
    return result.out


def test_every_line_is_answered_as_a_question_of_its_own(chat, capfd, loads, model_folder):
    questions = ["Say red", "Say blue, 您好", "Say red"]
    wanted = [answer(capfd, question, *WORDS, "--no-do-sample") for question in questions]
    assert wanted[0] != wanted[1]
    loads.clear()
    result = chat("".join(f"{question}\n" for question in questions), *WORDS, "--no-do-sample")
    assert (result.status, result.err) == (0, "")
    assert result.out == "".join(wanted)
    assert loads == [str(model_folder)]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "  \n\n \t\n", ""], ids=repr)
def test_empty_lines_are_skipped_and_the_last_may_end_without_a_break(chat, capfd, ending):
    wanted = answer(capfd, "Say red", *WORDS, "--no-do-sample")
    result = chat(f"\n   \n\n  Say red{ending}", *WORDS, "--no-do-sample")
    assert (result.status, result.out, result.err) == (0, wanted, "")


@pytest.mark.parametrize("sent", ["", "\n \n"], ids=repr)
def test_no_question_at_all(chat, sent):
    result = chat(sent, *WORDS, "--no-do-sample")
    assert (result.status, result.out, result.err) == (0, "", "")


def test_a_line_that_is_too_long_does_not_end_the_talk(chat, capfd, loads):
    words = [*WORDS[:4], "--no-do-sample"]  # no --max-new-tokens: questions have 128 tokens with their answers
    wanted = [answer(capfd, question, *words) for question in ("Say red", "Say blue")]
    loads.clear()
    result = chat(f"Say red\n{LONG}\nSay blue\n", *words)
    assert result.status == 0 and result.out == "".join(wanted) and len(loads) == 1
    (line,) = result.err.splitlines()
    assert line.startswith("softprompt chat: --max-length 128: the question alone has ")
    assert "--max-new-tokens" in line and "`" not in line


def test_a_line_in_another_encoding(chat, capfd):
    """In the C locale Python hands such bytes on; elsewhere it cannot read on behind them."""
    wanted = answer(capfd, "Say red", *WORDS, "--no-do-sample")
    result = chat(b"\xff\xfe\nSay red\n", *WORDS, "--no-do-sample", errors="surrogateescape")
    assert (result.status, result.out) == (0, wanted)
    assert result.err == "softprompt chat: the line is not UTF-8 text\n"
    assert_one_line(chat(b"\xff\xfe\nSay red\n", *WORDS, "--no-do-sample"), "standard input", "UTF-8")


def test_the_seed_that_is_printed_repeats_the_talk(chat):
    words = [*WORDS, "--temperature", 5.0]
    first = chat("Say red\nSay red\n", *words)
    (line,) = first.err.splitlines()
    assert line.startswith("seed: ")
    again = chat("Say red\nSay red\n", *words, "--seed", line.removeprefix("seed: "))
    assert again == first
    one, two = chat("Say red\n", *words, "--seed", 1).out, chat("Say red\n", *words, "--seed", 2).out
    assert one != two  # a line has a seed of its own, which is one more than that of the line before it
    assert chat("Say red\nSay red\n", *words, "--seed", 1).out == one + two
    assert chat("Say red\nSay red\n", *words, "--seed", 2**63 - 1).status == 0


def test_temperature_0_is_greedy(chat):
    greedy = chat("Say red\nSay blue\n", *WORDS, "--no-do-sample")
    assert greedy.status == 0 and greedy.out
    for words in (["--temperature", 0], ["--do_sample", "False"]):
        assert chat("Say red\nSay blue\n", *WORDS, *words) == greedy  # and no seed is printed


def test_several_answers_to_a_line(chat):
    result = chat("Say red\n", *WORDS, "--num-return-sequences", 2, "--temperature", 5.0, "--seed", 3)
    assert result.status == 0 and len(result.out.split("\n\n")) >= 2


class Keyboard(io.TextIOWrapper):
    """Standard input where somebody types."""

    def isatty(self):
        return True


def test_at_a_terminal_it_asks(chat):
    result = chat("Say red\n\n", *WORDS, "--no-do-sample", stream=Keyboard)
    assert result.status == 0 and result.err.startswith("Type a question and Enter; Ctrl-D ends.\n> ")
    assert result.err.count("> ") == 3


def test_bad_input_is_one_line(chat, work, model_folder):
    assert_one_line(chat("Say red\n", "gone.safetensors"), "gone.safetensors", "no such prompt file")
    assert_one_line(chat("Say red\n", "--prompt-file", "prompt.safetensors", "--model", "./gone"), "--model ./gone")
    assert_one_line(chat("Say red\n", "--top-p", 0), "--top-p")
    save_for(model_folder, work / "foreign.safetensors", base_sha256="0" * 64, base_sketch="{}")
    assert_one_line(chat("Say red\n", "foreign.safetensors"), "another base", "--allow-other-base")
    result = chat("Say red\n", "foreign.safetensors", "--allow-other-base", *WORDS, "--no-do-sample")
    assert result.status == 0 and result.err.startswith("note: another base") and result.out


def test_without_standard_input(chat, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    result = run_command(capfd, "chat", *WORDS, "--no-do-sample")
    assert_one_line(result, "no standard input")
