"""From command lines to configs, and from exceptions to exit statuses."""

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys

import pytest
from helpers.commands import ROOT, main_of, name_of, run_python

from softprompt.__main__ import COMMANDS
from softprompt.cli.program import MEMORY_ADVICE, run
from softprompt.config import command_line
from softprompt.config.commands import EvaluateConfig, GenerateConfig, InspectConfig, SweepConfig, TrainConfig
from softprompt.config.options import flag
from softprompt.errors import Interrupted, UserError

CONFIGS = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "inspect": InspectConfig,
    "sweep": SweepConfig,
}
# a change here is a decision: other people's scripts use these names
OPTIONS = {
    "train": """
        model data prompt-file run-dir virtual-tokens init init-text init-from allow-other-base max-length
        per-device-train-batch-size gradient-accumulation-steps max-tokens-per-pass num-train-epochs max-steps
        optim learning-rate lr-scheduler-type warmup-steps weight-decay adam-beta1 adam-beta2 max-grad-norm
        logging-steps save-steps eval-steps
        eval-data eval-fraction test-data eval-generate save-last early-stopping-patience
        precision gradient-checkpointing seed device resume overwrite
    """,
    "generate": """
        prompt-file model allow-other-base instruction input instructions output-file per-device-eval-batch-size
        max-length max-new-tokens do-sample top-k top-p temperature repetition-penalty num-return-sequences compare
        seed precision device resume overwrite
    """,
    "evaluate": """
        prompt-file data split max-rows model allow-other-base max-length choices eval-generate max-new-tokens
        per-device-eval-batch-size bootstrap-samples output-file seed precision device overwrite
    """,
    "inspect": "prompt-file model allow-other-base num-nearest run-dir plot overwrite",
    "sweep": """
        model data prompt-file sweep-dir virtual-tokens relative-rates init init-text max-trials max-steps max-length
        per-device-train-batch-size gradient-accumulation-steps eval-data eval-fraction test-data precision seed device
        resume overwrite
    """,
}


def parse(program, *argv):
    return command_line.parse(CONFIGS[program], argv, prog=name_of(program), description="")


@pytest.fixture(autouse=True)
def keep_handlers():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    "argv", [("--max-length", "7"), ("--max_length", "7"), ("--max-length=7",), ("--max_length=7",)]
)
@pytest.mark.parametrize("program", [name for name in CONFIGS if name != "inspect"])
def test_dashes_and_underscores(program, argv):
    assert parse(program, *argv).max_length == 7
    assert parse(program).max_length != 7


def test_underscores_in_values_stay():
    assert parse("generate", "--instruction=--snake_case").instruction == "--snake_case"
    assert parse("generate", "--instruction", "snake_case").instruction == "snake_case"
    assert parse("generate", "--instruction", "--snake_case is what?").instruction == "--snake_case is what?"
    assert parse("train", "--prompt_file", "my_prompt.safetensors").prompt_file == "my_prompt.safetensors"


def test_switches():
    assert parse("generate").do_sample is True
    assert parse("generate", "--no-do-sample").do_sample is False
    assert parse("generate", "--no_do_sample").do_sample is False
    assert parse("train", "--gradient_checkpointing").gradient_checkpointing is True
    assert parse("train").gradient_checkpointing is False


def test_values_have_the_types_of_the_fields():
    config = parse("train", "--virtual-tokens", "12", "--learning-rate", "1e-3", "--warmup-steps", "0.1")
    assert (config.virtual_tokens, config.learning_rate, config.warmup_steps) == (12, 1e-3, 0.1)
    config = parse("evaluate", "--prompt-file", "a", "b", "--choices", "x", "y z", "--max-rows", "5")
    assert (config.prompt_file, config.choices, config.max_rows) == (("a", "b"), ("x", "y z"), 5)
    assert all(parse(program) == config_class() for program, config_class in CONFIGS.items())


@pytest.mark.parametrize("program", CONFIGS)
def test_option_names_are_frozen(program):
    names = [flag(field.name) for field in dataclasses.fields(CONFIGS[program])]
    assert names == ["--" + name for name in OPTIONS[program].split()]


@pytest.mark.parametrize("program", CONFIGS)
def test_help_shows_every_option_with_its_default(program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        parse(program, "--help")
    assert stop.value.code == 0
    blocks = re.split(r"^  (?=--)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    shown = {block.split()[0].rstrip(","): " ".join(block.split()) for block in blocks}
    assert [*shown] == ["--" + name for name in OPTIONS[program].split()]
    for field in dataclasses.fields(CONFIGS[program]):
        text = shown[flag(field.name)]
        default = ("on" if field.default else "off") if isinstance(field.default, bool) else repr(field.default)
        assert field.metadata["help"] in text
        assert f"(default: {default})" in text or (field.default in (None, ()) and "(default: " in text)


WRONG = {
    "train": [
        ("--nonsense", "--nonsense", "3"),
        ("--virtual", "--virtual", "3"),  # no abbreviations: a new option could change their meaning
        ("stray", "stray"),
        ("--virtual-tokens", "--virtual-tokens"),
        ("--virtual-tokens", "--virtual-tokens", "many"),
        ("--virtual-tokens", "--virtual-tokens", "1.5"),
        ("--virtual-tokens", "--virtual-tokens", "0"),
        ("--virtual-tokens", "--virtual_tokens", "-1"),
        ("--init", "--init", "telepathy"),
        ("--precision", "--precision", "fp8"),
        ("--lr-scheduler-type", "--lr-scheduler-type", "polynomial"),
        ("--resume", "--resume=yes"),
        ("--resume", "--resume", "--overwrite"),
        ("--max-length", "--max-length", "0"),
        ("--per-device-train-batch-size", "--per-device-train-batch-size", "0"),
        ("--gradient-accumulation-steps", "--gradient-accumulation-steps", "0"),
        ("--max-tokens-per-pass", "--max-tokens-per-pass", "0"),
        ("--max-tokens-per-pass", "--max-tokens-per-pass", "many"),
        ("--num-train-epochs", "--num-train-epochs", "0"),
        ("--num-train-epochs", "--num-train-epochs", "inf"),
        ("--max-steps", "--max-steps", "0"),
        ("--max-steps", "--max-steps", "-2"),
        ("--learning-rate", "--learning-rate", "0"),
        ("--learning-rate", "--learning-rate", "nan"),
        ("--warmup-steps", "--warmup-steps", "-0.5"),
        ("--weight-decay", "--weight-decay", "-1"),
        ("--weight-decay", "--weight-decay", "0.1"),
        ("--max-grad-norm", "--max-grad-norm", "nan"),
        ("--max-grad-norm", "--max-grad-norm", "-1"),
        ("--adam-beta1", "--adam-beta1", "1"),
        ("--adam-beta2", "--adam-beta2", "-0.1"),
        ("--logging-steps", "--logging-steps", "0"),
        ("--save-steps", "--save-steps", "0"),
        ("--eval-steps", "--eval-steps", "0"),
        ("--eval-fraction", "--eval-fraction", "1"),
        ("--eval-fraction", "--eval-fraction", "0.1", "--eval-data", "x.json"),
        ("--early-stopping-patience", "--early-stopping-patience", "0"),
        ("--eval-generate", "--eval-generate", "-1"),
        ("--seed", "--seed", "-1"),
        ("--seed", "--seed", str(2**63)),
        ("--prompt-file", "--prompt-file", ""),
        ("--prompt-file", "--prompt-file", "."),
    ],
    "generate": [
        ("--nonsense", "--nonsense"),
        ("--max-length", "--max-length", "0"),
        ("--max-new-tokens", "--max-new-tokens", "0"),
        ("--top-k", "--top-k", "-1"),
        ("--top-p", "--top-p", "0"),
        ("--top-p", "--top-p", "1.01"),
        ("--temperature", "--temperature", "0"),
        ("--temperature", "--temperature", "nan"),
        ("--repetition-penalty", "--repetition-penalty", "-1"),
        ("--num-return-sequences", "--num-return-sequences", "0"),
        ("--num-return-sequences", "--num-return-sequences", "2", "--no-do-sample"),
        ("--seed", "--seed", "-1"),
        ("--device", "--device"),
        ("--instructions", "--instructions", "x.jsonl", "--instruction", "a"),
        ("--input", "--instructions", "x.jsonl", "--input", "a"),
        ("--compare", "--instructions", "x.jsonl", "--compare"),
        ("--instructions", "--instructions", ""),
        ("--output-file", "--output-file", "x.jsonl"),
        ("--output-file", "--output-file", ""),
        ("--output-file", "--instructions", "x.jsonl", "--output-file", ""),
        ("--output-file", "--instructions", "x.jsonl", "--output-file", "-"),
        ("--resume", "--resume"),
        ("--overwrite", "--overwrite"),
        ("--resume", "--instructions", "x.jsonl", "--resume", "--overwrite"),
        ("--per-device-eval-batch-size", "--per-device-eval-batch-size", "0"),
    ],
    "evaluate": [
        ("--nonsense", "--nonsense"),
        ("--prompt-file", "--prompt-file"),
        ("--max-rows", "--max-rows", "0"),
        ("--max-length", "--max-length", "0"),
        ("--choices", "--choices", "alone"),
        ("--choices", "--choices", "a", " "),
        ("--choices", "--choices", "a", "b", " a"),
        ("--choices", "--choices", "a", "\udcff"),
        ("--eval-generate", "--eval-generate", "-1"),
        ("--max-new-tokens", "--max-new-tokens", "0"),
        ("--per-device-eval-batch-size", "--per-device-eval-batch-size", "0"),
        ("--bootstrap-samples", "--bootstrap-samples", "0"),
        ("--output-file", "--output-file", ""),
        ("--output-file", "--output-file", "-"),
        ("--seed", "--seed", "-1"),
        ("--precision", "--precision", "fp8"),
    ],
    "inspect": [
        ("--nonsense", "--nonsense"),
        ("--prompt-file", "--prompt-file", ""),
        ("--num-nearest", "--num-nearest", "0"),
        ("--num-nearest", "--num-nearest", "few"),
        ("--plot", "--plot", "curve.pdf"),
        ("--plot", "--plot"),
        ("--overwrite", "--overwrite"),
    ],
    "sweep": [
        ("--nonsense", "--nonsense"),
        ("--virtual-tokens", "--virtual-tokens", "4", "0"),
        ("--virtual-tokens", "--virtual-tokens"),
        ("--relative-rates", "--relative-rates", "0.1", "-1"),
        ("--relative-rates", "--relative-rates", "nan"),
        ("--init", "--init", "text", "telepathy"),
        ("--max-trials", "--max-trials", "0"),
        ("--max-steps", "--max-steps", "0"),
        ("--max-length", "--max-length", "0"),
        ("--per-device-train-batch-size", "--per-device-train-batch-size", "0"),
        ("--gradient-accumulation-steps", "--gradient-accumulation-steps", "0"),
        ("--eval-fraction", "--eval-fraction", "0"),
        ("--eval-fraction", "--eval-fraction", "0.1", "--eval-data", "x.json"),
        ("--seed", "--seed", "-1"),
        ("--resume", "--resume", "--overwrite"),
        ("--prompt-file", "--prompt-file", ""),
    ],
}


@pytest.mark.parametrize(
    ("program", "case"), [(program, case) for program, cases in WRONG.items() for case in cases], ids=str
)
def test_wrong_values_name_the_flag(program, case, capsys):
    named, *argv = case
    with pytest.raises(UserError) as caught:
        parse(program, *argv)
    message = str(caught.value)
    assert named in message and "\n" not in message and "usage" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("program", CONFIGS)
def test_wrong_flag_through_the_command(program, capsys):
    main = main_of(program)
    assert run(lambda: main(["--nonsense"]), prog=name_of(program)) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"{name_of(program)}: error: ") and "--nonsense" in err and "--help" in err


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
        (MemoryError(), 2, f"error: out of memory; {MEMORY_ADVICE}"),
        (RuntimeError("CUDA out of memory. Tried"), 2, f"error: out of memory; {MEMORY_ADVICE}"),
        (
            RuntimeError("[enforce fail] can't allocate memory"),
            2,
            f"error: out of memory; {MEMORY_ADVICE}",
        ),
        (Interrupted(signal.SIGINT, "saved here"), 130, "SIGINT: saved here"),
        (Interrupted(signal.SIGTERM, "saved here"), 143, "SIGTERM: saved here"),
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


@pytest.mark.parametrize("argv", [["--help"], ["--nonsense"]], ids=str)
@pytest.mark.parametrize("program", CONFIGS)
def test_help_and_complaints_need_no_torch(program, argv, tmp_path):
    packaged = program in COMMANDS
    entry = f"from {'softprompt.__main__' if packaged else program} import main"
    words = [program, *argv] if packaged else argv
    code = (
        "import sys\n"
        f"{entry}\n"
        "from softprompt.errors import UserError\n"
        f"try: main({words})\n"
        "except (SystemExit, UserError) as stop: print(type(stop).__name__)\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    kind = "SystemExit" if argv == ["--help"] else "UserError"
    assert done.stdout.splitlines()[-2:] == [kind, "[]"]
