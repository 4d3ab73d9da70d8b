"""Quick versions of the scripts under scripts/reliability: a few kills, some hundred mutations, and comparisons."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softprompt import SoftPromptEmbedding, save_prompt

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


@pytest.mark.parametrize(
    ("value", "base", "status", "said"),
    [(1.0, "a", 0, ""), (1.0 + 2**-23, "a", 1, "other tensors"), (1.0, "b", 1, 'base is "a" and "b"')],
)
def test_two_prompts_are_compared_to_the_bit(tmp_path, value, base, status, said):
    for name, number, of in (("one", 1.0, "a"), ("other", value, base)):
        weight = torch.full((2, 4), number)
        save_prompt(tmp_path / name, SoftPromptEmbedding.from_tensor(weight), {"base": of})
    done = ran("assert_equal.py", tmp_path / "one", tmp_path / "other")
    assert done.returncode == status and said in done.stdout and done.stdout.count("\n") == status
