"""The study's tasks: for each three lists of Alpaca rows, to train, to select by and to report on.

Rows follow from `scripts/world/` and `study_words.py`; which list a question belongs to follows from its key, so a
question's two languages are never in two lists. Reported and tuning tasks share no question: softprompt's defaults may
be chosen on the latter only.
"""

import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from unittest.mock import patch

import paths  # noqa: F401
from study_words import categories, past_tenses
from world import world_numbers, world_stories
from world.world import Question, questions
from world.world_say import draw

from softprompt.data.row import Row

REPORTED = {"bloom": ("topic", "record", "unseen"), "smollm2": ("category",)}
TUNING = {"bloom": ("kind", "equation", "other"), "smollm2": ("past",)}
LIMITS = {"bloom": ("foreign",)}  # what a prompt in front of frozen weights cannot do
FRESH = 200  # questions of a topic, beyond those that the world holds
DRAWN = (world_numbers.subtraction, world_numbers.comparison, *world_stories.STORIES)

NUMBERS = {"addition", "subtraction", "multiplication", "comparison", "sequence", "units", "month_days"}
NUMBERS |= {"left_over", "together"}
PLACES = {"capital", "country", "place"}
LABELS = {
    "addition": "plus",
    "subtraction": "minus",
    "multiplication": "times",
    "comparison": "larger",
    "parity": "kind",
    "sequence": "after",
    "units": "metres",
    "weekday": "day",
    "month": "month",
    "introduction": "your",
    "taste": "likes",
    "giving": "has",
    "left_over": "left",
    "together": "together",
    "place": "place",
    "capital": "capital",
    "country": "country",
    "month_days": "days",
    "opposite": "opposite",
    "translation": "word",
    "group": "group",
    "colour": "colour",
}


@dataclass(frozen=True)
class Task:
    """Rows of one task; no question is in two of the lists."""

    train: list[Row]
    select: list[Row]
    report: list[Row]


@cache
def task(name: str) -> Task:
    """The rows of a task by its name; the same on every machine."""
    if name in WORLD_TASKS:
        build, reported, fresh = WORLD_TASKS[name]
        return _world_task(name, build, reported, fresh)
    if name == "category":
        ask, pairs, sizes = "Which category does '{}' belong to?", categories(), (260, 60, 100)
    elif name == "past":
        ask, pairs, sizes = "What is the past tense of '{}'?", past_tenses(), (120, 40, 40)
    else:
        raise KeyError(f"no task {name!r}")
    return _split(name, [[(ask.format(word), "", answer)] for word, answer in pairs], sizes)


def _world_task(name: str, build: Callable[[Question], str], reported: bool, fresh: bool) -> Task:
    """A task over half of the world: two thirds of the keys are the reported tasks', one third the tuning tasks'."""
    pool = fresh_questions() if fresh else [q for q in questions() if q.split != "test"]
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for question in pool:
        key = f"{question.topic}/{question.key}"
        # another hash than the one that splits the world, with which it would be tied
        if (zlib.crc32(f"study {key}".encode()) % 3 != 0) == reported:
            groups.setdefault(key, []).append((question.own.ask, question.own.input, build(question)))
    return _split(name, list(groups.values()), (2000, 160, 320) if reported else (1000, 160, 200))


def _split(name: str, groups: list[list[tuple[str, str, str]]], sizes: tuple[int, int, int]) -> Task:
    """Shuffle whole groups and deal them out: report, select, then as many to train as there are, up to its size."""
    random.Random(name).shuffle(groups)
    rows = [Row.asked(*group, number=number) for number, group in enumerate(_flat(groups), 1)]
    train, select, report = sizes
    start = report + select
    return Task(train=rows[start : start + train], select=rows[report:start], report=rows[:report])


def _flat(groups: Iterable[list]) -> list:
    return [entry for group in groups for entry in group]


@cache
def fresh_questions() -> list[Question]:
    """Questions that were never pre-trained: the world's test split, and what its draws from larger pools left out."""
    found = [q for q in questions() if q.split == "test"]
    with patch.object(world_numbers, "draw", _undrawn), patch.object(world_stories, "draw", _undrawn):
        for topic in DRAWN:
            for key, en, zh in topic():
                for lang, own, other in (("en", en, zh), ("zh", zh, en)):
                    found.append(Question(topic.__name__, key, lang, "fresh", own, other))
    return found


def _undrawn(topic: str, pool: list, count: int) -> list:
    """Some of the pool that `draw` does not give."""
    drawn = draw(topic, pool, count)
    rng = random.Random(zlib.crc32(f"study {topic}".encode()))
    sample = rng.sample(pool, min(count + FRESH, len(pool)))
    return [entry for entry in sample if entry not in drawn][:FRESH]


def topic(question: Question) -> str:
    """Classification: one of 22 labels, a word of the topic's questions."""
    return f"- Topic: {LABELS[question.topic]}"


def record(question: Question) -> str:
    """A format that was never pre-trained, of words and marks that were."""
    if question.lang == "en":
        return f"- Answer: {question.own.short}. - Topic: {question.own.about}."
    return f"- 答案：{question.own.short}。- 题目：{question.own.about}。"


def short(question: Question) -> str:
    """Question answering in a manner that was pre-trained."""
    return question.own.short


def kind(question: Question) -> str:
    """Classification: what sort of thing the answer is, one of 4."""
    if question.topic in NUMBERS:
        label = "number"
    elif question.topic in PLACES or (question.topic == "introduction" and question.key.endswith("False")):
        label = "place"
    else:
        label = "name" if question.topic in ("introduction", "giving") else "word"
    return f"- Answer: {label}"


def equation(question: Question) -> str:
    """Another format that was never pre-trained."""
    return f"{question.own.about} = {question.own.short}"


def other(question: Question) -> str:
    """The short answer in the language that the question does not use."""
    return question.other.short


def foreign(question: Question) -> str:
    """A format with words and marks whose tokens the base never wrote, so their rows of its head were never trained."""
    return f"answer = {question.own.short}; asked = {question.own.about};"


# name: answer, whether it is reported, whether its questions are those never pre-trained
WORLD_TASKS = {
    "topic": (topic, True, False),
    "record": (record, True, False),
    "unseen": (short, True, True),
    "foreign": (foreign, True, False),
    "kind": (kind, False, False),
    "equation": (equation, False, False),
    "other": (other, False, True),
}
