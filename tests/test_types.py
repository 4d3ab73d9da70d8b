"""Annotations are checked, and not only read; and what stands outside the package still fits it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = ("benchmarks/speed", "benchmarks/quality", "scripts", "scripts/reliability", "examples")
# scripts are annotated as far as it helps a reader; these codes would only ask for more annotations
UNASKED = ("arg-type", "assignment", "dict-item", "import-not-found", "index", "misc", "operator", "return-value")
UNASKED += ("union-attr", "unused-ignore", "var-annotated")
NEEDS_MYPY = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed; it comes with [dev]"
)


@NEEDS_MYPY
def test_mypy_is_content():
    """As `pyproject.toml` configures it; its cache in the repository makes a second run short."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@NEEDS_MYPY
def test_benchmarks_scripts_and_examples_use_what_is_there():
    """Names that the package no longer has, and calls that its functions no longer take."""
    files = [str(file.relative_to(ROOT)) for folder in OUTSIDE for file in sorted((ROOT / folder).glob("*.py"))]
    ignored = [word for code in UNASKED for word in ("--disable-error-code", code)]
    paths = os.pathsep.join(str(ROOT / folder) for folder in OUTSIDE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *ignored, "--no-warn-unused-ignores", *files],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
