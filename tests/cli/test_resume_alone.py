"""`--resume --prompt-file p.safetensors` alone: the run folder's `config.json` has every option of the run."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch
import transformers
from helpers.commands import Result, assert_one_line, run_command, snapshot

from softprompt import load_prompt
from softprompt.config.commands import TrainConfig
from softprompt.training.run import PACKAGES, read_run
from softprompt.training.trainer import Trainer

# no option that decides what is learnt has its default, but for those that exclude each other
OPTIONS = {
    "virtual_tokens": 4,
    "system": "Be brief.",
    "columns": "instruction=instruction,input=input,output=output",
    "max_train_rows": 7,
    "max_length": 60,
    "eval_fraction": 0.2,
    "seed": 7,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "init": "vocab",
    "max_steps": 10,
    "optim": "adamw",
    "weight_decay": 0.1,
    "learning_rate": 0.5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.3,
    "adam_beta1": 0.7,
    "adam_beta2": 0.97,
    "max_grad_norm": 0.5,
    "max_tokens_per_pass": "120",
    "eval_steps": 3,
    "early_stopping_patience": 9,
    "save_steps": 4,
    "save_total_limit": 3,
    "logging_steps": 3,
    "precision": "fp32",
}
SWITCHES = ("--gradient-checkpointing", "--save-last", "--last-turn-only")


pytestmark = pytest.mark.usefixtures("work")


@pytest.fixture
def words(model_folder, rows_file):
    """The flags of the run; rows and base are named as seen from the folder of the first command."""
    named = OPTIONS | {"data": os.path.relpath(rows_file), "model": model_folder}
    pairs = [("--" + name.replace("_", "-"), value) for name, value in named.items()]
    return [*(word for pair in pairs for word in pair), *SWITCHES]


@pytest.fixture
def train(capfd):
    return lambda *argv: run_command(capfd, "train", *argv)


@pytest.fixture
def go_on(train):
    """`--resume` with the prompt file's name and nothing else but what is given."""
    return lambda *argv, prompt_file="p.safetensors": train("--resume", "--prompt-file", prompt_file, *argv)


@pytest.fixture
def whole(train, words, work):
    """The bytes of an uninterrupted run's prompt, and the run's metrics."""
    passed(train(*words, "--prompt-file", "whole.safetensors"))
    return (work / "whole.safetensors").read_bytes(), metrics(work / "whole.run")


@pytest.fixture
def stopped(train, words, work, monkeypatch):
    """The run folder of the run, stopped at step 5."""
    real = Trainer.next_rows

    def next_rows(self):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "next_rows", next_rows)
        assert train(*words, "--prompt-file", "p.safetensors").status == 130
    return work / "p.run"


@pytest.fixture
def nothing_loads(monkeypatch):
    """Fails the test if a base or rows are looked for."""
    for name in ("base.loading.load_base", "data.splits.load_splits"):
        monkeypatch.setattr(f"softprompt.{name}", lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


def passed(result: Result) -> Result:
    assert result.status == 0 and result.err == "", result.err
    return result


def metrics(folder):
    """The records of a run without the speed, which is the clock's."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in record.items() if k != "supervised_tokens_per_second"} for record in records]


def test_the_options_are_not_the_defaults():
    """Or the tests below would not see that one is forgotten."""
    default, others = vars(TrainConfig()), {"num_train_epochs", "init_text"}  # instead of max_steps and init
    others.add("placement")  # this base has no system turn
    others |= {name for name in default if name.startswith("distill")}  # tests/distillation has runs of theirs
    deciding = {field.name for field in dataclasses.fields(TrainConfig) if field.metadata["decides"]} - others
    switches = {word.removeprefix("--").replace("-", "_"): True for word in SWITCHES}
    given = OPTIONS | switches
    assert deciding <= set(given)
    assert not [name for name in deciding if given[name] == default[name]]


def test_the_prompt_files_name_is_enough(go_on, work, whole, stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the rows' name leads elsewhere
    resumed = passed(go_on(prompt_file="work/p.safetensors"))
    assert "resumed from work/p.run/checkpoint-5" in resumed.out
    assert (work / "p.safetensors").read_bytes() == whole[0]
    assert metrics(work / "p.run") == whole[1]


def test_a_home_folder_is_expanded(go_on, work, whole, stopped, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    passed(go_on(prompt_file="~/work/p.safetensors"))
    assert (work / "p.safetensors").read_bytes() == whole[0]


@pytest.mark.parametrize(
    ("flag", "value", "before"),
    [
        ("--max-length", "40", "60"),
        ("--virtual-tokens", "5", "4"),
        ("--model", "builtin:bloom-small@1", "bloom"),
        ("--seed", "42", "7"),
        ("--optim", "soap", "adamw"),
        ("--precision", "bf16", "fp32"),
        ("--save-last=false", None, "True"),
    ],
)
def test_a_contradiction_is_refused_in_words_before_anything_is_loaded(
    go_on, work, stopped, nothing_loads, flag, value, before
):
    files = snapshot(work)
    result = go_on(flag, *([] if value is None else [value]))
    name, value = flag.partition("=")[0], value or "False"
    assert_one_line(result, "--resume", f"{name} was ", before, "when this run started", f"is {value} now")
    assert result.out == "" and snapshot(work) == files


def test_what_was_said_before_may_be_said_again(go_on, work, whole, stopped):
    passed(go_on("--max-length", 60, "--virtual-tokens", 4, "--max-steps", 10, "--optim", "adamw"))
    assert (work / "p.safetensors").read_bytes() == whole[0]


def test_flags_that_decide_nothing_may_change(go_on, work, whole, stopped):
    result = passed(go_on("--logging-steps", 1, "--save-steps", 2, "--device", "cpu", "--verbose"))
    assert (work / "p.safetensors").read_bytes() == whole[0]
    assert "SoftPromptModel(\n" in result.out
    assert {"checkpoint-6", "checkpoint-8", "checkpoint-10"} <= {path.name for path in stopped.iterdir()}
    known = read_run(stopped)
    assert (known.options["logging_steps"], known.options["save_steps"], known.options["device"]) == (1, 2, "cpu")


@pytest.mark.parametrize(("first", "second"), [("auto", "fp32"), ("fp32", "auto")])
def test_auto_may_stand_for_the_precision_that_it_is(go_on, train, words, work, first, second):
    words[words.index("--precision") + 1] = first
    passed(train(*words, "--prompt-file", "p.safetensors"))
    prompt = (work / "p.safetensors").read_bytes()
    passed(go_on("--precision", second))
    assert (work / "p.safetensors").read_bytes() == prompt
    # the run now is noted with the second one; what auto stands for is known once the base is loaded
    said = "was fp32" if second == "fp32" else "the run started in another one (fp32, and now bf16)"
    assert_one_line(go_on("--precision", "bf16"), "--resume: ", "--precision", said, "bf16")


def test_a_run_that_was_moved_goes_on(go_on, work, whole, stopped):
    passed(go_on("--device", "cpu"))
    shutil.rmtree(stopped / "checkpoint-10")
    (work / "deep" / "er").mkdir(parents=True)
    for name in ("p.run", "p.safetensors"):
        shutil.move(work / name, work / "deep" / "er" / name)
    result = passed(go_on(prompt_file="deep/er/p.safetensors"))
    assert "resumed from deep/er/p.run/checkpoint-8" in result.out
    assert (work / "deep" / "er" / "p.safetensors").read_bytes() == whole[0]
    assert not (work / "p.run").exists() and not (work / "p.safetensors").exists()


@pytest.mark.parametrize(("flag", "value", "was"), [("--max-steps", 20, "10"), ("--num-train-epochs", 9, "not given")])
def test_a_finished_run_does_not_take_more_steps_and_says_what_does(go_on, train, words, work, flag, value, was):
    passed(train(*words, "--prompt-file", "p.safetensors"))
    files = snapshot(work)
    result = go_on(flag, value)
    assert_one_line(result, f"--resume: {flag} was {was}", f"is {value}", "more steps", "another run", "--init-from")
    assert snapshot(work) == files
    passed(go_on())
    assert snapshot(work) == files
    passed(train(*words[:4], "--data", words[words.index("--data") + 1], "--model", words[words.index("--model") + 1],
                 "--max-steps", 1, "--init-from", "p.safetensors", "--prompt-file", "more.safetensors"))  # fmt: skip
    assert load_prompt("more.safetensors").metadata["init"] == "file"


def test_the_run_folder_says_every_option_and_what_the_run_rests_on(stopped, rows_file, model_folder):
    content = json.loads((stopped / "config.json").read_text("utf-8"))
    assert content["kind"] == "softprompt run"
    wanted = vars(
        TrainConfig(
            **OPTIONS, save_last=True, last_turn_only=True, gradient_checkpointing=True, prompt_file="p.safetensors"
        )
    )
    assert content["options"] == wanted | {"data": str(rows_file), "model": str(model_folder)}
    assert set(content["versions"]) == set(PACKAGES) and content["versions"]["torch"] in torch.__version__
    assert content["versions"]["transformers"] == transformers.__version__
    file = load_prompt(stopped / "checkpoint-5" / "prompt.safetensors")
    assert content["base"] == {name: file.metadata[name] for name in ("base", "base_revision", "base_sha256")}
    assert len(content["base"]["base_sha256"]) == len(content["data_sha256"]) == 64
    assert content["data_sha256"] == file.facts.data_sha256 and file.facts.data == rows_file.name
    known = read_run(stopped)
    assert (known.options, known.versions) == (content["options"], content["versions"])


def test_virtual_tokens_are_noted_as_the_number_that_they_are(train, words, work):
    place = words.index("--virtual-tokens")
    passed(train(*words[:place], *words[place + 2 :], "--prompt-file", "p.safetensors"))
    count = len(load_prompt("p.safetensors").weight)
    assert count != 4 and read_run(work / "p.run").options["virtual_tokens"] == count


def damaged(change):
    """What is left of a file of ours after a change of its content."""

    def damage(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content).encode()

    return damage


DAMAGES = {
    "empty": lambda text: b"",
    "cut short": lambda text: text[:-20].encode(),
    "not UTF-8": lambda text: b"\xff" + text.encode(),
    "no options": damaged(lambda content: content.pop("options")),
    "options of another kind": damaged(lambda content: content.update(options=[1])),
    "an option of another type": damaged(lambda content: content["options"].update(max_steps="ten")),
    "an option out of range": damaged(lambda content: content["options"].update(seed=-1)),
    "no base": damaged(lambda content: content.update(base={})),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_config_is_not_read(train, words, work, stopped, name):
    path = stopped / "config.json"
    before = path.read_text("utf-8")
    assert read_run(stopped) is not None
    path.write_bytes(DAMAGES[name](before))
    assert read_run(stopped) is None
    if name == "cut short":  # and it is whole again once the options are given
        passed(train(*words, "--resume", "--prompt-file", "p.safetensors"))
        assert path.read_text("utf-8") == before


def test_without_a_config_the_options_must_be_given(go_on, train, words, work, whole, stopped, rows_file, model_folder):
    (stopped / "config.json").unlink()
    result = go_on("--data", rows_file, "--model", model_folder)
    assert_one_line(result, "--resume: --", "when this run started")
    assert not (work / "p.safetensors").exists()
    passed(train(*words, "--resume", "--prompt-file", "p.safetensors"))
    assert (work / "p.safetensors").read_bytes() == whole[0]


@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume"]], ids=str)
def test_a_config_of_another_program_is_kept(train, words, work, model_folder, extra):
    """The folder of a base has a file of that name."""
    (work / "base").mkdir()
    shutil.copy(model_folder / "config.json", work / "base" / "config.json")
    before = snapshot(work)
    result = train(*words, *extra, "--prompt-file", "p.safetensors", "--run-dir", "base")
    assert_one_line(result, "--run-dir base", "config.json", "another program")
    assert snapshot(work) == before
