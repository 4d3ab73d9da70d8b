"""Each kind of data that people have trains, answers and evaluates with no flag besides `--data` and `--model`."""

import json

import pytest
from datasets import Dataset
from helpers.commands import run_command
from helpers.models import make_model, make_tokenizer

TURNS = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}"
    "{% for call in m.get('tool_calls') or [] %}{{ call | tojson }}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
WORDS = ("red", "green", "blue", "one", "two", "three", "north", "south", "east", "west", "up", "down")
CALL = {"type": "function", "function": {"name": "find", "arguments": {"colour": "red"}}}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


def alpaca(word):
    return {"instruction": f"Say {word}", "input": "", "output": word, "system": "Be brief.", "history": [["Hi", "Ho"]]}


def sharegpt(word):
    return {"conversations": [{"from": "human", "value": f"Say {word}"}, {"from": "gpt", "value": word}]}


def openai(word):
    turns = [{"role": "user", "content": f"Find {word}"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    turns += [{"role": "tool", "content": f"{word}!"}, {"role": "assistant", "content": word}]
    return {"messages": turns, "tools": TOOLS}


def completion(word):
    return {"prompt": f"Say {word}", "completion": word}


def question(word):
    return {"question": f"What is {word}?", "answer": f"It is {word}.\n#### 7"}


def review(word):
    return {"text": f"It was {word}.", "label": "good" if len(word) % 2 else "bad"}


def write_lines(folder, build):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(build(word)) + "\n" for word in WORDS), "utf-8")
    return path


def write_csv(folder, build):
    rows = [build(word) for word in WORDS]
    path = folder / "rows.csv"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_shards(folder, build):
    """A clone of a hub repository: numbered Parquet files below `data/`."""
    (folder / "clone" / "data").mkdir(parents=True)
    for number, start in enumerate((0, 6)):
        rows = Dataset.from_list([build(word) for word in WORDS[start : start + 6]])
        rows.to_parquet(str(folder / "clone" / "data" / f"train-0000{number}-of-00002.parquet"))
    return folder / "clone"


KINDS = {
    "alpaca with history": (write_lines, alpaca),
    "ShareGPT": (write_lines, sharegpt),
    "OpenAI with tools": (write_lines, openai),
    "prompt and completion": (write_lines, completion),
    "question and answer": (write_lines, question),
    "reviews with labels": (write_csv, review),
    "Parquet shards": (write_shards, question),
}


@pytest.fixture(params=["tutorial", "chat"])
def model(request, tmp_path, model_folder):
    """A BLOOM without a chat template, and a Llama with one."""
    if request.param == "tutorial":
        return model_folder
    make_model("llama").save_pretrained(tmp_path / "llama")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_answers_and_evaluates(capfd, model, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write, build = KINDS[kind]
    data = write(tmp_path, build)
    steps = ("--max-steps", 2, "--virtual-tokens", 3, "--eval-fraction", 0.25)
    trained = run_command(capfd, "train", "--model", model, "--data", data, *steps)
    assert trained.status == 0, trained.err
    assert "9 rows" in trained.out and "held out: 3 rows" in trained.out
    assert ("choice accuracy on 3 held-out rows of 2 labels" in trained.out) == (kind == "reviews with labels")
    answered = run_command(capfd, "generate", "--instructions", data, "--no-do-sample", "--max-new-tokens", 3,
                           "--output-file", "answers.jsonl")  # fmt: skip
    assert answered.status == 0, answered.err
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    asked = next(iter(build("red")))
    assert len(answers) == 12 and all(asked in row and "answer" in row for row in answers)
    scored = run_command(capfd, "evaluate", "prompt.safetensors", "--eval-generate", 2, "--max-new-tokens", 3)
    assert scored.status == 0, scored.err
    assert ("choice accuracy %" in scored.out) == (kind == "reviews with labels")


def test_a_run_that_learnt_last_turns_is_scored_on_last_turns(capfd, model, tmp_path, monkeypatch):
    """Its own rows are found again, and the labels counted are those of the training."""
    monkeypatch.chdir(tmp_path)
    data = write_lines(tmp_path, openai)
    steps = ("--max-steps", 2, "--virtual-tokens", 3, "--eval-fraction", 0.25)
    counts = {}
    for name, flag in (("all", ()), ("last", ("--last-turn-only",))):
        file = f"{name}.safetensors"
        words = ("--model", model, "--data", data, *steps, "--prompt-file", file, *flag)
        trained = run_command(capfd, "train", *words)
        assert trained.status == 0, trained.err
        scored = run_command(capfd, "evaluate", file, "--eval-generate", 0, "--output-file", f"{name}.json")
        assert scored.status == 0, scored.err
        rows = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["rows"]
        counts[name] = sum(row["num_supervised"] for row in rows)
        assert f"held out: 3 rows, {counts[name]} supervised tokens" in trained.out
    assert 0 < counts["last"] < counts["all"]
