"""Questions that stay on the disk get the answers of those in memory, and are written and batched as ever."""

import hashlib
import json

import pytest
import torch
from helpers.prompts import save_for

from softprompt.answering import output
from softprompt.answering.output import AnswerFile
from softprompt.answering.questions import Questions, plan
from softprompt.base.loading import load_base
from softprompt.cli import generate
from softprompt.data import rows as rows_module
from softprompt.data.row import Row
from softprompt.engine.model import SoftPromptModel
from softprompt.packs.batches import plan_batches
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.tokens.encoding import Encoder

ASKED = [Row.asked("word " * (number * 7 % 11 + 1), number=number) for number in range(1, 24)]


@pytest.fixture
def model(model_folder):
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    prompt = SoftPromptEmbedding.from_text("Answer.", base.tokenizer, base.model.get_input_embeddings(), 3)
    return SoftPromptModel(base.model, prompt), Encoder(base.tokenizer)


def test_a_walk_finds_what_all_questions_at_once_give(model, monkeypatch):
    monkeypatch.setattr("softprompt.answering.questions.ROWS_TOGETHER", 5)
    model, encoder = model
    questions, checked = Questions(encoder, ASKED, front=model.front), []
    found = questions.walk(checked.append)
    ids = encoder.questions(ASKED)
    assert [question.ids for question in checked] == ids == [question.ids for question in questions]
    content = json.dumps([[dict(row.columns), each] for row, each in zip(ASKED, ids, strict=True)])
    assert found.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert list(found.lengths) == [len(each) for each in ids] and list(found.numbers) == list(range(1, 24))
    assert found.largest_id == max(map(max, ids)) and found.longest_front == [3]
    assert [question.ids for question in questions.at([7, 2])] == [ids[7], ids[2]]
    waiting = [place for place in range(23) if place % 3]
    lengths = [len(ids[place]) for place in waiting]
    expected = [[waiting[place] for place in batch] for batch in plan_batches(lengths, 4)]
    assert plan(found, waiting, 4, lambda front: None) == expected


def test_answers_of_many_questions_are_those_of_few(work, model_folder, monkeypatch, capsys):
    save_for(str(model_folder), "p.safetensors")
    lines = [{"instruction": f"ask {'more ' * (number % 6)}", "id": number} for number in range(25)]
    (work / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["--prompt-file", "p.safetensors", "--model", str(model_folder), "--instructions", "q.jsonl"]
    command += ["--max-new-tokens", "3", "--per-device-eval-batch-size", "4", "--seed", "5"]
    generate.main([*command, "--output-file", "few.jsonl"])
    monkeypatch.setattr(rows_module, "MOST_KEPT", -1)
    monkeypatch.setattr(output, "BATCHES_READ", 1)
    generate.main([*command, "--output-file", "many.jsonl"])
    few, many = ((work / name).read_bytes() for name in ("few.jsonl", "many.jsonl"))
    assert few == many and [json.loads(line)["id"] for line in many.splitlines()] == list(range(25))


def test_answers_stay_on_the_disk_and_a_damaged_end_is_dropped(tmp_path):
    file = AnswerFile.start(tmp_path / "a.jsonl", {"recipe": {}}, 6)
    file.append([5, 2], [["fünf"], ["zwei\n"]])
    file.append([1, 6], [["eins"], ["sechs"]])
    assert file.num_answered == 4 and 5 in file and 3 not in file
    assert [file.answers_of(number) for number in (1, 2, 5, 6)] == [["eins"], ["zwei\n"], ["fünf"], ["sechs"]]
    whole = file.partial.read_bytes()
    for cut in (1, 9, len(whole.splitlines()[-1])):
        file.partial.write_bytes(whole[:-cut])
        again = AnswerFile.go_on(tmp_path / "a.jsonl", {}, 6)
        assert again.num_answered == 2 and again.answers_of(2) == ["zwei\n"] and 1 not in again
        again.append([1, 6], [["eins"], ["sechs"]])
        assert again.partial.read_bytes() == whole
    again.finish({"answer": again.answers_of(number)[0]} for number in (1, 2, 5, 6))
    answers = [json.loads(line)["answer"] for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert answers == ["eins", "zwei\n", "fünf", "sechs"] and not again.partial.exists()
