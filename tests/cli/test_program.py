"""A command as a program: exit statuses, one line of complaint, options as flags, and what is to be typed next."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys

import pytest
from helpers.commands import ROOT, run_command, run_python
from helpers.rows import ROWS

from softprompt.cli import program
from softprompt.cli.program import run, typed
from softprompt.cli.terminal import REDIRECTED_WIDTH, screen_width
from softprompt.cli.text import command_line, three_digits
from softprompt.config.options import flags_in
from softprompt.errors import Interrupted, UserError

MEMORY_LINE = (
    "error: out of memory; try --gradient-checkpointing, a smaller --per-device-train-batch-size or --max-length"
)


@pytest.fixture(autouse=True)
def keep_handlers():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


# exit statuses


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--a: wrong\nin two  lines"), 2, "error: --a: wrong in two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "error: /x/y: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), 2, "error: Permission denied"),
        (OSError("said\nso"), 2, "error: said so"),
        (UserError("`max_length` 0: must be at least 1"), 2, "error: --max-length 0: must be at least 1"),
        (MemoryError(), 2, MEMORY_LINE),
        (RuntimeError("CUDA out of memory. Tried"), 2, MEMORY_LINE),
        (RuntimeError("[enforce fail] can't allocate memory"), 2, MEMORY_LINE),
        (Interrupted(signal.SIGINT, "saved here"), 130, "SIGINT: saved here"),
        (Interrupted(signal.SIGTERM, "go on with `resume`"), 143, "SIGTERM: go on with --resume"),
    ],
)
def test_exit_statuses(error, status, line, capsys):
    assert run(raising(error), prog="x.py") == status
    assert capsys.readouterr() == ("", f"x.py: {line}\n")


def test_exit_status_of_success(capsys):
    assert run(lambda: print("done"), prog="x.py") == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("error", [KeyError("ours"), RuntimeError("shape mismatch"), ValueError("ours")], ids=repr)
def test_bugs_are_not_hidden(error):
    with pytest.raises(type(error)):
        run(raising(error), prog="x.py")


def test_a_bug_is_a_traceback_and_status_1(tmp_path):
    code = "import sys; from softprompt.cli.program import run; sys.exit(run(lambda: {}['gone'], prog='x.py'))"
    done = run_python(code, tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError: 'gone'" in done.stderr


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(signum, status, capsys):
    assert run(lambda: os.kill(os.getpid(), signum), prog="x.py") == status
    assert capsys.readouterr().err == f"x.py: {signal.Signals(signum).name}: stopped\n"


def test_reader_that_goes_away(tmp_path):
    code = (
        "import sys; from softprompt.cli.program import run\n"
        "def main():\n    for _ in range(100_000): print('line')\n"
        "sys.exit(run(main, prog='x.py'))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **streams)
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 128 + signal.SIGPIPE


# what is typed next


@pytest.mark.parametrize(
    ("started_as", "command", "wanted"),
    [
        ("/usr/bin/softprompt", "generate", "softprompt generate"),
        ("softprompt", "train", "softprompt train"),
        ("/home/me/softprompt/softprompt/__main__.py", "generate", "python -m softprompt generate"),
        ("train.py", "generate", "python generate.py"),
        ("train.py", "train", "python train.py"),
        ("./generate.py", "train", "python train.py"),
        ("../code/train.py", "generate", "python ../code/generate.py"),
        ("/my code/train.py", "generate", "python '/my code/generate.py'"),
        ("train.py", "evaluate", "python -m softprompt evaluate"),
        ("/usr/bin/python", "generate", "softprompt generate"),
    ],
)
def test_what_to_type_follows_how_the_process_was_started(started_as, command, wanted, monkeypatch):
    assert typed(command, started_as) == wanted
    monkeypatch.setattr(sys, "argv", [started_as, "--some", "words"])
    assert typed(command) == wanted


def test_every_door_is_there():
    assert all((ROOT / door).is_file() for door in program.DOORS.values())


def test_a_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    words = command_line("train", {"init_text": "it's a text", "max_steps": 3})
    assert words == """python train.py --init-text 'it'"'"'s a text' --max-steps 3"""
    assert command_line("train", {}) == "python train.py"


def test_training_ends_with_the_command_that_uses_the_prompt(capfd, tmp_path, monkeypatch, model_folder, rows_file):
    monkeypatch.chdir(tmp_path)
    for started_as, door in (("/bin/softprompt", "softprompt generate"), ("train.py", "python generate.py")):
        monkeypatch.setattr(sys, "argv", [started_as])
        words = ["--model", model_folder, "--data", rows_file, "--max-steps", 1, "--device", "cpu", "--overwrite"]
        result = run_command(capfd, "train", *words, "--prompt-file", "my prompt.safetensors", "--virtual-tokens", 2)
        assert result.status == 0, result.err
        assert f"try: {door} --prompt-file 'my prompt.safetensors'\n" in result.out


# options as flags


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("`max_length` 3", "--max-length 3"),
        ("`data` a_b.csv: try `eval_data` or `test_data`", "--data a_b.csv: try --eval-data or --test-data"),
        ("`adam_beta1`", "--adam-beta1"),
        ("`weights_only` of `torch.load`, `weights`", "`weights_only` of `torch.load`, `weights`"),  # no options
        ("no option: max_length, `Max`, `a b`, ``, `7`, `", "no option: max_length, `Max`, `a b`, ``, `7`, `"),
    ],
)
def test_options_in_backticks_are_spelled_as_flags(message, wanted):
    assert flags_in(message) == wanted


def test_backticks_of_the_rows_stay(capfd, tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": "What does `print` do?", "input": "", "output": "`print` prints"}]
    (tmp_path / "code.json").write_text(json.dumps(rows + ROWS))
    words = ["--model", model_folder, "--data", "code.json", "--eval-fraction", 0, "--device", "cpu"]
    result = run_command(capfd, "train", *words, "--virtual-tokens", 2, "--max-steps", 1, "--init", "vocab")
    assert result.status == 0, result.err
    assert "    Human: What does `print` do?\n" in result.out and "    `print` prints" in result.out
    assert "--data code.json: 11 rows" in result.out and "--print" not in result.out


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.04123, "0.0412"), (1.2345, "1.23"), (17.349, "17.3"), (123.4, "123"), (2.0, "2.00"), (5e-7, "5.00e-07")],
)
def test_losses_have_three_significant_digits(value, wanted):
    assert three_digits(value) == wanted


@pytest.mark.parametrize(("columns", "wanted"), [(80, 80), (120, 120), (20, 60), (500, 160)])
def test_tables_are_as_wide_as_the_terminal(columns, wanted, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert screen_width() == REDIRECTED_WIDTH == 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert screen_width() == wanted


# the process


def test_garbage_is_collected_from_settling_on(tmp_path):
    """And what was there before is never looked at again."""
    code = (
        "import gc, sys\n"
        "from softprompt.cli.program import run, settle\n"
        "def main():\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 0)\n"
        "    settle()\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
        "    import datasets, transformers\n"
        "    print(datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled())\n"
        "    transformers.logging.get_logger('transformers.x').warning('talk')\n"
        "    datasets.logging.get_logger('datasets.x').error('talk')\n"
        "sys.exit(run(main, prog='x.py'))"
    )
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["False False", "True True", "True False"]


def test_collection_is_on_again_after_a_command_that_never_settled():
    seen = []
    assert run(lambda: seen.append(gc.isenabled()), prog="x.py") == 0
    assert seen == [False] and gc.isenabled()
    assert run(raising(UserError("no")), prog="x.py") == 2 and gc.isenabled()
    with pytest.raises(KeyError):
        run(raising(KeyError("ours")), prog="x.py")
    assert gc.isenabled()


# the package's own entry


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]], ids=str)
def test_the_package_lists_its_commands(words, capfd, tmp_path):
    done = subprocess.run([sys.executable, "-m", "softprompt", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train,generate,chat,evaluate,inspect,sweep" in done.stdout


def test_a_command_that_is_not_there(capfd):
    result = run_command(capfd, "trian")
    assert result.status == 2
    assert result.err.startswith("softprompt: error: trian: no such command; there are train, ")
