"""The architecture as the README tells it: imports follow the data, functions fit on a screen, ruff is content."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "softprompt"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
# a room imports from rooms of earlier groups, and never from the other rooms of its own group
GROUPS = [
    ["errors"],
    ["config", "system"],
    ["data"],
    ["base"],
    ["prompt"],
    ["engine"],
    ["training", "answering"],
    ["analysis", "api"],
    ["cli"],
]


def dotted(path):
    """`engine.loss` for its file."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path):
    """Names of the package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("softprompt."):
            name = node.module.removeprefix("softprompt.")
            rooms = [f"{name}.{alias.name}" for alias in node.names]
            yield from (rooms if (PACKAGE / name.replace(".", "/")).is_dir() else [name])


@pytest.mark.parametrize("path", MODULES + [ROOT / "train.py", ROOT / "generate.py"], ids=str)
def test_functions_fit_on_a_screen(path):
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_run_time_code_imports_run_time_packages_only():
    allowed = {"torch", "transformers", "datasets", "safetensors", "tqdm", "huggingface_hub", "softprompt"}
    late = {("chart.py", "matplotlib")}  # `inspect --plot` does without it
    found = set()
    for path in [*MODULES, ROOT / "train.py", ROOT / "generate.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(path.name, alias.name.split(".")[0]) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((path.name, node.module.split(".")[0]))
    assert {("model.py", "torch"), *late} <= found
    assert {name for _, name in found - late} - set(sys.stdlib_module_names) - allowed == set()


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(arguments):
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
