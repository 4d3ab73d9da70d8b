"""`train` and `load` in Python: the command's bytes, no trace in the process, and every mistake a `UserError`."""

import gc
import os
import random
import signal
import tempfile
import threading
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.rows import ROWS, write

import softprompt
from softprompt import Diverged, Interrupted, LoadedPrompt, TrainedPrompt, UserError, load, load_prompt
from softprompt.training.trainer import Trainer

OPTIONS = {
    "virtual_tokens": 4,
    "max_steps": 6,
    "max_length": 60,
    "eval_fraction": 0.3,
    "learning_rate": 0.5,
    "init": "random",
    "save_steps": 2,
    "device": "cpu",
    "precision": "fp32",
}
GREEDY = {"do_sample": False, "max_new_tokens": 8}
QUESTIONS = ["Say red", "Say a much longer thing about green and blue", "Hi", *(f"Say {n}" for n in range(9))]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """The folder that everything happens in, and one of its own for what is temporary."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "work"


@pytest.fixture
def temporary(work):
    """What the library has in the folder for what is temporary."""
    return lambda: sorted(path.name for path in (work.parent / "temporary").glob("softprompt-*"))


@pytest.fixture
def train(model_folder):
    """`softprompt.train` on the rows, with those options, some of them changed."""

    def run(data=ROWS, **changes):
        return softprompt.train(data, str(model_folder), progress=False, **OPTIONS | changes)

    return run


def stop_after(monkeypatch, steps):
    """Send SIGINT while step `steps + 1` is computed, as a notebook's stop button does."""
    real = Trainer.next_rows

    def next_rows(self):
        if self.step == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Trainer, "next_rows", next_rows)


def learnt(trained):
    """What a prompt is, without what its data was called."""
    return {key: value for key, value in trained.metadata.items() if key not in ("data", "sha256")}


def test_rows_may_come_in_every_form(train, work, temporary):
    table = Dataset.from_list(ROWS)
    given = {
        "list": ROWS,
        "tuple": tuple(ROWS),
        "Dataset": table,
        "DatasetDict": DatasetDict({"train": table}),
        "file": write(work, "jsonl", ROWS),
        "path": Path(write(work, "csv", ROWS)),
    }
    first = train(given.pop("list"))
    assert isinstance(first, TrainedPrompt) and first.metadata["data"] == ""
    for kind, data in given.items():
        other = train(data)
        assert torch.equal(other.prompt.weight, first.prompt.weight), kind
        assert learnt(other) == learnt(first), kind
        assert other.metadata["data"] == {"file": "rows.jsonl", "path": "rows.csv"}.get(kind, ""), kind
    changed = train([ROWS[0] | {"output": "other"}, *ROWS[1:]])
    assert not torch.equal(changed.prompt.weight, first.prompt.weight)


def test_the_splits_of_a_data_set_are_used(train):
    data = DatasetDict({"train": Dataset.from_list(ROWS[:7]), "validation": Dataset.from_list(ROWS[7:])})
    trained = train(data, eval_fraction=None)
    assert (len(trained.rows.train_rows), len(trained.rows.eval_rows)) == (7, 3)
    given = train(ROWS[:7], eval_fraction=None, eval_data=ROWS[7:], test_data=[ROWS[0] | {"output": "of the test"}])
    assert torch.equal(given.prompt.weight, trained.prompt.weight) and given.losses == trained.losses
    assert given.test_losses.trained_prompt is not None and trained.test_losses.trained_prompt is None


def test_the_bytes_are_those_of_the_command(train, capfd, work, model_folder):
    rows = write(work, "jsonl", ROWS)
    words = [word for name, value in OPTIONS.items() for word in ("--" + name.replace("_", "-"), value)]
    fixed = ["--model", model_folder, "--data", rows, "--prompt-file", "command.safetensors"]
    assert run_command(capfd, "train", *fixed, *words).status == 0
    wanted = (work / "command.safetensors").read_bytes()
    kept = train(rows, prompt_file="python.safetensors")
    assert (work / "python.safetensors").read_bytes() == wanted and kept.file == Path("python.safetensors")
    assert sorted(path.name for path in (work / "python.run").iterdir()) == sorted(
        path.name for path in (work / "command.run").iterdir()
    )
    passing = train(rows)
    assert passing.save("saved.safetensors").read_bytes() == wanted and passing.file is None
    assert load(Path("command.safetensors")).save(work / "new" / "again.safetensors").read_bytes() == wanted


def test_what_a_run_found_is_there(train):
    trained = train()
    assert trained.losses.trained_prompt == min(point.loss for point in trained.curve.held_out)
    assert trained.result.held_out is trained.losses and len(trained.curve.train) == 1
    assert trained.device == torch.device("cpu") and trained.config is trained.model.base_model.config
    assert trained.prompt is trained.model.soft_prompt and trained.prompt.num_virtual_tokens == 4


def test_the_temporary_folder_goes_with_the_object(train, temporary):
    assert temporary() == []
    trained = train()
    (name,) = temporary()
    again = train()
    assert len(temporary()) == 2
    del again
    gc.collect()
    assert temporary() == [name]
    assert trained.answer("Say red", **GREEDY) == trained.answer("Say red", **GREEDY)
    del trained
    gc.collect()
    assert temporary() == []


def test_a_run_that_fails_leaves_no_temporary_folder(train, temporary, work, monkeypatch):
    with pytest.raises(Diverged, match="`learning_rate`"):
        train(learning_rate=1e38)
    with pytest.raises(UserError, match="`virtual_tokens`"):
        train(virtual_tokens=10**9)
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(Interrupted) as stop:
            train()
    assert stop.value.message == "SIGINT: stopped; without a `prompt_file` nothing is kept"
    assert temporary() == [] and list(work.iterdir()) == []


def test_a_second_call_replaces_nothing(train, work):
    train(prompt_file="p.safetensors")
    before = snapshot(work)
    with pytest.raises(UserError, match="`prompt_file` p.safetensors: already there.*`overwrite`"):
        train(prompt_file="p.safetensors", seed=7)
    (work / "p.safetensors").rename(work / "kept.safetensors")
    with pytest.raises(UserError, match="`run_dir` p.run: already there; go on with `resume`"):
        train(prompt_file="p.safetensors", seed=7)
    (work / "kept.safetensors").rename(work / "p.safetensors")
    assert snapshot(work) == before
    trained = train(prompt_file="p.safetensors", seed=7, overwrite=True)
    assert snapshot(work) != before
    with pytest.raises(UserError, match="`path` p.safetensors: already there.*`overwrite`"):
        trained.save("p.safetensors")
    written = (work / "p.safetensors").read_bytes()
    (work / "p.safetensors").write_text("old")
    assert trained.save("p.safetensors", overwrite=True).read_bytes() == written


def test_a_saved_prompt_answers_as_the_trained_one(train, work, model_folder):
    trained = train()
    loaded = load(trained.save("p.safetensors"), device="cpu", precision="fp32")
    assert type(loaded) is LoadedPrompt and loaded.metadata == load_prompt("p.safetensors").metadata
    assert torch.equal(loaded.prompt.weight, trained.prompt.weight)
    wanted = trained.answer(QUESTIONS, **GREEDY)
    assert loaded.answer(QUESTIONS, **GREEDY) == wanted and len(set(wanted)) > 1
    ids = torch.tensor([[40, 50, 60]])
    assert torch.equal(loaded.generate(ids, **GREEDY), trained.model.generate(ids, **GREEDY))
    named = load("p.safetensors", model=model_folder, device="cpu", precision="fp32")
    assert named.answer("Hi", **GREEDY) == trained.answer("Hi", **GREEDY)


def test_several_answers_are_in_order_and_those_of_each_question_alone(train):
    trained = train()
    together = trained.answer(QUESTIONS, **GREEDY)
    assert together == [trained.answer(question, **GREEDY) for question in QUESTIONS]
    assert trained.answer(QUESTIONS[::-1], **GREEDY) == together[::-1]
    assert all(isinstance(text, str) for text in together) and len(set(together)) > 1
    assert trained.answer([]) == [] and trained.answer(("Hi",), **GREEDY) == [trained.answer("Hi", **GREEDY)]


def test_a_seed_repeats(train):
    trained = train()
    drawn = [trained.answer(QUESTIONS, seed=seed, temperature=5.0, max_new_tokens=8) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    free = [trained.answer("Say red", temperature=5.0, max_new_tokens=16) for _ in range(4)]
    assert len(set(free)) > 1  # without a seed every call draws anew
    twice = trained.answer(["Say red"] * 2, seed=1, temperature=5.0, max_new_tokens=16)
    assert twice[0] != twice[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_step": 3}, r"^max_step: no such option; did you mean `max_steps`\?$"),
        ({"lr": 0.1}, r"^lr: no such option; did you mean `learning_rate`\?$"),
        ({"num_virtual_tokens": 3}, r"^num_virtual_tokens: no such option; did you mean `virtual_tokens`\?$"),
        ({"zzz": 3}, r"^zzz: no such option$"),
        ({"max_steps": "6"}, r"`max_steps` '6': must be int, not str"),
        ({"max_steps": 6.0}, r"`max_steps` 6.0: must be int, not float"),
        ({"learning_rate": "fast"}, r"`learning_rate` 'fast': must be float, not str"),
        ({"virtual_tokens": "4"}, r"`virtual_tokens` '4': must be int, not str"),
        ({"save_last": 1}, r"`save_last` 1: must be bool, not int"),
        ({"max_steps": True}, r"`max_steps` True: must be int, not bool"),
        ({"max_steps": None}, r"`max_steps` None: must be int, not NoneType"),
        ({"prompt_file": 5}, r"`prompt_file` 5: must be a path, not int"),
        ({"prompt_file": ""}, r"`prompt_file` : must name a file"),
        ({"data": 5}, r"`data` the rows given: is a int; give a name"),
        ({"data": [ROWS[0], 5]}, r"`data` the rows given: row 2: is a int, not a dict"),
        ({"data": []}, r"`data` the rows given: holds no row"),
        ({"data": [{"question": "a"}]}, r"`data` the rows given: rows need instruction and output"),
        ({"eval_fraction": None, "eval_data": 5}, r"`eval_data` the rows given: is a int"),
        ({"data": "gone.jsonl"}, r"`data` gone.jsonl: no such file"),
        ({"optim": "sgd"}, r"`optim` 'sgd': must be one of soap, adamw"),
        ({"precision": "fp8"}, r"`precision` 'fp8': must be one of auto, fp32"),
        ({"device": "tpu"}, r"`device` tpu"),
        ({"max_steps": 0}, r"`max_steps` 0: must be -1 or at least 1"),
        ({"resume": True}, r"`resume`: name the `prompt_file`"),
        ({"resume": True, "overwrite": True, "prompt_file": "p"}, r"`resume` True: give it or `overwrite`"),
    ],
    ids=str,
)
def test_wrong_options_are_named(train, work, temporary, options, message):
    with pytest.raises(UserError, match=message):
        train(**options)
    assert list(work.iterdir()) == [] and temporary() == []


def test_a_wrong_model_is_named(work):
    with pytest.raises(UserError, match="`model` 5: must be str, not int"):
        softprompt.train(ROWS, 5)
    with pytest.raises(UserError, match="`model` ./gone: no such folder"):
        softprompt.train(ROWS, "./gone")


def test_wrong_use_of_a_prompt_is_named(train, work, model_folder):
    trained = train(prompt_file="p.safetensors")
    for wrong, message in [
        ({"max_token": 3}, r"^max_token: no such option; did you mean"),
        ({"temperature": "hot"}, r"`temperature` 'hot': must be float, not str"),
        ({"temperature": -1}, r"`temperature` -1"),
        ({"num_return_sequences": 2}, r"`num_return_sequences`"),
        ({"seed": "one"}, r"`seed` 'one': must be int, not str"),
        ({"max_length": 3}, r"`max_length` 3: the question alone has"),
    ]:
        with pytest.raises(UserError, match=message):
            trained.answer("Say red", **wrong)
    for question in (5, ["Say red", 5], None, b"Say red"):
        with pytest.raises(UserError, match="`question` .*must be text, or a list of texts"):
            trained.answer(question)
    for wrong, message in [
        ({"prompt_file": 5}, r"`prompt_file` 5: must be a path, not int"),
        ({"prompt_file": "gone.safetensors"}, r"gone.safetensors: no such prompt file"),
        ({"precision": "fp8"}, r"`precision` 'fp8': must be one of"),
        ({"device": 0}, r"`device` 0: must be str, not int"),
        ({"device": "tpu"}, r"`device` tpu"),
        ({"model": 5}, r"`model` 5: must be a path, not int"),
        ({"model": "./gone"}, r"`model` ./gone: no such folder"),
        ({"model": "builtin:bloom-small@1"}, r"p.safetensors"),
    ]:
        with pytest.raises(UserError, match=message):
            load(**{"prompt_file": "p.safetensors"} | wrong)
    with pytest.raises(UserError, match="`path` None: must be a path"):
        trained.save(None)


def state_of_the_process():
    """What a call must leave as it was."""
    return {
        "handlers": [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)],
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "python": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "collector": gc.isenabled(),
        "bars": (datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled()),
        "verbosity": (datasets.logging.get_verbosity(), transformers.logging.get_verbosity()),
        "folder": os.getcwd(),
    }


def test_a_call_leaves_the_process_as_it_was(train, monkeypatch, capfd):
    verbosity = datasets.logging.get_verbosity(), transformers.logging.get_verbosity()
    datasets.logging.set_verbosity_info()
    transformers.logging.set_verbosity_info()
    try:
        torch.manual_seed(3)
        before = state_of_the_process()
        capfd.readouterr()
        with monkeypatch.context() as patched:
            stop_after(patched, 3)
            with pytest.raises(Interrupted):
                train(prompt_file="p.safetensors")
        assert state_of_the_process() == before
        torch.manual_seed(4)  # a run that goes on sets the states of its checkpoint
        before = state_of_the_process()
        train(prompt_file="p.safetensors", resume=True)
        assert state_of_the_process() == before
        loaded = load("p.safetensors")
        loaded.answer(QUESTIONS, temperature=5.0, max_new_tokens=4)
        assert state_of_the_process() == before
        with pytest.raises(UserError):
            train("gone.jsonl")
        with pytest.raises(UserError):
            load("p.safetensors", model="./gone")
        assert state_of_the_process() == before
        assert capfd.readouterr() == ("", "")
    finally:
        datasets.logging.set_verbosity(verbosity[0])
        transformers.logging.set_verbosity(verbosity[1])


def test_a_random_state_of_the_caller_changes_nothing(train):
    torch.manual_seed(1)
    first = train()
    torch.manual_seed(2)
    second = train()
    assert torch.equal(first.prompt.weight, second.prompt.weight)


def test_a_worker_thread_trains_and_answers(train, work):
    before, results, errors = state_of_the_process(), {}, []

    def work_on():
        try:
            trained = train(prompt_file="thread.safetensors")
            results["answer"] = trained.answer("Say red", **GREEDY)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work_on)
    thread.start()
    thread.join(timeout=120)
    assert errors == [] and not thread.is_alive()
    assert state_of_the_process() == before
    here = train(prompt_file="here.safetensors")
    assert (work / "thread.safetensors").read_bytes() == (work / "here.safetensors").read_bytes()
    assert results["answer"] == here.answer("Say red", **GREEDY)


@pytest.mark.parametrize("steps", [0, 3])
def test_an_interrupted_run_goes_on_to_the_same_bytes(train, work, monkeypatch, steps):
    train(prompt_file="whole.safetensors")
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        with pytest.raises(KeyboardInterrupt, match=f"saved at step {steps} of 6 in p.run; go on with `resume`"):
            train(prompt_file="p.safetensors")
    assert not (work / "p.safetensors").exists()
    with pytest.raises(UserError, match="`resume`: `max_length` was 60 when this run started and is 61 now"):
        train(prompt_file="p.safetensors", resume=True, max_length=61)
    trained = train(prompt_file="p.safetensors", resume=True)
    assert (work / "p.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()
    assert trained.file == Path("p.safetensors")


def test_the_prompt_files_name_is_enough_to_go_on(train, work, monkeypatch):
    rows = write(work, "jsonl", ROWS)
    train(rows, prompt_file="whole.safetensors")
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Interrupted):
            train(rows, prompt_file="p.safetensors")
    softprompt.train(prompt_file="p.safetensors", resume=True, progress=False)
    assert (work / "p.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()


def test_rows_that_were_in_memory_must_be_given_again(train, work, monkeypatch, capfd):
    train(prompt_file="whole.safetensors")
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Interrupted):
            train(prompt_file="p.safetensors")
    with pytest.raises(UserError, match="`resume`: the rows of `data` were in memory.*give them again"):
        softprompt.train(prompt_file="p.safetensors", resume=True)
    words = ["--resume", "--prompt-file", "p.safetensors"]
    assert_one_line(run_command(capfd, "train", *words), "--resume: the rows of --data were in memory")
    with pytest.raises(UserError, match="`resume`: `data`: these are not the rows"):
        train(ROWS[::-1], prompt_file="p.safetensors", resume=True)
    rows = write(work, "jsonl", ROWS)
    assert run_command(capfd, "train", *words, "--data", rows).status == 0
    assert (work / "p.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("option", [{"verbose": True}, {"eval_generate": 3}])
def test_options_that_only_print_are_refused(option):
    with pytest.raises(UserError, match=f"`{next(iter(option))}`: only the command prints"):
        softprompt.train([{"instruction": "Say up", "output": "up"}], max_steps=1, **option)
