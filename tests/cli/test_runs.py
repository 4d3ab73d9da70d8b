"""Runs as users have them: two at once, on odd terminals and disks, hung up, in a thread, and cut short anywhere."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.commands import ROOT, assert_one_line, run_command, run_python, snapshot, start_command
from helpers.rows import ROWS

import softprompt
from softprompt import load_prompt
from softprompt.system.locks import hold_lock
from softprompt.training import trainer as trainer_module
from softprompt.training.run_log import RunLog

pytestmark = pytest.mark.usefixtures("work")


@pytest.fixture
def words(model_folder, rows_file):
    """A short run."""
    words = ["--model", model_folder, "--data", rows_file, "--virtual-tokens", 3, "--max-steps", 6, "--save-steps", 2]
    return [*words, "--gradient-accumulation-steps", 2, "--precision", "fp32", "--device", "cpu"]


@pytest.fixture
def train(capfd, words):
    return lambda *extra: run_command(capfd, "train", *words, *extra)


def passed(result):
    assert result.status == 0 and result.err == "", result.err
    return result


@pytest.mark.parametrize("extra", [[], ["--resume"], ["--overwrite"]], ids=str)
def test_a_folder_in_use_is_left_alone(train, work, extra):
    passed(train())
    with hold_lock(work / "prompt.run" / ".lock", what="", say=pytest.fail):
        before = snapshot(work)
        line = f"--run-dir prompt.run: in use by process {os.getpid()} on "
        assert_one_line(train(*extra), line)
        assert snapshot(work) == before
    passed(train("--overwrite"))


def test_a_search_and_a_file_of_answers_in_use_are_left_alone(capfd, train, words, work, rows_file, model_folder):
    passed(train())
    with hold_lock(work / "prompt.sweep" / ".lock", what="", say=pytest.fail):
        result = run_command(capfd, "sweep", *words[:4], "--prompt-file", "prompt.safetensors", "--overwrite")
        assert_one_line(result, "--sweep-dir prompt.sweep: in use by process")
    with hold_lock(work / ".a.jsonl.lock", what="", say=pytest.fail):
        flags = ["--instructions", rows_file, "--output-file", "a.jsonl", "--device", "cpu"]
        assert_one_line(run_command(capfd, "generate", *flags), "--output-file a.jsonl: in use by process")
    with (
        hold_lock(work / "p.run" / ".lock", what="", say=pytest.fail),
        pytest.raises(softprompt.UserError, match="`run_dir` p.run: in use by"),
    ):
        softprompt.train(str(rows_file), str(model_folder), 3, prompt_file="p.safetensors")


@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume"]], ids=str)
def test_a_prompt_that_came_meanwhile_is_kept(train, work, monkeypatch, extra):
    if extra:
        passed(train())
    if extra == ["--resume"]:
        (work / "prompt.run" / "checkpoint-6" / "state.safetensors").unlink()  # so that steps are left to take
    real = trainer_module.Trainer.next_rows

    def next_rows(self):
        Path("prompt.safetensors").unlink(missing_ok=True)
        Path("prompt.safetensors").write_text("another's")
        return real(self)

    monkeypatch.setattr(trainer_module.Trainer, "next_rows", next_rows)
    last = passed(train(*extra)).out.splitlines()[-1]
    note = "note: another file came to prompt.safetensors meanwhile and is kept, so this one is prompt-2.safetensors"
    assert last == note
    assert (work / "prompt.safetensors").read_text() == "another's"
    assert load_prompt("prompt-2.safetensors").weight.shape[0] == 3


def test_what_is_only_shown_never_ends_a_run(train, words, work, monkeypatch):
    passed(train("--prompt-file", "whole.safetensors"))
    whole = (work / "whole.safetensors").read_bytes()
    real = Path.open

    def full(self, mode="r", *rest, **named):
        if self.name == "metrics.jsonl" and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        out = passed(train()).out
    assert out.count("warning: prompt.run/metrics.jsonl: No space left on device") == 1
    assert (work / "prompt.safetensors").read_bytes() == whole
    for name, redirection in (("a", ">&-"), ("b", ">/dev/full"), ("c", ">&- 2>&-")):
        command = [sys.executable, ROOT / "train.py", *words, "--prompt-file", f"{name}.safetensors"]
        line = f"{shlex.join(map(str, command))} {redirection}"
        done = subprocess.run(["bash", "-c", line], cwd=work, capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"")
        assert (work / f"{name}.safetensors").exists()


def test_a_last_checkpoint_that_cannot_be_saved_does_not_cost_the_prompt(train, work, monkeypatch):
    passed(train("--prompt-file", "whole.safetensors"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "prompt.run/checkpoint-3")

    monkeypatch.setattr(trainer_module, "save_checkpoint", full)
    result = train()
    assert result.status == 2 and result.err.endswith("error: prompt.run/checkpoint-3: No space left on device\n")
    assert re.search(r"the prompt of step \d+ is in prompt\.safetensors", result.out)
    assert (work / "prompt.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()


def test_a_terminal_that_cannot_print_a_row(words, work, rows_file):
    rows_file.write_text(json.dumps(ROWS[0] | {"output": "中文"}, ensure_ascii=False) + "\n", "utf-8")
    code = f"import sys; from softprompt.cli.program import run; from softprompt.cli.train import main\n\
sys.exit(run(lambda: main({[str(word) for word in words]!r}), prog='train.py'))"
    done = run_python(code, work, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "") and "\\u4e2d\\u6587" in done.stdout


@pytest.mark.parametrize(("ignored", "status"), [(False, 129), (True, 0)])
def test_a_hangup_saves_unless_it_is_ignored(words, work, ignored, status):
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL  # whatever the tests themselves were started under

    def set_handler():
        signal.signal(signal.SIGHUP, handler)

    # where it is to be stopped, it must not end before the signal comes, however busy the machine is
    longer = [*words, "--max-steps", 200 if ignored else 100_000, "--logging-steps", 1]
    process = start_command("train", *longer, cwd=work, preexec_fn=set_handler)
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGHUP)
            break
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == status and ("SIGHUP: saved at step" in err) == (not ignored)


def test_training_in_a_thread(work, rows_file, model_folder):
    options = {"max_steps": 4, "precision": "fp32", "progress": False}
    trained = []

    def target():
        trained.append(softprompt.train(str(rows_file), str(model_folder), 3, **options))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    here = softprompt.train(str(rows_file), str(model_folder), 3, **options)
    assert torch.equal(trained[0].prompt.weight, here.prompt.weight)


def test_old_checkpoints_and_temporary_files_of_dead_runs_go(train, work):
    passed(train("--save-total-limit", 1))
    assert [path.name for path in work.glob("prompt.run/checkpoint-*")] == ["checkpoint-6"]
    (work / "prompt.run" / ".checkpoint-4.123.abc.tmp").mkdir()
    (work / "prompt.run" / ".checkpoint-4.123.abc.tmp" / "state.safetensors").touch()
    (work / "prompt.run" / ".metrics.jsonl.123.abc.tmp").touch()
    passed(train("--overwrite"))
    assert not list(work.rglob("*.tmp"))
    assert sorted(path.name for path in work.glob("prompt.run/checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_a_run_that_was_killed_before_it_removed_old_checkpoints_does_so_when_it_goes_on(train, work, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("softprompt.training.trainer.prune_checkpoints", lambda *_: None)
        passed(train("--save-total-limit", 1))
    names = [path.name for path in work.glob("prompt.run/checkpoint-*")]
    assert len(names) > 1 and "checkpoint-6" in names
    (work / "prompt.safetensors").unlink()
    passed(train("--save-total-limit", 1, "--resume"))
    assert [path.name for path in work.glob("prompt.run/checkpoint-*")] == ["checkpoint-6"]


def test_a_run_folder_that_was_moved_goes_on_under_a_free_name(train, work, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "start", lambda self: os.kill(os.getpid(), signal.SIGINT))
        assert train().status == 130
    (work / "prompt.run").rename(work / "moved.run")
    (work / "other.safetensors").write_text("another's")
    flags = ["--resume", "--run-dir", "moved.run", "--prompt-file"]
    assert_one_line(train(*flags, "other.safetensors"), "--resume", "other.safetensors exists", "a name that is free")
    passed(train(*flags, "free.safetensors"))
    assert (work / "free.safetensors").exists()


def test_an_error_ends_the_process_at_once(work):
    code = """
import sys, threading, time
from softprompt.cli.program import leave, run
from softprompt.errors import UserError
def main():
    threading.Thread(target=time.sleep, args=(60,)).start()
    raise UserError("wrong")
sys.exit(leave(run(main, prog="x")))
"""
    done = run_python(code.replace("time.sleep, args=(60,)", "time.sleep, args=(100,)"), work)
    assert (done.returncode, done.stderr) == (2, "x: error: wrong\n")
