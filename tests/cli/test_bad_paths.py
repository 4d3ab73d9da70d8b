"""A loop of symbolic links, a dangling one, a pipe, a device, a folder or the root, wherever a path is asked for."""

import os
import signal

import numpy
import pytest
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.prompts import save_for

from softprompt.config.options import PATHS, Group

SECONDS = 20
KINDS = {
    "loop": lambda path: path.symlink_to(path.name),
    "loop of two": lambda path: (path.symlink_to("second"), path.with_name("second").symlink_to(path.name)),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "dangling": lambda path: path.symlink_to("gone/nowhere"),
}
NAMES = {
    "root": "/",
    "NUL": "a\0b",
    "too long": "x" * 5000,
    "device": "/dev/null",
    "below a file": "rows.jsonl/x",
}
INPUTS = {
    "train": ("data", "eval_data", "test_data", "model", "init_from", "distill_text", "distill_replay"),
    "sweep": ("data", "model"),
    "generate": ("prompt_file", "model", "instructions"),
    "chat": ("prompt_file", "model"),
    "evaluate": ("prompt_file", "model", "data", "distill_text"),
    "inspect": ("prompt_file", "model", "run_dir"),
    "export": ("prompt_file", "model"),
    "import": ("adapter", "model"),
}
OUTPUTS = {
    "train": ("prompt_file", "run_dir"),
    "sweep": ("prompt_file", "sweep_dir"),
    "generate": ("output_file",),
    "evaluate": ("output_file",),
    "inspect": ("plot",),
    "export": ("to",),
    "import": ("prompt_file",),
}
# outputs that are written where a path of this kind is
FINE = {("folder", "run_dir"), ("folder", "sweep_dir"), ("dangling", "prompt_file"), ("dangling", "output_file")}
FINE |= {("dangling", "plot"), ("folder", "to")}


@pytest.fixture
def work(tmp_path, monkeypatch, rows_file, model_folder):
    monkeypatch.chdir(tmp_path)
    save_for(model_folder, "prompt.safetensors")
    numpy.save("p.npy", numpy.ones((2, 32), "f4"))
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    signal.alarm(SECONDS)  # a command that waits for somebody to write into a pipe ends the test run
    yield tmp_path
    signal.alarm(0)


@pytest.fixture
def run(capfd, work, model_folder):
    def call(command, option, value):
        options = {"model": model_folder}
        if command in ("train", "sweep"):
            options |= {"data": "rows.jsonl", "prompt_file": "new.safetensors", "max_steps": 1, "virtual_tokens": 2}
        if command == "generate" and option in ("instructions", "output_file"):
            options |= {"instructions": "rows.jsonl", "output_file": "answers.jsonl", "max_new_tokens": 1}
        elif command == "generate":
            options |= {"instruction": "x"}
        if option == "distill_replay":
            options |= {"distill_text": "rows.jsonl"}
        if command == "evaluate":
            options |= {"data": "rows.jsonl", "eval_generate": 0}
        if command == "export":
            options |= {"to": "new"}
        if command == "import":
            options |= {"adapter": "p.npy", "prompt_file": "new.safetensors"}
        options[option] = value + ".png" if option == "plot" and len(value) > 1 else value
        argv = [word for name, each in options.items() for word in (f"--{name.replace('_', '-')}", each)]
        if command == "export":  # which takes the format as well
            argv.insert(argv.index("--to") + 1, "vllm")
        return run_command(capfd, command, *argv)

    return call


def cases(table):
    return [(command, option) for command, options in table.items() for option in options]


def test_every_path_is_tried():
    tried = {option for _, option in cases(INPUTS) + cases(OUTPUTS)}
    assert tried == PATHS and tried <= Group.all_names


@pytest.mark.parametrize(("command", "option"), cases(INPUTS))
def test_inputs(run, work, command, option):
    for kind, make in KINDS.items():
        if kind == "folder" and option == "run_dir":
            continue
        make(work / kind)
        before = snapshot(work)
        result = run(command, option, str(work / kind))
        assert_one_line(result)
        assert snapshot(work) == before
        if (work / "second").is_symlink():
            (work / "second").unlink()
    for value in NAMES.values():
        assert_one_line(run(command, option, value))


@pytest.mark.parametrize(("command", "option"), cases(OUTPUTS))
def test_outputs(run, work, command, option):
    for kind, make in KINDS.items():
        suffix = ".png" if option == "plot" else ""
        make(work / (kind + suffix))
        before = snapshot(work)
        result = run(command, option, str(work / kind))
        if (kind, option) in FINE and result.status == 0:
            continue
        assert_one_line(result)
        assert snapshot(work) == before
        if (work / "second").is_symlink():
            (work / "second").unlink()
    for kind, value in NAMES.items():
        if (kind, option) in FINE:
            continue
        assert_one_line(run(command, option, value))
