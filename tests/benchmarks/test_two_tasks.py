"""The README's table: at least 80 % of held-out answers are right with a prompt, at most 30 % without."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.heavy
def test_one_base_with_two_prompts_does_two_tasks():
    command = [sys.executable, str(ROOT / "benchmarks" / "quality" / "two_tasks.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held_out = done.stdout.split("held-out rows:")[1].split("questions never")[0]
    rows = {
        name: list(map(float, figures.split()))
        for name, figures in re.findall(r"^([a-z ]+ prompt) +(\d.*)$", held_out, re.M)
    }
    assert max(rows["no prompt"][:2]) <= 30 and max(rows["random prompt"][:2]) <= 30
    assert rows["polite prompt"][0] >= 80 and rows["steps prompt"][1] >= 80
    assert rows["polite prompt"][1] <= 30 and rows["steps prompt"][0] <= 30
