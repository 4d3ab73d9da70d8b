"""Stop and go on, and what may be replaced: a resumed run ends in the bytes of an uninterrupted one."""

import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.commands import ROOT, Result, assert_one_line, run_command, snapshot, start_command
from helpers.rows import ROWS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from softprompt import load_prompt
from softprompt.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("work")


@pytest.fixture
def flags(model_folder, rows_file):
    """A run of 10 steps with held-out rows, shuffled over several epochs."""
    flags = {"--model": model_folder, "--data": rows_file, "--virtual-tokens": 4, "--device": "cpu"}
    flags |= {"--gradient-accumulation-steps": 2, "--max-steps": 10, "--logging-steps": 3, "--save-steps": 4}
    flags |= {"--save-total-limit": 3}
    return flags | {"--eval-fraction": 0.2, "--precision": "fp32"}


@pytest.fixture
def train(capfd, flags):
    """Run train.py with those flags, some of them changed."""

    def run(*extra, **changes) -> Result:
        options = flags | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
        words = [word for name, value in options.items() if value is not None for word in (name, value)]
        return run_command(capfd, "train", *words, *extra)

    return run


def passed(result: Result) -> Result:
    assert result.status == 0 and result.err == "", result.err
    return result


def stop_after(monkeypatch, steps, signum=signal.SIGINT):
    """Send a signal while step `steps + 1` is computed, as a terminal would."""
    real = Trainer.next_rows

    def next_rows(self):
        if self.step == steps:
            os.kill(os.getpid(), signum)
        return real(self)

    monkeypatch.setattr(Trainer, "next_rows", next_rows)


def metrics(folder):
    """The records of a run without the speed, which is the clock's."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in record.items() if k != "supervised_tokens_per_second"} for record in records]


def content_of(path):
    """The JSON value in a state file, read by safetensors."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


@pytest.fixture
def whole(train, work):
    """An uninterrupted run: its prompt's bytes and its metrics."""
    passed(train(prompt_file="whole.safetensors"))
    return (work / "whole.safetensors").read_bytes(), metrics(work / "whole.run")


def test_two_runs_give_the_same_bytes(train, work, whole):
    passed(train())
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert metrics(work / "prompt.run") == whole[1]
    assert len(whole[1]) == 16 and [r["step"] for r in whole[1] if "loss" in r] == [3, 6, 9, 10]
    passed(train(prompt_file="other.safetensors", seed=7))
    assert (work / "other.safetensors").read_bytes() != whole[0]


@pytest.mark.parametrize("steps", [0, 1, 4, 7, 9])
def test_resumed_equals_uninterrupted(train, work, whole, steps, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        stopped = train()
    assert_one_line(stopped, "SIGINT", f"saved at step {steps} of 10", "prompt.run", "--resume", status=130)
    assert not (work / "prompt.safetensors").exists()
    assert (work / "prompt.run" / f"checkpoint-{steps}").is_dir()
    resumed = passed(train("--resume"))
    assert f"resumed from prompt.run/checkpoint-{steps}" in resumed.out
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert metrics(work / "prompt.run") == whole[1]


def test_stopped_three_times(train, work, whole, monkeypatch):
    for steps, signum, status in ((2, signal.SIGTERM, 143), (3, signal.SIGINT, 130), (8, signal.SIGINT, 130)):
        with monkeypatch.context() as patched:
            stop_after(patched, steps, signum)
            assert train("--resume").status == status
    passed(train("--resume"))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert metrics(work / "prompt.run") == whole[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.3, "optim": "adamw", "weight_decay": 0.1},
        {"init": "random", "per_device_train_batch_size": 2, "eval_steps": 3},
        {"precision": "bf16", "init": "vocab"},
        {"init": "answers"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted_in_other_recipes(train, work, changes, monkeypatch):
    passed(train(prompt_file="whole.safetensors", **changes))
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        assert train(**changes).status == 130
    passed(train("--resume", **changes))
    assert (work / "prompt.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()
    assert metrics(work / "prompt.run") == metrics(work / "whole.run")
    # a loss scale that started anew would show only where something overflows
    names = ("prompt.run", "whole.run")
    scalers = [content_of(work / name / "checkpoint-10" / "state.safetensors")["scaler"] for name in names]
    assert scalers[0] == scalers[1] and bool(scalers[0]) == (changes.get("precision") == "fp16")


def test_power_cut(train, work, whole):
    """Nothing after checkpoint 4 is left but lines of the metrics, the last one cut short."""
    passed(train())
    (work / "prompt.safetensors").unlink()
    for step in (8, 10):
        shutil.rmtree(work / "prompt.run" / f"checkpoint-{step}")
    path = work / "prompt.run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    (work / "prompt.run" / ".checkpoint-8.abc.tmp").mkdir()
    assert "checkpoint-4" in passed(train("--resume")).out
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert metrics(work / "prompt.run") == whole[1]


def test_resuming_a_finished_run_changes_nothing(train, work, whole):
    passed(train())
    before = snapshot(work)
    passed(train("--resume"))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert snapshot(work).keys() == before.keys()


def test_test_figures_are_recorded_once_however_often_a_run_is_finished(train, work, rows_file):
    other = rows_file.with_name("other.jsonl")
    other.write_text(json.dumps(ROWS[0] | {"output": "of the test"}) + "\n")
    passed(train(test_data=str(other)))
    before = snapshot(work)
    passed(train("--resume", test_data=str(other)))
    assert snapshot(work) == before
    tests = [record for record in metrics(work / "prompt.run") if "test_loss" in record]
    assert [record["prompt"] for record in tests] == ["none", "kept"]


def test_resume_in_another_folder(train, work, whole, monkeypatch):
    """A run folder that was moved together with its prompt file's place goes on."""
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        assert train(prompt_file="a/p.safetensors").status == 130
    shutil.move(work / "a", work / "b")
    passed(train("--resume", prompt_file="b/p.safetensors"))
    assert (work / "b" / "p.safetensors").read_bytes() == whole[0]


@pytest.fixture
def stopped(train, work, monkeypatch):
    """A run that was stopped at step 5."""
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        assert train().status == 130
    return work / "prompt.run"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 43},
        {"virtual_tokens": 5},
        {"max_steps": 11},
        {"learning_rate": 0.5},
        {"max_length": 40},
        {"gradient_accumulation_steps": 3},
        {"precision": "bf16"},
        {"init": "random"},
        {"eval_fraction": 0.3},
        {"gradient_checkpointing": ""},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_resume_refuses_another_recipe(train, work, stopped, changes):
    before = snapshot(work)
    (name,) = changes
    flag = "--" + name.replace("_", "-")
    result = train("--resume", flag) if changes[name] == "" else train("--resume", **changes)
    assert_one_line(result, "--resume", flag)
    assert snapshot(work) == before


def test_resume_refuses_other_rows(train, work, stopped, rows_file):
    before = snapshot(work)
    lines = rows_file.read_text().splitlines(keepends=True)
    rows_file.write_text("".join(lines).replace("green green", "green grey"))
    assert_one_line(train("--resume"), "--resume", "--data")
    rows_file.write_text("".join(reversed(lines)))  # the order decides which rows a step takes
    assert_one_line(train("--resume"), "--resume", "--data")
    rows_file.write_text("".join(lines))
    (work.parent / "test.jsonl").write_text(json.dumps(ROWS[0] | {"output": "of the test"}) + "\n")
    assert_one_line(train("--resume", test_data="../test.jsonl"), "--resume: --test-data: these are not the test rows")
    assert snapshot(work) == before
    passed(train("--resume"))


def test_resume_refuses_another_base(train, work, stopped, model_folder):
    other = shutil.copytree(model_folder, work / "other")
    tensors = {name: tensor * 1.5 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert_one_line(train("--resume", model="other"), "--resume", "--model")


def test_resume_may_change_what_does_not_matter(train, work, whole, stopped, rows_file):
    shutil.move(rows_file, work / "moved.jsonl")
    passed(train("--resume", data="moved.jsonl", save_steps=2, logging_steps=4))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]


def test_resume_replaces_only_the_prompt_file_of_its_run(train, work, stopped):
    (work / "precious.safetensors").write_text("another run's")
    before = snapshot(work)
    result = train("--resume", prompt_file="precious.safetensors", run_dir="prompt.run")
    assert_one_line(result, "--resume", "prompt.safetensors", "precious.safetensors")
    assert snapshot(work) == before
    (work / "prompt.safetensors").write_text("this run's, by name")
    passed(train("--resume"))
    assert len(load_prompt(work / "prompt.safetensors").weight) == 4


def test_resume_with_nothing_to_resume(train, work, whole):
    passed(train("--resume"))  # neither run folder nor prompt file: a fresh start
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert metrics(work / "prompt.run") == whole[1]
    shutil.rmtree(work / "prompt.run")
    before = snapshot(work)
    assert_one_line(train("--resume"), "--resume", "nothing to go on from", "prompt.safetensors")
    assert snapshot(work) == before


def test_an_altered_checkpoint_is_noticed(train, work, whole, stopped):
    """One bit of the gradients that are kept, which nothing else would show."""
    path = stopped / "checkpoint-5" / "state.safetensors"
    gradients = load_file(path)["optimizer.gradients"]
    raw, wanted = bytearray(path.read_bytes()), gradients.numpy().tobytes()
    assert raw.count(wanted) == 1 and len(wanted) == 5 * 4 * 4 * 32
    raw[raw.index(wanted) + 100] ^= 1
    path.write_bytes(raw)
    out = passed(train("--resume")).out
    assert "warning: prompt.run/checkpoint-5/state.safetensors: its checksum does not fit its content" in out
    assert "resumed from prompt.run/checkpoint-4" in out and (work / "prompt.safetensors").read_bytes() == whole[0]


@pytest.mark.parametrize("damage", [b"", b"text", 7, 1000, -1, None], ids=str)
def test_damaged_checkpoints(train, work, stopped, damage):
    """With none that can be used, one line and nothing touched; a state in another step's folder cannot be."""
    path, before = (stopped / f"checkpoint-{step}" / "state.safetensors" for step in (5, 4))
    raw = path.read_bytes()
    for each in (path, before):
        if damage is None:
            each.unlink()
        else:
            each.write_bytes(raw[:damage] if isinstance(damage, int) else damage)
    files = snapshot(work)
    assert_one_line(train("--resume"), "checkpoint-5/state.safetensors", "no checkpoint before it", "--overwrite")
    assert snapshot(work) == files
    before.write_bytes(raw)
    assert_one_line(train("--resume"), "no checkpoint before it")


def test_the_one_before_a_damaged_checkpoint_is_used_and_the_damaged_one_written_anew(train, work, whole, stopped):
    path = stopped / "checkpoint-5" / "state.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    out = passed(train("--resume", save_steps=5)).out
    assert (
        "warning: prompt.run/checkpoint-5/state.safetensors: " in out and "resumed from prompt.run/checkpoint-4" in out
    )
    assert (work / "prompt.safetensors").read_bytes() == whole[0] and path.read_bytes() == raw


def test_the_prompt_in_a_checkpoint_is_never_read_by_a_resume(train, work, whole, stopped):
    (stopped / "checkpoint-5" / "prompt.safetensors").write_bytes(b"no prompt")
    passed(train("--resume"))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]


def test_overwrite(train, work, whole):
    (work / "prompt.safetensors").write_text("old")
    passed(train("--overwrite", seed=7))
    (work / "prompt.run" / "notes.txt").write_text("foreign")
    (work / "prompt.run" / "checkpoint-old").mkdir()
    (work / "prompt.run" / "checkpoint-3").mkdir()
    refused = snapshot(work)
    assert_one_line(train(), "prompt.safetensors", "--overwrite")
    assert snapshot(work) == refused
    passed(train("--overwrite"))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]
    assert metrics(work / "prompt.run") == whole[1]
    assert (work / "prompt.run" / "notes.txt").read_text() == "foreign"
    names = {path.name for path in (work / "prompt.run").iterdir()}
    assert names == {
        "notes.txt",
        "checkpoint-old",
        "metrics.jsonl",
        "config.json",
        *(f"checkpoint-{n}" for n in (4, 8, 10)),
    }


def test_a_refused_overwrite_keeps_the_old_run(train, work, whole):
    passed(train())
    before = snapshot(work)
    assert_one_line(train("--overwrite", virtual_tokens=10**6), "--virtual-tokens")
    assert_one_line(train("--overwrite", data="gone.jsonl"), "gone.jsonl")
    assert snapshot(work) == before


def fail_at(monkeypatch, wanted):
    """A disk that is full when `wanted` is to be put in its place."""
    real = os.replace

    def replace(source, target):
        if os.path.basename(target) == wanted:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_a_full_disk_keeps_the_old_prompt_and_the_run(train, work, whole, monkeypatch):
    (work / "result.safetensors").write_text("old")
    with monkeypatch.context() as patched:
        fail_at(patched, "result.safetensors")
        result = train("--overwrite", prompt_file="result.safetensors")
    assert_one_line(result, "result.safetensors", "No space left on device")
    assert (work / "result.safetensors").read_text() == "old"
    assert not [path for path in snapshot(work) if path.endswith(".tmp")]
    passed(train("--resume", prompt_file="result.safetensors"))  # the steps are not lost
    assert (work / "result.safetensors").read_bytes() == whole[0]


def test_a_full_disk_at_a_checkpoint(train, work, whole, monkeypatch):
    with monkeypatch.context() as patched:
        fail_at(patched, "state.safetensors")
        result = train()
    warnings = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "no checkpoint of step 4" in warnings[0] and "No space left" in warnings[0]
    assert_one_line(result, "state.safetensors", "No space left on device")
    assert not list((work / "prompt.run").glob("*checkpoint*"))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]  # it had room
    passed(train("--overwrite"))
    assert (work / "prompt.safetensors").read_bytes() == whole[0]


def generate(capfd, prompt_file, *extra):
    flags = ["--prompt-file", prompt_file, "--instruction", "Say red", "--device", "cpu", "--precision", "fp32"]
    return run_command(capfd, "generate", *flags, "--max-new-tokens", 8, *extra)


def test_checkpoints_answer(capfd, train, work, stopped):
    for step in (4, 5):
        result = generate(capfd, f"prompt.run/checkpoint-{step}/prompt.safetensors", "--no-do-sample")
        assert result.status == 0, result.err
        assert json.loads(load_prompt(stopped / f"checkpoint-{step}/prompt.safetensors").metadata["training"])[
            "steps"
        ] == step  # fmt: skip


def test_answers_repeat_with_their_seed(capfd, train):
    passed(train())
    first = generate(capfd, "prompt.safetensors", "--temperature", 5)
    assert first.status == 0 and "Human: Say red" in first.err and "Human" not in first.out
    (seed,) = [line.removeprefix("seed: ") for line in first.err.splitlines() if line.startswith("seed: ")]
    again = generate(capfd, "prompt.safetensors", "--temperature", 5, "--seed", seed)
    other = generate(capfd, "prompt.safetensors", "--temperature", 5, "--seed", int(seed) + 1)
    assert again.out == first.out != other.out
    both = generate(capfd, "prompt.safetensors", "--compare", "--no-do-sample")
    assert "--- with the prompt\n" in both.out and "--- without the prompt\n" in both.out
    three = generate(capfd, "prompt.safetensors", "--num-return-sequences", 3, "--seed", 1, "--compare")
    assert three.status == 0


def test_questions_from_standard_input(capfd, train, monkeypatch):
    passed(train())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Say blue\n")))
    result = generate(capfd, "prompt.safetensors", "--instruction", "-")
    assert result.status == 0 and "Human: Say blue\n\nAssistant: \n" in result.err


@pytest.mark.parametrize("kind", ["table", "splits"])
def test_a_save_to_disk_folder_trains(train, work, whole, kind, tmp_path):
    table = Dataset.from_list(ROWS)
    other = Dataset.from_list([row | {"output": "as before"} for row in ROWS[:7]] + ROWS[:2])
    folder = str(tmp_path / "saved")
    (table if kind == "table" else DatasetDict({"train": table, "test": other})).save_to_disk(folder)
    passed(train(data=folder))
    trained, wanted = (load_prompt(work / name) for name in ("prompt.safetensors", "whole.safetensors"))
    assert torch.equal(trained.weight, wanted.weight)
    if kind == "table":  # the same rows, whatever they came in: only their name differs
        names = {"data": ("saved", "rows.jsonl"), "sha256": (trained.metadata["sha256"], wanted.metadata["sha256"])}
        both = {key: (trained.metadata[key], wanted.metadata[key]) for key in trained.metadata}
        assert {key: pair for key, pair in both.items() if pair[0] != pair[1]} == names
    else:  # its test split is scored, which changes nothing that is learnt
        assert json.loads(trained.metadata["training"])["test_rows"] == 7
        result = passed(train(data=folder, eval_fraction=None, prompt_file="own.safetensors"))
        assert "held out: 7 rows" in result.out and "; 2 that are also rows of another split left out" in result.out


@pytest.mark.parametrize("init", ["text", "answers", "vocab", "random"])
def test_inits(train, work, init):
    options = {"init": init, "learning_rate": 1e-12, "max_steps": 1}
    passed(train(**options))
    passed(train(prompt_file="seed.safetensors", seed=7, **options))
    file, other = load_prompt(work / "prompt.safetensors"), load_prompt(work / "seed.safetensors")
    assert file.metadata["init"] == init and file.weight.shape == (4, 32)
    assert torch.allclose(file.weight, other.weight) == (init == "text")
    assert (file.metadata["init_text"] != "") == (init == "text")


def test_init_from_a_prompt_file(train, work):
    passed(train(prompt_file="first.safetensors"))
    options = {"init_from": "first.safetensors", "virtual_tokens": None, "learning_rate": 1e-12}
    passed(train(**options))
    first, second = (load_prompt(work / name) for name in ("first.safetensors", "prompt.safetensors"))
    assert torch.allclose(first.weight, second.weight, atol=1e-7) and second.metadata["init"] == "file"
    passed(train("--overwrite", prompt_file="first.safetensors", **options | {"learning_rate": None}))
    assert not torch.allclose(load_prompt(work / "first.safetensors").weight, first.weight)


def test_eval_steps(train, work):
    passed(train(eval_steps=4))
    found = [record for record in metrics(work / "prompt.run") if "eval_loss" in record]
    assert [record["step"] for record in found] == [0, 0, 4, 8, 10]
    assert [record["prompt"] for record in found] == ["none", "initial", "current", "current", "trained"]
    losses = json.loads(load_prompt(work / "prompt.safetensors").metadata["training"])["held_out_loss"]
    assert all(isinstance(loss, float) for loss in losses.values()) and len(losses) == 3
    assert losses["trained_prompt"] == min(record["eval_loss"] for record in found[1:])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions(train, work, precision):
    result = passed(train(precision=precision))
    assert f", {precision}, cpu)" in result.out
    weight = load_prompt(work / "prompt.safetensors").weight
    assert weight.dtype == torch.float32
    assert not torch.equal(weight.to(torch.float16).float(), weight)  # the prompt itself is not rounded
    for line in (work / "prompt.run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_output_says_what_the_tutorial_says(train):
    out = passed(train(max_steps=3, logging_steps=1)).out
    assert "trainable params: 128 || all params: 33,984 || trainable%: 0.3766" in out
    assert "\nmodel: 4 x 32 virtual tokens, 2 frozen layers, 4 heads, vocabulary 260" in out
    assert "SoftPromptModel(" not in out and "first row, labels decoded:" in out
    assert len([line for line in out.splitlines() if line.startswith("step ")]) == 3
    assert "\r" not in out
    tree = passed(train("--verbose", max_steps=3, prompt_file="tree.safetensors")).out
    assert "SoftPromptModel(\n" in tree and "BloomBlock(" in tree and "\nmodel: " not in tree


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signals_to_a_real_run(capfd, train, flags, work, signum, status):
    options = flags | {"--max-steps": 400, "--logging-steps": 1, "--save-steps": 1000}
    words = [word for option in options.items() for word in option]
    process = start_command("train", *words, cwd=work, stdin=subprocess.DEVNULL)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step ") and "20/400" in line:
            process.send_signal(signum)
            break
    rest, err = process.communicate(timeout=120)
    name = signal.Signals(signum).name
    result = Result(process.returncode, "".join(lines) + rest, err)
    assert_one_line(result, name, "saved at step", "of 400 in prompt.run", "--resume", status=status)
    assert "\r" not in result.out + result.err
    (checkpoint,) = (work / "prompt.run").glob("checkpoint-*")
    assert 20 <= int(checkpoint.name.removeprefix("checkpoint-")) < 400
    assert not (work / "prompt.safetensors").exists()
    assert generate(capfd, checkpoint / "prompt.safetensors").status == 0
    long_run = {name.removeprefix("--").replace("-", "_"): value for name, value in options.items()}
    passed(train("--resume", **long_run))
    passed(train(prompt_file="whole.safetensors", **long_run))
    assert (work / "prompt.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()
    assert metrics(work / "prompt.run") == metrics(work / "whole.run")


def test_a_second_signal_acts_at_once(train, work, monkeypatch):
    real = Trainer.next_rows

    def next_rows(self):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Trainer, "next_rows", next_rows)
    assert_one_line(train(), "SIGINT", "last checkpoint stands", status=130)
    assert [path.name for path in (work / "prompt.run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_run_goes_on_when_nobody_reads_its_output(train, work, model_folder, rows_file):
    words = [sys.executable, str(ROOT / "train.py"), "--model", str(model_folder), "--data", str(rows_file)]
    line = f"{shlex.join(words)} --logging-steps 1 --max-steps 200 | grep -m 1 'step .* loss'"
    done = subprocess.run(["bash", "-c", line], cwd=work, capture_output=True, text=True, timeout=120)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert load_prompt(work / "prompt.safetensors").weight.shape[1] == 32
