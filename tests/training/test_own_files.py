"""Files that softprompt wrote itself and something damaged: each reader says so, or does without, in its own way."""

import json
from types import SimpleNamespace

import pytest

from softprompt.answering.output import read_header
from softprompt.distillation.answers import kept_splits
from softprompt.distillation.questions import teachers_questions
from softprompt.errors import UserError
from softprompt.system import cache
from softprompt.training.run import read_run
from softprompt.training.run_folder import is_metrics_file

DAMAGED = {
    "empty": "",
    "cut": '{"kind": "soft',
    "a list": "[1, 2]",
    "a number": "7",
    "nested": "[" * 100_000,
    "nested and closed": "[" * 100_000 + "]" * 100_000,
    "a long number": "1" * 10_000,
    "not a number": "NaN",
    "binary": "\x00\x01",
}


@pytest.fixture(params=DAMAGED)
def content(request):
    return DAMAGED[request.param]


def test_a_run_folder_that_says_nothing(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert read_run(tmp_path) is None


def test_metrics(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert is_metrics_file(tmp_path / "metrics.jsonl") is (content == "")


def test_answers_that_were_begun(tmp_path, content):
    (tmp_path / "partial").write_text(content)
    with pytest.raises(UserError, match="partial: not written by `softprompt generate`"):
        read_header(tmp_path / "partial")


def test_answers_of_a_teacher(tmp_path, content):
    (tmp_path / "teacher.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=r"teacher\.jsonl, row 1: is no answer of a teacher"):
        kept_splits(tmp_path / "teacher.jsonl")


# all that is asked of them where questions are there already
TEXT, BASE = SimpleNamespace(sha256="1"), SimpleNamespace(fingerprint=SimpleNamespace(sha256="2"))


def test_questions_of_a_teacher(tmp_path, content):
    (tmp_path / "questions.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=r"questions\.jsonl.*start anew with `overwrite`"):
        teachers_questions(tmp_path / "questions.jsonl", 3, None, None, BASE, TEXT, None, seed=0, resume=True)


def test_a_small_file_in_the_cache_folder(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.write_cached("small.json", [1])
    assert cache.read_cached("small.json") == [1]
    (kept,) = tmp_path.rglob("small.json")
    assert json.loads(kept.read_text())
    kept.write_text(content)
    assert cache.read_cached("small.json") is None
