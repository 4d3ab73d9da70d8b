"""From command lines to configs: every option, its group, its spelling, and what is said of a wrong one."""

import dataclasses
import re

import pytest
from helpers.commands import main_of, name_of, run_command, run_python

from softprompt.__main__ import COMMANDS
from softprompt.cli.program import DOORS
from softprompt.config import command_line
from softprompt.config.commands import (
    ChatConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    ImportConfig,
    InspectConfig,
    SweepConfig,
    TrainConfig,
)
from softprompt.config.options import flag, flags_in, groups_of
from softprompt.errors import UserError

CONFIGS = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "chat": ChatConfig,
    "evaluate": EvaluateConfig,
    "inspect": InspectConfig,
    "sweep": SweepConfig,
    "export": ExportConfig,
    "import": ImportConfig,
}
# a change here is a decision: other people's scripts use these names; in the order and the groups of --help
OPTIONS = {
    "train": {
        "frozen base": "model",
        "hardware": "precision device",
        "rows": """
            data eval-data eval-fraction test-data columns data-config data-split max-train-rows max-length
            per-device-train-batch-size gradient-accumulation-steps seed
        """,
        "how rows are written": "template system last-turn-only placement",
        "distillation": """
            distill-text distill-from-data distill-answers distill-new-tokens distill-questions distill-context
            distill-replay distill-temperature distill-ce
        """,
        "start of the prompt": "virtual-tokens init init-text init-from allow-other-base",
        "steps": """
            num-train-epochs max-steps optim learning-rate lr-scheduler-type warmup-steps weight-decay adam-beta1
            adam-beta2 max-grad-norm max-tokens-per-pass gradient-checkpointing
        """,
        "evaluation and log": """
            logging-steps save-steps save-total-limit eval-steps eval-generate save-last early-stopping-patience verbose
        """,
        "output": "prompt-file resume overwrite run-dir",
    },
    "generate": {
        "answers": """
            seed max-length max-new-tokens do-sample top-k top-p temperature repetition-penalty num-return-sequences
        """,
        "prompt": "prompt-file",
        "frozen base": "model allow-other-base",
        "hardware": "precision device",
        "questions": """
            instruction input instructions columns data-config data-split output-file per-device-eval-batch-size
            ensemble compare resume overwrite
        """,
    },
    "chat": {
        "prompt": "prompt-file",
        "frozen base": "model allow-other-base",
        "hardware": "precision device",
        "answers": """
            max-length max-new-tokens do-sample top-k top-p temperature repetition-penalty num-return-sequences seed
        """,
    },
    "evaluate": {
        "frozen base": "model allow-other-base",
        "hardware": "precision device",
        "comparison": """
            prompt-file data split columns data-config held-out run-dir distill-text text-prompt max-rows max-length
            ensemble
            choices eval-generate max-new-tokens per-device-eval-batch-size bootstrap-samples seed output-file overwrite
        """,
    },
    "inspect": {
        "prompt": "prompt-file",
        "frozen base": "model allow-other-base",
        "report": "num-nearest run-dir plot overwrite",
    },
    "sweep": {
        "frozen base": "model",
        "hardware": "precision device",
        "rows": """
            data eval-data eval-fraction test-data columns data-config data-split max-train-rows max-length
            per-device-train-batch-size gradient-accumulation-steps seed
        """,
        "how rows are written": "template system last-turn-only placement",
        "distillation": """
            distill-text distill-from-data distill-answers distill-new-tokens distill-questions distill-context
            distill-replay distill-temperature distill-ce
        """,
        "output": "prompt-file resume overwrite",
        "search": "sweep-dir virtual-tokens relative-rates init init-text max-trials max-steps",
    },
    "export": {
        "frozen base": "model allow-other-base",
        "export": "prompt-file to push-to-hub overwrite",
    },
    "import": {
        "import": "adapter task model template system prompt-file overwrite",
    },
}
# what may be given without its flag
POSITIONAL = {"generate": "instruction", "chat": "prompt_file", "evaluate": "prompt_file", "inspect": "prompt_file"}
POSITIONAL |= {"export": "prompt_file", "import": "adapter"}


def frozen(program):
    """The flags of each group, as they are frozen."""
    return {heading: ["--" + name for name in names.split()] for heading, names in OPTIONS[program].items()}


def parse(program, *argv):
    settings = {"prog": name_of(program), "description": "", "positional": POSITIONAL.get(program)}
    return command_line.parse(CONFIGS[program], argv, **settings)


def complaint(program, *argv):
    """What a command says of words that it refuses, as it prints it."""
    with pytest.raises(UserError) as caught:
        parse(program, *argv)
    message = flags_in(str(caught.value))
    assert "\n" not in message and "usage" not in message and "`" not in message
    return message


@pytest.mark.parametrize(
    "argv", [("--max-length", "7"), ("--max_length", "7"), ("--max-length=7",), ("--max_length=7",)]
)
@pytest.mark.parametrize("program", [name for name in CONFIGS if name not in ("inspect", "export", "import")])
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
    given = {"export": {"to": ("peft", "x")}, "import": {"adapter": "x"}}  # what cannot be left out
    for program, config_class in CONFIGS.items():
        needed = given.get(program, {})
        words = [word for name, each in needed.items() for word in (flag(name), *([each] if each == "x" else each))]
        assert parse(program, *words) == config_class(**needed)


@pytest.mark.parametrize("program", CONFIGS)
def test_option_names_are_frozen(program):
    groups = {heading: [flag(field.name) for field in own] for heading, own in groups_of(CONFIGS[program]).items()}
    assert groups == frozen(program) and [*groups] == [*frozen(program)]
    names = [name for own in groups.values() for name in own]
    assert sorted(names) == sorted(flag(field.name) for field in dataclasses.fields(CONFIGS[program]))


def help_of(program, capsys, monkeypatch):
    """The help of every option, by its group and its flag, as `--help` prints it."""
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        main_of(program)(["--help"])
    assert stop.value.code == 0
    _, *parts = re.split(r"^(\S.*):\n(?=  )", capsys.readouterr().out, flags=re.MULTILINE)
    groups = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(groups) == len(parts) / 2  # no heading twice
    del groups["options"]  # --help itself
    assert (groups.pop("positional arguments", None) is not None) == (program in POSITIONAL)
    blocks = {heading: re.split(r"^  (?=--)", text, flags=re.MULTILINE)[1:] for heading, text in groups.items()}
    return {
        heading: {block.split()[0]: " ".join(block.split()) for block in texts} for heading, texts in blocks.items()
    }


@pytest.mark.parametrize("program", CONFIGS)
def test_help_shows_every_option_in_one_group_with_its_default(program, capsys, monkeypatch):
    groups = help_of(program, capsys, monkeypatch)
    negated = [flag(f"no_{field.name}") for field in dataclasses.fields(CONFIGS[program]) if field.default is True]
    shown = {heading: [name for name in own if name not in negated] for heading, own in groups.items()}
    assert shown == frozen(program) and [*shown] == [*frozen(program)]
    texts = {name: text for own in groups.values() for name, text in own.items()}
    assert sum(map(len, groups.values())) == len(texts)  # none in two groups
    assert all(texts[name] == f"{name} the opposite of {name.replace('--no-', '--')}" for name in negated)
    for field in dataclasses.fields(CONFIGS[program]):
        text = texts[flag(field.name)]
        default = ("on" if field.default else "off") if isinstance(field.default, bool) else repr(field.default)
        assert field.metadata["help"] in text
        assert f"(default: {default})" in text or (field.default in (None, ()) and "(default: " in text)


@pytest.mark.parametrize(
    ("program", "argv", "meant"),
    [
        ("train", ["--lr", "1"], "--learning-rate"),
        ("train", ["--epochs=3"], "--num-train-epochs"),
        ("train", ["--batch-size", "8"], "--per-device-train-batch-size"),
        ("train", ["--batch_size", "8"], "--per-device-train-batch-size"),
        ("train", ["--prompt_tuning_init_text", "a"], "--init-text"),
        ("train", ["--virtual", "3"], "--virtual-tokens"),  # no abbreviations: a new option could change their meaning
        ("train", ["--lerning-rate", "1"], "--learning-rate"),
        ("sweep", ["--batch-size", "8"], "--per-device-train-batch-size"),
        ("generate", ["--max-tokens", "8"], "--max-new-tokens"),
        ("generate", ["--temprature=0"], "--temperature"),
        ("generate", ["--question", "a"], "--instruction"),
        ("chat", ["--prompt", "a"], "--prompt-file"),
        ("evaluate", ["--dataset", "a"], "--data"),
        ("inspect", ["--num-nearst", "1"], "--num-nearest"),
    ],
    ids=str,
)
def test_an_unknown_flag_comes_with_the_one_that_was_meant(program, argv, meant):
    typed = re.split("=| ", argv[0])[0].replace("_", "-")
    assert complaint(program, *argv) == f"{typed}: no such flag; did you mean {meant}?"


def test_no_flag_is_guessed_that_the_command_lacks():
    for program, argv in (("generate", ["--lr", "1"]), ("inspect", ["--epochs", "1"]), ("train", ["--nonsense", "1"])):
        said = complaint(program, *argv)
        assert said == f"{argv[0]}: no such flag; {name_of(program)} --help lists the flags"
    assert "did you mean" not in complaint("sweep", "--epochs", "1")


def test_other_names_lead_to_options():
    """Every one to an option of some command, and none is itself an option of all of them."""
    known = [{field.name for field in dataclasses.fields(config_class)} for config_class in CONFIGS.values()]
    for other, own in command_line.OTHER_NAMES.items():
        assert any(own in names and other not in names for names in known), other


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--do_sample", "False"], False),
        (["--do-sample", "false"], False),
        (["--do-sample=no"], False),
        (["--do_sample=OFF"], False),
        (["--no-do-sample"], False),
        (["--do-sample", "True"], True),
        (["--do_sample=yes"], True),
        (["--do-sample"], True),
        (["--no_do_sample", "--do-sample"], True),  # the last one counts
    ],
    ids=str,
)
def test_a_switch_takes_a_truth_value_or_none(words, value):
    assert parse("generate", *words).do_sample is value
    assert parse("generate", *words, "--top-k", "3") == parse("generate", "--top-k", "3", *words)


def test_switches_that_are_off():
    assert parse("train", "--overwrite", "true").overwrite is True
    assert parse("train", "--overwrite", "false").overwrite is False
    assert parse("train", "--gradient_checkpointing", "True", "--resume").resume is True
    assert parse("generate", "--instructions", "x", "--resume=no", "--overwrite").overwrite is True


def test_a_switch_does_not_swallow_what_follows_it():
    for switch in ("--compare", "--do-sample", "--allow_other_base"):
        config = parse("generate", switch, "Is it true?")
        assert config.instruction == "Is it true?" and getattr(config, switch[2:].replace("-", "_")) is True
    assert parse("generate", "--no-do-sample", "Why?").instruction == "Why?"
    config = parse("evaluate", "--held-out", "a.safetensors", "b.safetensors")
    assert config.held_out is True and config.prompt_file == ("a.safetensors", "b.safetensors")
    config = parse("inspect", "--allow-other-base", "false", "a.safetensors")
    assert config.allow_other_base is False and config.prompt_file == "a.safetensors"


def test_a_question_without_its_flag():
    for argv in (["Why is it?"], ["Why is it?", "--seed", "1"], ["--seed", "1", "Why is it?"]):
        assert parse("generate", *argv).instruction == "Why is it?"
    assert parse("generate", "-").instruction == "-"
    assert parse("generate", "--", "--snake_case").instruction == "--snake_case"
    assert parse("generate", "").instruction == ""  # which the command refuses, and does not replace by its own
    assert parse("generate").instruction is None
    assert complaint("generate", "What is", "--instruction", "it?") == "--instruction: What is is given too"
    assert "--instruction" in complaint("generate", "", "--instruction", "it?")
    assert "'is'" in complaint("generate", "what", "is", "it?")
    assert "--instructions" in complaint("generate", "--instructions", "x.jsonl", "what?")


def test_a_prompt_file_without_its_flag():
    assert parse("evaluate", "a", "b", "--seed", "1").prompt_file == ("a", "b")
    assert parse("inspect", "a").prompt_file == parse("chat", "a").prompt_file == "a"
    for program in ("inspect", "chat", "evaluate"):
        assert parse(program).prompt_file == CONFIGS[program]().prompt_file
        assert complaint(program, "a", "--prompt_file", "b") == "--prompt-file: a is given too"
    for program in ("train", "sweep"):
        assert "'a'" in complaint(program, "a")


WRONG = {
    "train": [
        ("--nonsense", "--nonsense", "3"),
        ("stray", "stray"),
        ("--virtual-tokens", "--virtual-tokens"),
        ("--virtual-tokens", "--virtual-tokens", "many"),
        ("--virtual-tokens", "--virtual-tokens", "1.5"),
        ("--virtual-tokens", "--virtual-tokens", "0"),
        ("--virtual-tokens", "--virtual_tokens", "-1"),
        ("--init", "--init", "telepathy"),
        ("--precision", "--precision", "fp8"),
        ("--lr-scheduler-type", "--lr-scheduler-type", "polynomial"),
        ("--resume", "--resume=perhaps"),
        ("--resume", "--resume="),
        ("perhaps", "--resume", "perhaps"),
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
        ("--temperature", "--temperature", "0.0001"),
        ("--temperature", "--temperature", "-1"),
        ("--temperature", "--temperature", "inf"),
        ("--temperature", "--temperature", "nan"),
        ("--repetition-penalty", "--repetition-penalty", "-1"),
        ("--num-return-sequences", "--num-return-sequences", "0"),
        ("--num-return-sequences", "--num-return-sequences", "2", "--no-do-sample"),
        ("--num-return-sequences", "--num-return-sequences", "2", "--temperature", "0"),
        ("--do-sample", "--do-sample=perhaps"),
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
    "chat": [
        ("--nonsense", "--nonsense"),
        ("--instruction", "--instruction", "a"),
        ("--max-length", "--max-length", "0"),
        ("--top-p", "--top-p", "2"),
        ("--seed", "--seed", "-1"),
        ("b", "a", "b"),
    ],
    "evaluate": [
        ("--nonsense", "--nonsense"),
        ("--held-out", "--data", "x", "--held-out"),
        ("--run-dir", "--data", "x", "--run-dir", "y"),
        ("--split", "--split", "test"),
        ("--text-prompt", "--text-prompt", "\udcff"),
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
    "export": [
        ("--to",),
        ("--to", "--to", "peft"),
        ("--to", "--to", "nonsense", "x"),
        ("--to", "--to", "npy", "x"),
        ("--to", "--to", "peft", "x.npy"),
        ("--to", "--to", "peft", ""),
        ("--prompt-file", "--to", "peft", "x", "--prompt-file", "a.safetensors", "b.safetensors"),
        ("--push-to-hub", "--to", "baked", "x", "--push-to-hub", "me/it"),
    ],
    "import": [
        ("--adapter",),
        ("--adapter", "--adapter", ""),
        ("--task", "x", "--task", "-1"),
        ("--template", "x", "--template", ""),
        ("--prompt-file", "x", "--prompt-file", ""),
    ],
}


@pytest.mark.parametrize(
    ("program", "case"), [(program, case) for program, cases in WRONG.items() for case in cases], ids=str
)
def test_wrong_values_name_the_flag(program, case, capsys):
    named, *argv = case
    assert named in complaint(program, *argv)
    assert capsys.readouterr() == ("", "")


def test_every_command_is_tested():
    assert [*CONFIGS] == [*COMMANDS] == [*OPTIONS] == [*WRONG]


@pytest.mark.parametrize("program", CONFIGS)
def test_wrong_flag_through_the_command(program, capfd):
    result = run_command(capfd, program, "--nonsense")
    assert (result.status, result.out) == (2, "") and len(result.err.splitlines()) == 1
    assert result.err.startswith(f"{name_of(program)}: error: ")
    assert "--nonsense" in result.err and "--help" in result.err


@pytest.mark.parametrize("argv", [["--help"], ["--nonsense"]], ids=str)
@pytest.mark.parametrize("program", CONFIGS)
def test_help_and_complaints_need_no_torch(program, argv, tmp_path):
    entries = [("softprompt.__main__", [program, *argv])]
    entries += [(program, argv)] if program in DOORS else []
    for module, words in entries:
        code = (
            "import sys\n"
            f"from {module} import main\n"
            "from softprompt.errors import UserError\n"
            f"try: main({words})\n"
            "except (SystemExit, UserError) as stop: print(type(stop).__name__)\n"
            "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
        )
        done = run_python(code, tmp_path)
        assert done.returncode == 0, done.stderr
        kind = "SystemExit" if argv == ["--help"] else "UserError"
        assert done.stdout.splitlines()[-2:] == [kind, "[]"]
