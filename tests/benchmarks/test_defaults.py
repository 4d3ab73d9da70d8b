"""Which tasks `defaults.py` compares on: those for tuning, unless others are named."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import defaults  # noqa: E402
from study_tasks import REPORTED, TUNING  # noqa: E402


def tried(monkeypatch, *words):
    """The tasks that are trained on; every loss is 0.5."""
    names = []
    threads = str(torch.get_num_threads())  # main() sets them for the whole process
    monkeypatch.setattr(sys, "argv", ["defaults.py", "soap", "--seeds", "0", "--threads", threads, *words])
    monkeypatch.setattr(defaults, "train", lambda base, task, *rest: names.append(task) or [0.5])
    defaults.main()
    return names


def test_nothing_that_is_reported_is_read_unless_it_is_named(monkeypatch, capsys):
    assert tried(monkeypatch) == list(TUNING["bloom"])
    assert not set(TUNING["bloom"]) & set(REPORTED["bloom"])
    assert tried(monkeypatch, "--tasks", "topic", "kind") == ["topic", "kind"]
    assert "1.000   0.5000 0.5000" in capsys.readouterr().out


def test_a_task_that_is_not_there_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        tried(monkeypatch, "--tasks", "nosuch")
    assert stop.value.code == 2 and "--tasks" in capsys.readouterr().err
