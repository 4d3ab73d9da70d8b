"""The shipped rows: right answers of the world, three sets without overlap, and a base small enough to ship."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from world.manners import MANNERS, TASKS, answers  # noqa: E402
from world.world import questions  # noqa: E402

from softprompt.system.sources import MODELS, SAMPLE_QUESTION, data_folder  # noqa: E402

SIZES = {"train": 2000, "validation": 240, "test": 200}


def rows(task, split):
    path = data_folder(f"builtin:{task}") / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_rows_hold_the_right_answer_in_the_right_manner(task, split):
    found = rows(task, split)
    assert len(found) == SIZES[split]
    for row in found:
        assert list(row) == ["instruction", "input", "output"]
        assert row["output"] == answers(row["instruction"], row["input"])[task]


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_question(task):
    asked = [{(row["instruction"], row["input"]) for row in rows(task, split)} for split in SIZES]
    assert [len(part) for part in asked] == list(SIZES.values())
    assert len(set().union(*asked)) == sum(SIZES.values())


def test_every_question_has_six_different_answers():
    for question in questions():
        given = answers(question.own.ask, question.own.input)
        assert tuple(given) == MANNERS
        assert len(set(given.values())) == len(MANNERS)


def test_test_rows_are_of_questions_that_pretraining_leaves_out():
    unseen = {(q.own.ask, q.own.input) for q in questions() if q.split == "test"}
    assert all((row["instruction"], row["input"]) in unseen for row in rows("polite", "test"))
    assert not any((row["instruction"], row["input"]) in unseen for row in rows("polite", "validation"))


def test_sample_question_is_of_this_world():
    assert answers(SAMPLE_QUESTION)["short"] == "Paris"


def test_base_fits_in_twelve_megabytes():
    (folder,) = MODELS.values()
    assert 1e6 < sum(path.stat().st_size for path in folder.iterdir()) < 12e6
