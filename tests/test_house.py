"""The architecture as the README tells it: imports follow the data, functions fit on a screen, ruff is content."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "softprompt"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
# a module imports only from modules to its left
ORDER = [
    "errors",
    "config.options",
    "config.commands",
    "config.command_line",
    "system.files",
    "system.sources",
    "system.builtin",
    "data.encoding",
    "data.row_hashes",
    "data.reading",
    "engine.padding",
    "engine.batches",
    "engine.loss",
    "prompt.embedding",
    "base.fingerprint",
    "prompt.file",
    "base.loading",
    "prompt.start",
    "engine.attention",
    "engine.flex_attention",
    "engine.families",
    "engine.bloom",
    "engine.forward",
    "engine.cache",
    "engine.cpu_kernels",
    "engine.decoding",
    "engine.model",
    "engine.passes",
    "answering.batch",
    "answering.greedy",
    "analysis.statistics",
    "engine.scores",
    "analysis.choices",
    "training.checkpoint",
    "training.run_log",
    "training.schedule",
    "training.soap",
    "training.optimizer",
    "training.selection",
    "training.trainer",
    "cli.text",
    "training.rows",
    "training.sweep",
    "cli.sweep",
    "answering.output",
    "answering.job",
    "analysis.comparison",
    "analysis.table",
    "cli.evaluate",
    "cli.columns",
    "analysis.curve",
    "analysis.chart",
    "analysis.vectors",
    "cli.inspect",
    "__main__",
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


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(dotted(path) for path in MODULES)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_to_the_left_only(module):
    allowed = ORDER[: ORDER.index(module)]
    assert [name for name in imported(PACKAGE / f"{module.replace('.', '/')}.py") if name not in allowed] == []


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
