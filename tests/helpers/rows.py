"""Ten Alpaca rows, and rows stored in every format that `--data` reads."""

import csv
import json

from datasets import Dataset

ROWS = [
    {"instruction": f"Say {word}", "input": "twice" if place % 3 == 0 else "", "output": f"{word} {word}"}
    for place, word in enumerate(["red", "green", "blue", "one", "two", "three", "north", "south", "east", "west"])
]


def tutorial_question(instruction, input=""):
    """The text in front of the answer, as the tutorial's preprocessing writes it."""
    return ("Human: " + instruction + "\n" + input).strip() + "\n\nAssistant: "


FORMATS = ("json", "jsonl", "csv", "parquet", "save_to_disk")


def write(folder, kind, rows, stem="rows"):
    """Store rows in one of the formats; returns what `--data` is given."""
    path = folder / (stem if kind == "save_to_disk" else f"{stem}.{kind}")
    if kind == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    else:
        Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)
