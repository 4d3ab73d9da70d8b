"""The architecture as the README tells it: imports follow the data, functions fit on a screen, ruff is content."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "softprompt"
# a module imports only from modules to its left
ORDER = [
    "errors",
    "options",
    "config",
    "command",
    "files",
    "hub",
    "builtin",
    "encoding",
    "provenance",
    "data",
    "batching",
    "packing",
    "loss",
    "prompt",
    "fingerprint",
    "prompt_file",
    "base",
    "initialise",
    "attention",
    "flex_attention",
    "interface",
    "bloom",
    "engine",
    "cache",
    "thin",
    "decoding",
    "model",
    "passes",
    "generation",
    "answering",
    "metrics",
    "evaluation",
    "choices",
    "checkpoint",
    "progress",
    "schedule",
    "soap",
    "optimizer",
    "selection",
    "trainer",
    "report",
    "splits",
    "search",
    "sweep",
    "answer_file",
    "answers",
    "sides",
    "scoreboard",
    "comparison",
    "columns",
    "curve",
    "plot",
    "facts",
    "inspection",
    "__main__",
]


def imported(path):
    """Names of the package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("softprompt."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "softprompt":
            yield from (alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists())


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_to_the_left_only(module):
    allowed = ORDER[: ORDER.index(module)]
    assert [name for name in imported(PACKAGE / f"{module}.py") if name not in allowed] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")) + [ROOT / "train.py", ROOT / "generate.py"], ids=str)
def test_functions_fit_on_a_screen(path):
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_run_time_code_imports_run_time_packages_only():
    allowed = {"torch", "transformers", "datasets", "safetensors", "tqdm", "huggingface_hub", "softprompt"}
    late = {("plot.py", "matplotlib")}  # `inspect --plot` does without it
    found = set()
    for path in [*PACKAGE.glob("*.py"), ROOT / "train.py", ROOT / "generate.py"]:
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
