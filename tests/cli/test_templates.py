"""Templates from end to end: what a prompt is trained with is what every other command uses, from the prompt file."""

import datetime
import json

import pytest
from helpers.commands import assert_one_line, run_command
from helpers.models import make_model, make_tokenizer
from helpers.rows import ROWS

from softprompt import load, load_prompt, train
from softprompt.prompt.encoder import encoder_of

TURNS = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + TURNS


@pytest.fixture
def chat_model(tmp_path, monkeypatch):
    """A random Llama whose tokenizer has a chat template."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "chat"
    make_model("llama").save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(folder)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return folder


@pytest.fixture
def command(capfd, chat_model):
    def run(program, *argv):
        if program in ("train", "sweep"):
            argv = ("--model", chat_model, "--data", "rows.jsonl", "--eval-fraction", 0.3, "--overwrite", *argv)
        return run_command(capfd, program, *argv)

    return run


LONG_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_of_the_base_that_does_not_end_is_one_line(command, chat_model, monkeypatch):
    passed(command("train", *quick()))
    monkeypatch.setattr("softprompt.tokens.probe.SECONDS", 0.5)
    (chat_model / "chat_template.jinja").write_text(LONG_LOOP)
    result = command("train", *quick())
    assert_one_line(result, f"--model {chat_model}: its chat template", "does not end", "--template takes another")
    passed(command("train", *quick("--template", "tutorial")))


def passed(result):
    assert result.status == 0, result.err
    return result


def quick(*argv):
    return ("--virtual-tokens", 3, "--max-steps", 2, *argv)


@pytest.mark.parametrize(
    ("argv", "question"),
    [
        ((), "<s>user: Say it</s>\n<s>assistant: "),
        (("--template", "tutorial"), "Human: Say it\n\nAssistant: "),
        (("--template", "plain"), "Say it"),
        (("--system", "Be brief."), "<s>system: Be brief.</s>\n<s>user: Say it</s>\n<s>assistant: "),
        (("--template", "turns.jinja"), "[user]Say it[assistant]"),
        (("--placement", "system"), "<s>system: [...]</s>\n<s>user: Say it</s>\n<s>assistant: "),
    ],
    ids=["auto", "tutorial", "plain", "system text", "a file", "in the system turn"],
)
def test_every_command_writes_questions_as_in_training(command, tmp_path, argv, question):
    cue = "{% if add_generation_prompt %}[assistant]{% endif %}"
    turns = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    (tmp_path / "turns.jinja").write_text(turns + cue, "utf-8")
    passed(command("train", *quick(*argv), "--eval-generate", 1))
    one = passed(command("generate", "--no-do-sample", "--max-new-tokens", 6, "Say it"))
    assert one.err == question + "\n"
    many = passed(command("generate", "--no-do-sample", "--max-new-tokens", 6, "--instructions", "rows.jsonl"))
    assert "10 to answer" in many.err
    answers = [json.loads(line) for line in (tmp_path / "rows.answers.jsonl").read_text("utf-8").splitlines()]
    answered = load("prompt.safetensors").answer([row["instruction"] + "\n" + row["input"] for row in ROWS[:1]],
                                                 do_sample=False, max_new_tokens=6)  # fmt: skip
    assert answers[0]["answer"] == answered[0]
    scored = passed(command("evaluate", "prompt.safetensors", "--eval-generate", 2, "--max-new-tokens", 4))
    assert "no prompt" in scored.out and "3 rows" in scored.out
    assert "template" in passed(command("inspect", "prompt.safetensors")).out


def test_a_prompt_in_the_system_turn_says_where_it_stands(command, chat_model):
    result = passed(command("train", *quick("--placement", "system")))
    assert "    <s>system: [prompt]</s>\n" in result.out
    facts = load_prompt("prompt.safetensors").facts
    trained = load("prompt.safetensors")
    tokenizer = trained.tokenizer
    assert facts.placement == "system" and tokenizer.decode(facts.before_ids) == "<s>system: "
    assert tokenizer.decode(facts.after_ids) == "</s>\n<s>"
    assert len(trained.model.front) == len(facts.before_ids) + 3 + len(facts.after_ids)
    assert "placement" in passed(command("inspect", "prompt.safetensors")).out


def test_inspect_says_which_turns_were_learnt_where_it_is_the_last_alone(command):
    passed(command("train", *quick("--last-turn-only")))
    lines = [line.split() for line in passed(command("inspect", "prompt.safetensors")).out.splitlines()]
    assert ["learnt", "turns", "last"] in lines
    passed(command("train", *quick()))
    lines = [line.split() for line in passed(command("inspect", "prompt.safetensors")).out.splitlines()]
    assert not [words for words in lines if words[:1] == ["learnt"]]


def test_a_sweep_hands_its_template_on(command):
    words = ("--template", "plain", "--virtual-tokens", 2, "--init", "text", "--relative-rates", 0.3, 1.0)
    result = passed(command("sweep", *words, "--max-steps", 2))
    assert load_prompt("prompt.safetensors").facts.template == "plain"
    assert "--template plain" in result.out.splitlines()[-1]


def test_the_date_of_a_run_is_that_of_its_first_day(command, chat_model, tmp_path, monkeypatch):
    (tmp_path / "dated.jinja").write_text(DATED, "utf-8")
    result = passed(command("train", *quick("--template", "dated.jinja", "--save-steps", 1)))
    facts = load_prompt("prompt.safetensors").facts
    assert facts.template_date and f"with the date {facts.template_date}" in result.out
    config = tmp_path / "prompt.run" / "config.json"
    content = json.loads(config.read_text("utf-8"))
    assert content["template_date"] == facts.template_date
    # the next day, the tokenizer would write another date
    yesterday = load_prompt("prompt.safetensors")
    encoder = encoder_of(yesterday.facts, load("prompt.safetensors")._base, prompt_file="p")
    assert facts.template_date in encoder.template.text


class Day(datetime.date):
    """A day that a test chooses for today."""

    written = "2026-03-04"

    @classmethod
    def today(cls):
        return cls.fromisoformat(cls.written)


@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "stopped"])
def test_the_date_of_a_sweep_is_that_of_its_first_day(capfd, chat_model, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(datetime, "date", Day)
    (tmp_path / "dated.jinja").write_text(DATED, "utf-8")
    words = ("--model", chat_model, "--data", "rows.jsonl", "--eval-fraction", 0.3, "--template", "dated.jinja")
    words += ("--virtual-tokens", 2, "--init", "text", "--relative-rates", 0.3, 1.0, "--max-steps", 2)
    passed(run_command(capfd, "sweep", *words))
    assert load_prompt("prompt.safetensors").facts.template_date == "2026-03-04"
    recipe = tmp_path / "prompt.sweep" / "sweep.json"
    assert json.loads(recipe.read_text("utf-8"))["template_date"] == "2026-03-04"
    if stopped:
        (tmp_path / "prompt.safetensors").unlink()
        for file in (tmp_path / "prompt.sweep").glob("*.safetensors"):
            file.unlink()
    monkeypatch.setattr(Day, "written", "2026-03-05")
    passed(run_command(capfd, "sweep", *words, "--resume"))
    assert load_prompt("prompt.safetensors").facts.template_date == "2026-03-04"
    assert json.loads(recipe.read_text("utf-8"))["template_date"] == "2026-03-04"
    passed(run_command(capfd, "sweep", *words, "--overwrite"))
    assert load_prompt("prompt.safetensors").facts.template_date == "2026-03-05"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--template", "nowhere.jinja"), ("--template nowhere.jinja", "no such file")),
        (("--template", "broken.jinja"), ("--template broken.jinja", "cannot be rendered")),
        (("--template", "tutorial", "--placement", "system"), ("--placement system", "chat template")),
        (("--template", "deaf.jinja", "--placement", "system"), ("--placement system", "no system turn")),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_one_line(command, tmp_path, argv, words):
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}", "utf-8")
    (tmp_path / "deaf.jinja").write_text("{{ messages[-1]['content'] }}", "utf-8")
    result = command("train", *quick(*argv))
    assert_one_line(result, *words)
    assert not (tmp_path / "prompt.safetensors").exists()


def test_a_base_without_a_chat_template_has_none_to_use(capfd, model_folder, rows_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--model", model_folder, "--data", rows_file, "--template", "chat")
    assert_one_line(run_command(capfd, "train", *words), "--template chat", "has no chat template")


def test_python_takes_the_same_options(chat_model):
    trained = train(ROWS, str(chat_model), 3, max_steps=2, placement="system", system="Be kind.", progress=False)
    assert trained.metadata["system"] == "Be kind." and trained.metadata["placement"] == "system"
    assert isinstance(trained.answer("Say it", max_new_tokens=3, do_sample=False), str)
