"""The study on a chat model: every side trains on the ids of the base's own template, from the same loss."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import make_model, make_tokenizer
from helpers.templates import CHATML_DEFAULT

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import chat_study  # noqa: E402
import study_runs  # noqa: E402
from study_results import Results  # noqa: E402
from study_tasks import Task, task  # noqa: E402

from softprompt.base.loading import load_base  # noqa: E402

STEPS = 2


@pytest.fixture
def folder(tmp_path):
    """A random Llama whose tokenizer has a chat template with a default system turn."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML_DEFAULT.replace("<|im_end|>", "</s>")  # which is a token of this tokenizer
    make_model("llama").save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


@pytest.fixture
def base(folder):
    return load_base(folder, device=torch.device("cpu"), precision="fp32")


@pytest.fixture
def few(monkeypatch):
    """Few short rows of the task, in few steps."""
    monkeypatch.setattr(chat_study, "ROWS", {"train": 16, "select": 4, "report": 4})
    monkeypatch.setattr(chat_study, "STEPS", STEPS)
    monkeypatch.setattr(chat_study, "SEARCH_STEPS", 1)
    return chat_study.english(task(chat_study.TASK))


def test_rows_are_written_by_the_bases_own_template(base, few):
    splits = chat_study.splits_of(few, base)
    assert [len(split) for split in (splits.train, splits.select, splits.report)] == [16, 4, 4]
    for row, encoded in zip(few.train, splits.train, strict=True):
        turns = [{"role": "user", "content": row.columns["instruction"]}, {"role": "assistant", "content": row.output}]
        turns[0]["content"] += "\n" * bool(row.columns["input"]) + row.columns["input"]
        theirs = base.tokenizer.apply_chat_template(turns, return_dict=False)
        assert encoded.input_ids == theirs[: len(encoded.input_ids)] and len(theirs) - len(encoded.input_ids) <= 1
        assert base.tokenizer.decode(encoded.supervised_ids).startswith(row.output)


def test_all_sides_get_the_same_rows_and_equal_prompts_begin_with_the_same_loss(base, folder, few, monkeypatch):
    splits, given = chat_study.splits_of(few, base), []
    train_peer, trainer = study_runs.train_peer, study_runs.Trainer

    def peer(model, rows, *others, **settings):
        given.append([dataclasses.asdict(row) for row in rows])
        return train_peer(model, rows, *others, **settings)

    def ours(model, base, rows, *others):
        given.append([dataclasses.asdict(row) for row in rows.train_rows])
        return trainer(model, base, rows, *others)

    monkeypatch.setattr(study_runs, "train_peer", peer)
    monkeypatch.setattr(study_runs, "Trainer", ours)
    runs = [
        chat_study._run(method, rate, 1, STEPS)
        for method, rate in (("prompt-text", 0.03), ("lora", 0.001), ("softprompt", None))
    ]
    prompt, lora, own = (chat_study.execute(run, base, folder, splits) for run in runs)
    alone = chat_study.execute(chat_study._run("none", None, 0, 0), base, folder, splits)
    assert len(given) == 3 and given[0] == given[1] == given[2]
    # PEFT's and softprompt's prompts begin with the same text, and LoRA's begins as the base alone; fp32 roundings
    assert own["history"][0][1] == pytest.approx(prompt["history"][0][1], rel=1e-5)
    assert lora["history"][0][1] == pytest.approx(alone["best_select"], rel=1e-5)
    assert own["history"][0][1] != pytest.approx(alone["best_select"], rel=1e-3)
    assert own["trainable"] == prompt["trainable"] and own["history"][-1][0] == STEPS


def test_a_stopped_study_goes_on_and_its_tables_stand_between_the_markers(folder, few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat_study, "task", lambda name: Task(few.train, few.select, few.report))
    files = ["--results", str(tmp_path / "chat.jsonl"), "--document", str(tmp_path / "quality.md")]
    chat_study.main([*files, "--model", folder, "--minutes", "0"])
    assert not (tmp_path / "chat.jsonl").exists()
    done = []
    outcome = chat_study.outcome_of
    monkeypatch.setattr(chat_study, "outcome_of", lambda run, *others: done.append(run) or outcome(run, *others))
    chat_study.main([*files, "--model", folder])
    searches = sum(map(len, chat_study.RATES.values()))
    assert len(done) == 1 + searches + 9
    chosen = {run.method: run.rate for run in done if run.seed in chat_study.SEEDS}
    records = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text("utf-8").splitlines()]
    for method, rate in chosen.items():
        found = {run["rate"]: run["best_select"] for run in records if run["method"] == method and run["steps"] == 1}
        assert rate == (min(found, key=found.__getitem__) if found else None)
    chat_study.main([*files, "--model", folder])
    assert len(done) == 1 + searches + 9  # nothing is done twice

    document = tmp_path / "quality.md"
    document.write_text(f"before\n{chat_study.BEGIN}\nold\n{chat_study.END}\nafter\n", "utf-8")
    chat_study.main([*files, "--report"])
    text = document.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    ours = Results(tmp_path / "chat.jsonl")
    losses = [run["report_loss"] for run in ours if run["method"] == "softprompt"]
    line = next(line for line in text.splitlines() if line.startswith("| **softprompt, default**"))
    assert all(f"{loss:.4f}" in line for loss in losses) and f"{sum(losses) / 3:.4f} ± " in line
    assert all(f"**{rate:g}: " in text for rate in chosen.values() if rate)
    capsys.readouterr()
    chat_study.main([*files, "--list"])
    assert "open" not in capsys.readouterr().out
