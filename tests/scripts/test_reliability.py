"""Quick versions of the scripts under scripts/reliability: a few kills, some hundred mutations, and comparisons."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softprompt import SoftPromptEmbedding, save_prompt
from softprompt.training.state_file import state_bytes

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "reliability"


def ran(name, *words):
    return subprocess.run([sys.executable, SCRIPTS / name, *map(str, words)], capture_output=True, text=True)


def test_runs_that_are_killed_and_resumed_give_the_same_bits():
    done = ran("kill_sweep.py", "--kills", 4, "--seed", 5, "--recipe", "fp32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "different" in done.stdout and done.stdout.count("\n") == 4  # the heading, the recipe, the sum, the time


def test_what_is_damaged_or_hostile_is_refused_in_one_line():
    done = ran("fuzz.py", "--prompts", 600, "--states", 300, "--folders", 6, "--metadata", 4, "--seed", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("prompts", "states", "folders", "metadata"):
        assert re.search(rf"^{what}: .*\d refused", done.stdout, re.MULTILINE), done.stdout


def test_command_lines_that_cannot_be_taken_are_refused_in_one_line():
    done = ran("bad_input.py", "--every", 12, "--processes", 1)
    assert done.returncode == 0 and re.search(r"^4\d command lines, 0 of them wrong", done.stdout), done.stdout


@pytest.fixture
def difference(monkeypatch):
    """The function of assert_equal.py, in this process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("assert_equal").difference


@pytest.mark.parametrize(
    ("value", "base", "said"),
    [
        (1.0, "a", ""),
        (1.0 + 2**-23, "a", "the prompt has other numbers, at most 1.19e-07 apart"),
        (1.0, "b", 'base is "a" and "b"'),
    ],
)
def test_two_prompts_are_compared_to_the_bit(tmp_path, difference, value, base, said):
    for name, number, of in (("one", 1.0, "a"), ("other", value, base)):
        weight = torch.full((2, 4), number)
        save_prompt(tmp_path / name, SoftPromptEmbedding.from_tensor(weight), {"base": of})
    found = difference(tmp_path / "one", tmp_path / "other")
    assert found.endswith(said) and bool(found) == bool(said)


@pytest.mark.parametrize(
    ("value", "content", "said"),
    [
        (1.0, {"step": 4, "prompt_file": "b"}, ""),
        (1.0 + 2**-20, {"step": 4, "prompt_file": "a"}, "weight has other numbers, at most 9.54e-07 apart"),
        (1.0, {"step": 5, "prompt_file": "a"}, "step is 4 and 5"),
    ],
)
def test_two_states_are_compared_to_the_bit_and_where_files_lie_is_not(tmp_path, difference, value, content, said):
    for name, number, facts in (("one", 1.0, {"step": 4, "prompt_file": "a"}), ("other", value, content)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        (tmp_path / name / "state.safetensors").write_bytes(state_bytes(facts, {"weight": torch.full((2, 3), number)}))
    for names in (("one", "other"), ("one/state.safetensors", "other/state.safetensors")):
        found = difference(*(tmp_path / name for name in names))
        assert found.endswith(said) and bool(found) == bool(said)


def test_a_difference_beyond_the_tolerance_is_found(tmp_path, difference):
    reference = SCRIPTS.parents[1] / "tests" / "reference"
    other = shutil.copytree(reference, tmp_path / "other")
    text = (reference / "metrics.jsonl").read_text()
    loss = next(json.loads(line)["loss"] for line in text.splitlines() if '"loss"' in line)
    for factor, said in ((1.0, ""), (1.0002, ""), (1.01, "line 3: loss is ")):
        (other / "metrics.jsonl").write_text(text.replace(str(loss), str(loss * factor)))
        found = difference(reference, other, 0.001)
        assert said in found and bool(found) == bool(said)


def test_a_short_run_gives_what_is_stored():
    done = ran("assert_equal.py", "--reference")
    assert done.returncode == 0, done.stdout + done.stderr
