"""The rules of the house: imports follow the data, functions fit on a screen, only commands print, ruff is content."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import run_python

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "softprompt"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
DOORS = [ROOT / "train.py", ROOT / "generate.py"]
# a room imports from rooms of earlier groups, and never from the other rooms of its own group
GROUPS = [
    ["errors"],
    ["config", "system"],
    ["data"],
    ["tokens"],
    ["base"],
    ["prompt"],
    ["packs"],
    ["engine"],
    ["optim"],
    ["training", "answering", "exporting"],
    ["analysis", "distillation"],
    ["api"],
    ["cli"],
]
RANKS = {room: rank for rank, group in enumerate(GROUPS) for room in group}
# what a command line is read with, and refused by, before PyTorch is imported
LIGHT = ["errors", "config.command_line", "config.commands", "config.options"]
LIGHT += ["system.cache", "system.files", "system.foreign", "system.locks", "system.process", "system.sources"]
LIGHT += ["__main__"]
LIGHT += [f"cli.{name}" for name in ("train", "generate", "chat", "evaluate", "inspect", "sweep", "program", "columns")]
LIGHT += ["cli.export", "cli.import_adapter"]
HEAVY = {"torch", "transformers", "datasets"}
FEW, MANY = 13, 50  # most modules of a folder, fewest of the package: fewer were found by a test that looks nowhere


def dotted(path):
    """`engine.loss` for its file."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name):
    """`engine` for `engine.loss`."""
    return name.partition(".")[0]


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text("utf-8"))


def statements(path, *, top_only):
    """Every statement of a file; with `top_only` what is run when the module is imported."""
    pending = list(tree_of(path).body)
    while pending:
        node = pending.pop()
        yield node
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top_only and (inside or typing_only)):
            pending.extend(ast.iter_child_nodes(node))


def imported(path, *, top_only=False):
    """Dotted names of the package's modules that a file imports; the package itself is `__init__`."""
    names = {dotted(module) for module in MODULES} | set(RANKS)
    for node in statements(path, top_only=top_only):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, member in found:
            if room_of(module) != "softprompt":
                continue
            name = module.removeprefix("softprompt").removeprefix(".")
            whole = ".".join(filter(None, [name, member]))
            yield whole if whole in names else name or "__init__"


def edges(*, top_only=False):
    """(importing module, imported module) of the whole package."""
    assert len(MODULES) > MANY
    found = {(dotted(path), name) for path in MODULES for name in imported(path, top_only=top_only)}
    assert ("engine.model", "engine.decoding") in found and ("training.trainer", "engine.model") in found
    assert len(found) > 2 * MANY
    return found


def test_the_rooms_are_those_of_the_plan():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert folders | files == set(RANKS) and len(folders) > 10


def test_rooms_import_from_earlier_groups_only():
    looked_at = 0
    for module, name in sorted(edges()):
        ours, theirs = room_of(module), room_of(name)
        if "__main__" in (ours, theirs) or ours == theirs:
            continue
        looked_at += 1
        assert theirs in RANKS, f"{module} imports {name}, which is no room"
        assert RANKS[theirs] < RANKS[ours], f"{module} imports {name}, whose room is no earlier one"
    assert looked_at > 2 * MANY


def test_the_package_and_its_doors_import_no_room_but_errors_config_and_cli():
    """`__init__` loads by name on first use; what it names is looked at in `test_every_public_name_is_there`."""
    for path in (PACKAGE / "__init__.py", PACKAGE / "__main__.py", *DOORS):
        rooms = {room_of(name) for name in imported(path)}
        assert rooms <= {"errors", "config", "cli", "__init__", "__main__"}, path
    assert not list(imported(PACKAGE / "__init__.py"))


def test_every_public_name_is_there():
    import softprompt

    assert len(softprompt.__all__) > 5 and set(softprompt.__all__) <= set(dir(softprompt))
    for name in softprompt.__all__:
        assert getattr(softprompt, name).__name__ == name


def circle_in(graph):
    """A circle of a graph, as the list of its nodes; empty if there is none."""
    done = set()

    def walk(node, way):
        if node in way:
            return way[way.index(node) :]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := walk(other, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_no_imports_go_in_a_circle():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"] and not circle_in({"a": {"b"}, "b": {"c"}})
    graph, inside = {}, 0
    for module, name in edges(top_only=True):
        graph.setdefault(module, set()).add(name)
        inside += room_of(module) == room_of(name)
    assert inside > MANY // 2 and len(graph) > MANY // 2
    assert circle_in(graph) == []


@pytest.mark.parametrize("name", LIGHT)
def test_a_command_line_is_read_without_pytorch(name, tmp_path):
    assert (PACKAGE / (name.replace(".", "/") + ".py")).is_file()
    code = f"import sys, softprompt.{name}\nassert 'softprompt.{name}' in sys.modules\nprint(*sorted(sys.modules))"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert len(modules) > 20 and "softprompt" in modules
    assert modules & HEAVY == set()


def test_the_light_modules_are_all_of_errors_config_and_system():
    early = {dotted(path) for path in MODULES if room_of(dotted(path)) in ("errors", "config", "system")}
    assert early <= set(LIGHT) and len(early) >= 7
    from softprompt.__main__ import COMMANDS

    assert {f"cli.{name}" for name in COMMANDS.values()} <= set(LIGHT)


def prints(path):
    """Lines on which a file calls `print` or writes to the process's streams."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "builtins.print") or called.startswith(("sys.stdout.write", "sys.stderr.write")):
                yield node.lineno


def test_only_commands_print():
    printing = {dotted(path): list(prints(path)) for path in [*MODULES, PACKAGE / "__init__.py"]}
    assert len(printing) > MANY
    where = {name for name, lines in printing.items() if lines}
    assert {"cli.generate", "cli.program", "__main__"} <= where  # or `prints` sees nothing
    assert {name for name in where if room_of(name) not in ("cli", "__main__")} == set()


def test_json_of_files_is_decoded_where_every_fault_of_it_is_known():
    """`json.loads` raises `RecursionError` besides `ValueError`, which is easily forgotten; `decode_json` does not."""
    own = {"softprompt/system/foreign.py", "softprompt/tokens/probe.py"}  # a child process that reads its parent
    users = {str(path.relative_to(ROOT)) for path in MODULES if "json.loads(" in path.read_text("utf-8")}
    rows = {path for path in users if path.startswith("softprompt/data/")}  # rows have a reader of their own
    assert users - rows - own == set()


def test_the_init_of_a_room_holds_a_docstring_and_no_code():
    files = sorted(PACKAGE.glob("*/**/__init__.py"))
    assert len(files) == len(set(RANKS) - {"errors", "api"})
    for path in files:
        (statement,) = tree_of(path).body
        assert isinstance(statement, ast.Expr) and isinstance(statement.value.value, str), path
        assert ast.get_docstring(tree_of(path)).strip().endswith("."), path


def test_no_folder_has_more_modules_than_the_eye_takes_in():
    folders = {}
    for path in MODULES:
        folders.setdefault(path.parent, []).append(path.name)
    assert {folder.name for folder in folders} == {PACKAGE.name, *RANKS} - {"errors", "api"}
    assert {folder.name: names for folder, names in folders.items() if len(names) > FEW} == {}


def functions():
    """Every function of the package and its doors, with its place."""
    for path in [*MODULES, PACKAGE / "__init__.py", *DOORS]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                yield f"{path.name}: {node.name}", node.end_lineno - first + 1


def test_functions_fit_on_a_screen():
    lines = list(functions())
    assert len(lines) > 6 * MANY and max(count for _, count in lines) > 30
    assert [name for name, count in lines if count >= 60] == []


def test_the_engine_rests_on_errors_tokens_prompt_and_packs():
    """Of the base it takes one function on any embedding, and nothing that loads or names one."""
    names = {name for module, name in edges() if room_of(module) == "engine"} - {"base.vocabulary"}
    rooms = {room_of(name) for name in names}
    assert {"errors", "tokens", "packs"} <= rooms <= {"errors", "tokens", "prompt", "packs", "engine"}


def test_packs_rest_on_errors_and_tokens():
    rooms = {room_of(name) for module, name in edges() if room_of(module) == "packs"}
    assert rooms == {"errors", "tokens", "packs"}


@pytest.mark.parametrize(("room", "other"), [("training", "answering"), ("answering", "training")])
def test_training_and_answering_do_not_know_each_other(room, other):
    rooms = {room_of(name) for module, name in edges() if room_of(module) == room}
    assert "engine" in rooms and other not in rooms


def test_run_time_code_imports_run_time_packages_only():
    allowed = {"torch", "transformers", "datasets", "safetensors", "tqdm", "huggingface_hub", "softprompt"}
    late = {("chart.py", "matplotlib")}  # `inspect --plot` does without it
    found = set()
    for path in [*MODULES, *DOORS]:
        for node in ast.walk(tree_of(path)):
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
