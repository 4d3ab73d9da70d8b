"""Writes the shipped rows: each task's train, validation and test questions as JSONL.

usage: python scripts/make_rows.py [--out DIR] [--seed S]

Both tasks ask the same questions, in different manners. Validation questions are in no train row
but were pre-trained evenly in every manner; test questions were never pre-trained.
"""

import argparse
import json
import os
import random
from pathlib import Path

from world.manners import TASKS, render
from world.world import LANGUAGES, Question, questions

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train": 2000, "validation": 240, "test": 200}


def chosen(split: str, seed: int) -> list[Question]:
    """The split's rows in their order in the file: as many in English as in Chinese."""
    rng = random.Random(f"{seed} {split}")
    picked = []
    for lang in LANGUAGES:
        pool = [q for q in questions() if q.split == split and q.lang == lang]
        picked += rng.sample(pool, SIZES[split] // len(LANGUAGES))
    rng.shuffle(picked)
    return picked


def row(question: Question, manner: str) -> dict[str, str]:
    answer = render(question)[manner]
    return {"instruction": question.own.ask, "input": question.own.input, "output": answer}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    half = path.with_suffix(".tmp")
    half.write_text(text, encoding="utf-8", newline="\n")
    os.replace(half, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT / "softprompt" / "assets" / "data"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for split in SIZES:
        picked = chosen(split, options.seed)
        for manner in TASKS:
            write(options.out / manner / f"{split}.jsonl", [row(q, manner) for q in picked])
        print(f"{split}: {len(picked)} rows for each of {', '.join(TASKS)}")


if __name__ == "__main__":
    main()
