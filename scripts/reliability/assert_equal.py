#!/usr/bin/env python
"""Compare two prompt files, or two run folders, to the bit, for use before and after a change of the code.

Usage: python scripts/reliability/assert_equal.py A B

Of prompt files the tensor and the metadata are compared, of run folders the prompts of the checkpoints and
metrics.jsonl; what tells how fast the machine was does not count. The exit status is 1, with the first difference in
one line, if there is one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from runs import records, without_clock  # noqa: E402

from softprompt.errors import UserError  # noqa: E402
from softprompt.prompt.file import load_prompt  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, help="a prompt file or a run folder")
    parser.add_argument("b", type=Path, help="what to compare with it")
    args = parser.parse_args()
    try:
        found = difference(args.a, args.b)
    except (UserError, OSError) as error:
        found = str(error)
    if found:
        print(found)
    return 1 if found else 0


def difference(a: Path, b: Path) -> str:
    """The first difference of two prompt files or run folders in one line, or an empty text."""
    if a.is_dir() != b.is_dir():
        return f"{a} and {b}: one is a folder"
    return of_folders(a, b) if a.is_dir() else of_prompts(a, b)


def of_folders(a: Path, b: Path) -> str:
    names = [sorted(str(path.relative_to(each)) for path in each.rglob("*.safetensors")) for each in (a, b)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        return f"{only[0]}: in one of the two folders only"
    for name in names[0]:
        if Path(name).name == "state.safetensors":  # its options name paths; the prompt and the metrics say the rest
            continue
        if found := of_prompts(a / name, b / name):
            return found
    return of_metrics(a / "metrics.jsonl", b / "metrics.jsonl")


def of_metrics(a: Path, b: Path) -> str:
    one, other = records(a), records(b)
    for line, (first, second) in enumerate(zip(one, other, strict=False), start=1):
        if found := of_values(first, second):
            return f"{a}, line {line}: {found}"
    return "" if len(one) == len(other) else f"{a}: {len(one)} lines, {b}: {len(other)}"


def of_prompts(a: Path, b: Path) -> str:
    one, other = load_prompt(a), load_prompt(b)
    if one.weight.shape != other.weight.shape:
        return f"{a}: shape {list(one.weight.shape)}, {b}: {list(other.weight.shape)}"
    if one.weight.numpy().tobytes() != other.weight.numpy().tobytes():
        far = (one.weight - other.weight).abs().max().item()
        return f"{a} and {b}: other tensors, at most {far:.3g} apart"
    found = of_values(plain(one.metadata), plain(other.metadata))
    return f"{a} and {b}: {found}" if found else ""


def plain(metadata: dict[str, str]) -> dict[str, Any]:
    """Metadata to compare: without the checksum, which follows from the rest, and without the clock."""
    kept: dict[str, Any] = {key: value for key, value in metadata.items() if key != "sha256"}
    if kept.get("training"):
        kept["training"] = without_clock(json.loads(kept["training"]))
    return kept


def of_values(one: dict[str, Any], other: dict[str, Any]) -> str:
    for key in sorted(one.keys() | other.keys()):
        first, second = (json.dumps(each.get(key)) for each in (one, other))  # NaN is equal to itself as text
        if first != second:
            return f"{key} is {first[:80]} and {second[:80]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
