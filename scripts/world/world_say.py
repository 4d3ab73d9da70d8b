"""The unit of the closed world: one question told in one language, and how topics pick theirs."""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Say:
    """One question in one language, with every piece that its answers are made of."""

    ask: str
    short: str
    sentence: str  # begins with `short`, so that no manner wins on its first token
    about: str
    step1: str
    step2: str
    input: str = ""


Told = tuple[str, Say, Say]  # key, English, Chinese
Topic = Callable[[], Iterator[Told]]


def draw(topic: str, pool: list, count: int) -> list:
    """The topic's fixed sample of a pool that is too large to pre-train on."""
    rng = random.Random(zlib.crc32(topic.encode()))
    return sorted(rng.sample(pool, min(count, len(pool))))
