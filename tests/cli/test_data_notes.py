"""What was noticed about the rows reaches whoever started the command, and whoever calls from Python."""

import json
import math

import pytest
from helpers.commands import run_command
from helpers.models import make_tokenizer
from helpers.prompts import save_for
from helpers.rows import ROWS, write

import softprompt
from softprompt.data.row import Row
from softprompt.tokens.encoded_splits import Cut, cut_of
from softprompt.tokens.encoding import Encoder

NOTE = "rows.jsonl: columns that hold something and are not used: source, id"


@pytest.fixture
def work(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "jsonl", [row | {"source": "web", "id": place} for place, row in enumerate(ROWS)])
    return tmp_path


@pytest.fixture
def train(capfd, work, model_folder):
    def run(*extra, data="rows.jsonl"):
        flags = ["--model", model_folder, "--data", data, "--virtual-tokens", 4, "--device", "cpu", "--max-steps", 1]
        result = run_command(capfd, "train", *flags, "--overwrite", *extra)
        assert result.status == 0, result.err
        return result.out.splitlines()

    return run


def test_training_says_each_note_once_below_the_lines_of_the_rows(train, work):
    write(work, "jsonl", [ROWS[0] | {"instruction": "other", "source": "web", "id": 1}], "held")
    lines = train("--eval-data", "held.jsonl")
    place = lines.index(f"note: {NOTE}")
    assert lines[place - 1].startswith("held out: ") and lines.count(f"note: {NOTE}") == 1
    assert lines[place + 1] == f"note: {NOTE.replace('rows', 'held')}"
    assert not [line for line in train(data=write(work, "jsonl", ROWS, "plain")) if line.startswith("note: plain")]


def test_python_keeps_the_notes(work, model_folder):
    trained = softprompt.train("rows.jsonl", str(model_folder), 4, device="cpu", max_steps=1, progress=False)
    assert trained.rows.notes == [NOTE]


def test_scoring_and_answering_say_them_too(capfd, work, model_folder):
    save_for(model_folder, "prompt.safetensors")
    words = ["--prompt-file", "prompt.safetensors", "--device", "cpu"]
    result = run_command(capfd, "evaluate", *words, "--data", "rows.jsonl", "--eval-generate", 0)
    assert result.status == 0 and f"note: {NOTE}" in result.out.splitlines()
    rows = [{"id": 7, "instruction": "a", "answer": "x"}, {"id": "b", "input": " "}]
    result = run_command(capfd, "generate", *words, "--instructions", write(work, "jsonl", rows, "q"), "--no-do-sample")
    assert result.status == 0 and result.out == ""
    notes = [line for line in result.err.splitlines() if line.startswith("note: ")]
    assert notes[0].endswith("the column answer is read as output") and len(notes) == 2  # which is left aside
    assert notes[1].endswith("1 without a question skipped: row 2")
    (answer,) = [json.loads(line) for line in (work / "q.answers.jsonl").read_text("utf-8").splitlines()]
    assert answer.keys() == {"id", "instruction", "input", "answer"} and answer["id"] == 7


def test_numbers_are_carried_into_the_answers_as_they_are_written(capfd, work, model_folder):
    save_for(model_folder, "prompt.safetensors")
    (work / "q.jsonl").write_text('{"instruction": "a", "n": 7.10, "id": 9007199254740993, "tags": ["x", 1e3]}\n')
    words = ["--prompt-file", "prompt.safetensors", "--device", "cpu", "--instructions", "q.jsonl"]
    assert run_command(capfd, "generate", *words, "--no-do-sample").status == 0
    wanted = '{"instruction": "a", "input": "", "n": 7.10, "id": 9007199254740993, "tags": ["x", 1e3], "answer": '
    assert (work / "q.answers.jsonl").read_text("utf-8").startswith(wanted)


def test_rows_that_lose_their_end_are_counted_with_a_length_that_keeps_them(train, work):
    """A token of this tokenizer is a byte, so lengths can be counted by hand."""
    asked = len("Human: q\n\nAssistant: ")
    outputs = ["x" * place for place in range(1, 201)]
    write(work, "jsonl", [{"instruction": "q", "output": output} for output in outputs], "long")
    whole = asked + 198 + 1  # 198 of 200 rows, each with its eos
    for length in (whole, whole - 10, asked + 100):
        lost = sum(asked + len(output) + 1 > length for output in outputs)
        lines = train("--max-length", length, "--eval-fraction", 0, data="long.jsonl")
        (line,) = [line for line in lines if "--data" in line]
        assert f"; {lost} cut before their end by --max-length; --max-length {whole} would keep 99 % of the" in line
        assert line.startswith("warning: ") == (lost > 20)
    (line,) = [line for line in train("--max-length", 300, "--eval-fraction", 0, data="long.jsonl") if "--data" in line]
    assert "cut before" not in line and not line.startswith("warning")


def test_the_cut_is_that_of_the_definition():
    rows = [Row.asked("q", "", "x" * (place % 17), place) for place in range(1, 60)]
    tokenizer = make_tokenizer()
    for length in (5, 25, 30, 100):
        encoded = Encoder(tokenizer).encode(rows, max_length=length)
        whole = [len(each.input_ids) for each in Encoder(tokenizer).encode(rows, max_length=10_000)]
        enough = min(size for size in whole if sum(each <= size for each in whole) >= math.ceil(0.99 * len(rows)))
        assert cut_of(encoded, length) == Cut(len(rows), sum(each > length for each in whole), enough)
    assert cut_of([], 5) == Cut()
