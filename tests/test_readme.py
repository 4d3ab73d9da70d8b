"""What the README shows is true: its Python block runs, its commands are the ones that CI runs, its files are there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_python_block_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "softprompt").symlink_to(ROOT / "softprompt")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "torch.Size([12, 192])"


def test_ci_runs_the_readme_commands():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    for command in (
        "install -r requirements.txt",
        "train.py --virtual-tokens 12",
        "pip install -r requirements-dev.txt && python -m pytest",
    ):
        assert command in README and command in script


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"@[A-Z]+@", README) == []


def test_named_files_exist():
    names = set(re.findall(r"`((?:softprompt|benchmarks|scripts|tests)/[\w./-]+)`", README))
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []
