"""Rows that have nothing to do with the text: the base alone is their teacher, and its answers are kept."""

import json

import pytest
import torch
from helpers.commands import assert_one_line, run_command
from helpers.rows import ROWS
from transformers import AutoModelForCausalLM

from softprompt import load_prompt
from softprompt.config.commands import TrainConfig
from softprompt.distillation.inputs import load_all_inputs


@pytest.fixture
def settings(work, model_folder):
    (work / "rules.txt").write_text("Say every word twice, and be kind.\n", "utf-8")
    for name, count, word in (("questions", 10, "Say"), ("unrelated", 5, "Sing")):
        asked = [{"instruction": row["instruction"].replace("Say", word)} for row in ROWS[:count]]
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    return {
        "distill_text": "rules.txt", "model": str(model_folder), "data": "questions.jsonl", "virtual_tokens": 3,
        "distill_new_tokens": 7, "max_steps": 4, "eval_fraction": 0.3, "precision": "fp32",
        "distill_replay": "unrelated.jsonl", "distill_answers": 2,
    }  # fmt: skip


@pytest.fixture
def distil(settings, capfd):
    def run(*extra, **changes):
        words = [str(word) for name, value in (settings | changes).items() for word in ("--" + name, value)]
        words = [word.replace("_", "-") if word.startswith("--") else word for word in words]
        return run_command(capfd, "train", *words, *extra)

    return run


def test_the_base_alone_is_the_teacher_of_one_row_in_eight(settings):
    config, base, rows, objective = load_all_inputs(TrainConfig(**settings))
    own, replayed = rows.train_rows[:14], rows.train_rows[14:]  # 7 of 10 questions, answered twice
    assert len(replayed) == 2
    text = base.tokenizer("Say every word twice, and be kind.\n\n", add_special_tokens=False).input_ids
    untouched = AutoModelForCausalLM.from_pretrained(settings["model"])
    for row, front in [(own[0], text), (own[13], text), (replayed[0], []), (replayed[1], [])]:
        hidden = untouched.base_model(torch.tensor([front + row.input_ids])).last_hidden_state[0, len(front) :]
        places = [place - 1 for place, label in enumerate(row.labels) if label != -100]
        assert (objective.teacher.states(row) - hidden[places]).abs().max() < 1e-4
    assert all("Sing" in base.tokenizer.decode(row.input_ids) for row in replayed)
    assert rows.notes[-1] == "2 of the training rows are of unrelated.jsonl; the base alone is their teacher"


def test_its_answers_are_kept_and_a_resumed_run_reads_them(distil, work, monkeypatch):
    assert distil(prompt_file="whole.safetensors").status == 0
    kept = (work / "whole.run" / "replay.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == 2 and all("Sing" in line for line in kept)
    assert len((work / "whole.run" / "teacher.jsonl").read_text("utf-8").splitlines()) == 20
    whole = load_prompt("whole.safetensors")
    assert whole.facts.training["distilled_from"]["replay"] == 1
    other = distil("--overwrite", prompt_file="other.safetensors", distill_replay="questions.jsonl")
    assert other.status == 0 and not torch.equal(load_prompt("other.safetensors").weight, whole.weight)
    monkeypatch.setattr("softprompt.distillation.answers.generate_batch", None)
    again = distil("--resume", prompt_file="whole.safetensors")
    assert again.status == 0, again.err
    assert torch.equal(load_prompt("whole.safetensors").weight, whole.weight)
    for changes in ({"distill_replay": "builtin:polite"}, {"data": "unrelated.jsonl"}):
        ((option, _),) = changes.items()
        changed = distil("--resume", prompt_file="whole.safetensors", **changes)
        assert_one_line(changed, "--resume", f"other questions than those of --{option.replace('_', '-')}")


def test_a_file_without_questions_is_refused_before_the_teacher_answers(distil, work):
    (work / "empty.jsonl").write_text('{"instruction": " "}\n')
    assert_one_line(distil(distill_replay="empty.jsonl"), "--distill-replay empty.jsonl: holds no question")
    assert_one_line(distil(distill_replay="none.jsonl"), "--distill-replay none.jsonl")
    assert not (work / "prompt.run" / "teacher.jsonl").exists()
