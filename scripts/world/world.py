"""The closed world: every question over facts, rules and stories, in English and in Chinese.

Owns which question belongs to which split; `manners.py` renders the answers.
Everything is deterministic: no clock, no global random state.
"""

import zlib
from dataclasses import dataclass
from functools import cache

from world.world_numbers import RULES
from world.world_say import Say
from world.world_stories import STORIES
from world.world_topics import FACTS

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Question:
    """A question asked in `lang`; `key` names it in both languages, `split` says who may see it."""

    topic: str
    key: str
    lang: str
    split: str  # "train", "validation" (pre-trained, never tuned on) or "test" (never pre-trained)
    own: Say
    other: Say


# Facts cannot be worked out, so only what follows a rule may stay out of pre-training.
def split_of(topic: str, key: str, by_rule: bool) -> str:
    """The same for both languages, so that a test question is unseen in either."""
    place = zlib.crc32(f"{topic}/{key}".encode()) % 100
    if by_rule and place < 12:
        return "test"
    return "validation" if place >= 88 else "train"


@cache
def questions() -> tuple[Question, ...]:
    """Every question of the world, each key in English and then in Chinese."""
    found = []
    for topic in (*RULES, *FACTS, *STORIES):
        for key, en, zh in topic():
            split = split_of(topic.__name__, key, topic not in FACTS)
            for lang, own, other in (("en", en, zh), ("zh", zh, en)):
                found.append(Question(topic.__name__, key, lang, split, own, other))
    return tuple(found)
