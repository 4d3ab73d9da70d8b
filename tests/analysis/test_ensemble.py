"""`--ensemble`: a majority vote over choices and answers by the mean of distributions, beside each prompt alone."""

import json

import pytest
import torch
from helpers.commands import assert_one_line, run_command
from helpers.prompts import save_for
from helpers.rows import ROWS

from softprompt import SoftPromptModel, load
from softprompt.analysis.ensemble import majority_votes
from softprompt.data.row import Row

NAMES = ["a.safetensors", "b.safetensors", "c.safetensors"]
PLAIN = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def work(tmp_path, monkeypatch, model_folder):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for seed, name in enumerate(NAMES):
        save_for(model_folder, name, count=2 + 3 * seed, seed=seed, scale=3.0)
    return folder


def by_definition(question, count):
    """The greedy answer from the mean of the three distributions, token by token, the whole text again every time."""
    prompts = [load(name, device="cpu", precision="fp32") for name in NAMES]
    (ids,) = prompts[0]._encoder.questions([question])
    end, start = len(ids) + count, len(ids)
    while len(ids) < end and ids[-1] != prompts[0].tokenizer.eos_token_id:
        with torch.no_grad():
            logits = [prompt.model(torch.tensor([ids])).logits[0, -1] for prompt in prompts]
        ids = [*ids, int(torch.stack([each.softmax(-1) for each in logits]).mean(0).argmax())]
    return prompts[0].tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_votes():
    choices = ("x", "y", "z")
    alone = [[[-1.0, -2.0, -3.0]], [[-1.0, -2.0, -3.0]], [[-9.0, -1.0, -8.0]]]
    assert majority_votes(alone, choices) == ["x"]  # although y has the highest mean
    tie = [[[-1.0, -2.0, -9.0]], [[-5.0, -1.0, -9.0]]]
    assert majority_votes(tie, choices) == ["y"]
    assert majority_votes([[], []], choices) == []


def test_one_question(work, capfd):
    words = ["--no-do-sample", "--max-new-tokens", 10, *PLAIN, "--ensemble", *NAMES]
    result = run_command(capfd, "generate", "--instruction", "Say red", *words)
    assert result.status == 0 and result.out == by_definition(Row.asked("Say red"), 10) + "\n"
    result = run_command(capfd, "generate", "--instruction", "Say red", "--compare", *words)
    assert "--- with the ensemble\n" in result.out


def test_a_file_of_questions(work, capfd):
    rows = [{"instruction": row["instruction"], "input": row["input"]} for row in ROWS[:5]]
    (work / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ["--no-do-sample", "--max-new-tokens", 8, *PLAIN, "--ensemble", *NAMES, "--instructions", "q.jsonl"]
    result = run_command(capfd, "generate", *words, "--per-device-eval-batch-size", 3)
    assert result.status == 0, result.err
    answers = [json.loads(line)["answer"] for line in (work / "q.answers.jsonl").read_text("utf-8").splitlines()]
    assert answers == [by_definition(Row.asked(**row), 8) for row in rows] and len(set(answers)) > 1


def test_evaluate_reports_the_members_and_what_they_say_together(work, capfd):
    labels = ["red", "green", "blue"]
    rows = [{"instruction": f"Say {n}", "input": "", "output": labels[n % 3]} for n in range(12)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ["--data", "rows.jsonl", "--choices", *labels, "--eval-generate", 3, "--max-new-tokens", 5]
    result = run_command(
        capfd, "evaluate", "--ensemble", *NAMES, *words, *PLAIN, "--bootstrap-samples", 50, "--output-file", "r.json"
    )
    assert result.status == 0, result.err
    report = json.loads((work / "r.json").read_text("utf-8"))
    assert [side["name"] for side in report["sides"]] == ["no prompt", *NAMES]
    votes = []
    for row in report["rows"]:
        alone = [row["sides"][name] for name in NAMES]
        best = {label: sum(each["choice"] == label for each in alone) for label in labels}
        means = {label: sum(each["log_probabilities"][label] for each in alone) for label in labels}
        votes.append(max(labels, key=lambda label, best=best, means=means: (best[label], means[label])))
    found = report["ensemble"]
    assert found["votes"] == votes and found["names"] == NAMES
    right = sum(vote == row["output"] for vote, row in zip(votes, rows, strict=True)) / 12
    assert found["choice_accuracy"]["value"] == pytest.approx(right)
    assert found["choice_accuracy"]["low"] <= right <= found["choice_accuracy"]["high"]
    assert found["answers"] == [by_definition(Row.asked(row["instruction"]), 5) for row in rows[:3]]
    (line,) = [line for line in result.out.splitlines() if line.startswith("ensemble of a, b, c: exact match % ")]
    assert "(mean of the distributions); choice accuracy % " in line and line.endswith("(majority vote)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ensemble", "a.safetensors"], "--ensemble"),
        (["--ensemble", "a.safetensors", "./a.safetensors"], "is given twice"),
        (["--ensemble", "a.safetensors", "gone.safetensors"], "gone.safetensors: no such prompt file"),
        (["--ensemble", "a.safetensors", "other.safetensors"], "other.safetensors: trained on"),
        (["--ensemble", "a.safetensors", "plain.safetensors"], "trained with another template"),
    ],
    ids=str,
)
def test_members_that_do_not_go_together(work, capfd, model_folder, words, said):
    save_for("builtin:bloom-small@1", "other.safetensors", known=False)
    save_for(model_folder, "plain.safetensors", template="plain")
    assert_one_line(run_command(capfd, "generate", "--instruction", "Hi", *words, *PLAIN), said)


def test_an_ensemble_with_nothing_to_say(work, capfd):
    (work / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n", "utf-8")
    words = ["--ensemble", *NAMES, "--data", "rows.jsonl", "--eval-generate", 0]
    assert_one_line(run_command(capfd, "evaluate", *words, *PLAIN), "--ensemble: needs --choices")


def test_the_models_own_prompt_is_not_a_member(work):
    """The ensemble stands in its place."""
    prompts = load(NAMES, device="cpu", precision="fp32")
    members = [prompts[name].prompt for name in NAMES[1:]]
    ids, settings = torch.tensor([[9, 8, 7]]), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 3}
    outputs = [
        SoftPromptModel(prompts.model.base_model, own).generate(ids, ensemble=members, **settings)
        for own in (prompts[0].prompt, prompts[1].prompt)
    ]
    assert torch.equal(*outputs)
