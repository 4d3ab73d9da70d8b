#!/usr/bin/env python
"""Compare two prompt files, training states or run folders, for use before and after a change of the code.

Usage: python scripts/reliability/assert_equal.py A B [--tolerance 0.001]
       python scripts/reliability/assert_equal.py --reference [--renew]

Of prompt files and states the tensors and the metadata are compared, of run folders every prompt and state in them and
metrics.jsonl. What tells how fast the machine was, and where a run's files are, does not count. Without a tolerance the
comparison is to the bit. With one, a number may differ by that share of the larger one, and a tensor by that share of
its RMS. The exit status is 1, with the first difference in one line, if there is one.

`--reference` trains a short run on the shipped base and compares it with the one that is stored in tests/reference,
with a tolerance of 0.001: other processors and versions of PyTorch add in another order, which shows in the last digits
of fp32 and grows with the steps. (Without AVX-512, or without any vector instructions, the prompt of this run differs
by 0.0003 of its RMS.) `--renew` stores the run instead, after a change that is meant to change it.
"""

import argparse
import json
import math
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from runs import LOG, ROOT, records, start, without_clock  # noqa: E402
from torch import Tensor  # noqa: E402

from softprompt.errors import UserError  # noqa: E402
from softprompt.prompt.file import load_prompt  # noqa: E402
from softprompt.training.state_file import DTYPES, FORMAT, Damaged, read_state  # noqa: E402

REFERENCE = ROOT / "tests" / "reference"
REFERENCE_RUN = (
    "train --device cpu --precision fp32 --virtual-tokens 4 --max-steps 12 --max-train-rows 40 --eval-fraction 0.2"
    " --per-device-train-batch-size 4 --gradient-accumulation-steps 1 --logging-steps 4 --eval-steps 6"
    " --data rows.jsonl --prompt-file prompt.safetensors --run-dir run"
)
REFERENCE_TOLERANCE = 1e-3
PLACES = ("prompt_file", "data")  # keys of a state that tell where files are
FOLLOWS = "sha256"  # the checksum, which follows from the rest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, nargs="?", help="a prompt file, a state.safetensors or a run folder")
    parser.add_argument("b", type=Path, nargs="?", help="what to compare with it")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share by which numbers may differ")
    parser.add_argument("--reference", action="store_true", help="compare a short run with the stored one")
    parser.add_argument("--renew", action="store_true", help="store the short run instead")
    args = parser.parse_args()
    if not args.reference and args.b is None:
        parser.error("give A and B, or --reference")
    try:
        found = of_reference(renew=args.renew) if args.reference else difference(args.a, args.b, args.tolerance)
    except (UserError, Damaged, OSError, ValueError) as error:
        found = str(error)
    if found:
        print(found)
    return 1 if found else 0


def difference(a: Path, b: Path, tolerance: float = 0.0) -> str:
    """The first difference of two prompt files, states or run folders in one line, or an empty text."""
    if a.is_dir() != b.is_dir():
        return f"{a} and {b}: one is a folder"
    return of_folders(a, b, tolerance) if a.is_dir() else of_files(a, b, tolerance)


def of_folders(a: Path, b: Path, tolerance: float) -> str:
    names = [sorted(str(path.relative_to(each)) for path in each.rglob("*.safetensors")) for each in (a, b)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        return f"{only[0]}: in one of the two folders only"
    for name in names[0]:
        if found := of_files(a / name, b / name, tolerance):
            return found
    return of_metrics(a / "metrics.jsonl", b / "metrics.jsonl", tolerance)


def of_metrics(a: Path, b: Path, tolerance: float) -> str:
    one, other = records(a), records(b)
    for line, (first, second) in enumerate(zip(one, other, strict=False), start=1):
        if found := of_values(first, second, tolerance):
            return f"{a}, line {line}: {found}"
    return "" if len(one) == len(other) else f"{a}: {len(one)} lines, {b}: {len(other)}"


def of_files(a: Path, b: Path, tolerance: float) -> str:
    """The first difference of two prompt files or of two states."""
    kinds = [is_state(each) for each in (a, b)]
    if kinds[0] != kinds[1]:
        return f"{a} and {b}: one is a prompt file, the other a state"
    (one, first), (other, second) = (content_of(each, is_state=kinds[0]) for each in (a, b))
    if one.keys() != other.keys():
        return f"{a} and {b}: {sorted(one.keys() ^ other.keys())[0]} is in one of the two only"
    for name in sorted(one):
        if found := of_tensors(one[name], other[name], tolerance):
            return f"{a} and {b}: {name} {found}"
    found = of_values(first, second, tolerance)
    return f"{a} and {b}: {found}" if found else ""


def is_state(path: Path) -> bool:
    """Whether a safetensors file is a state of a run."""
    metadata = header_of(path).get("__metadata__")
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def header_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, or an empty one of what is none."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if length > path.stat().st_size:
            return {}
        header = json.loads(file.read(length) or b"{}")
    return header if isinstance(header, dict) else {}


def content_of(path: Path, *, is_state: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a prompt file or a state, whose checksum is looked at, and what else is to be compared."""
    if not is_state:
        file = load_prompt(path)
        kept: dict[str, Any] = {key: value for key, value in file.metadata.items() if key != FOLLOWS}
        if kept.get("training"):
            kept["training"] = without_clock(json.loads(kept["training"]))
        return {"the prompt": file.weight}, kept
    layout = {}
    for name, spec in header_of(path).items():
        if name != "__metadata__":
            layout[name] = DTYPES[spec["dtype"]], tuple(range(size, size + 1) for size in spec["shape"])
    content, tensors = read_state(path, layout, lambda content: None)
    return tensors, {key: value for key, value in content.items() if key not in PLACES}


def of_tensors(one: Tensor, other: Tensor, tolerance: float) -> str:
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"is {one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
    if one.numpy().tobytes() == other.numpy().tobytes():
        return ""
    far = (one.double() - other.double()).abs().max().item()
    if tolerance and far <= tolerance * one.double().square().mean().sqrt().item():
        return ""
    return f"has other numbers, at most {far:.3g} apart"


def of_values(one: Any, other: Any, tolerance: float) -> str:
    """The first difference of two values from JSON, or an empty text."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if found := of_values(one.get(key), other.get(key), tolerance):
                return f"{key} {found}"
        return ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next((found for pair in zip(one, other, strict=True) if (found := of_values(*pair, tolerance))), "")
    numbers = tolerance and isinstance(one, float) and isinstance(other, float)
    if numbers and math.isclose(one, other, rel_tol=tolerance):
        return ""
    first, second = (json.dumps(each) for each in (one, other))  # NaN is equal to itself as text
    return f"is {first[:80]} and {second[:80]}" if first != second else ""


def of_reference(*, renew: bool) -> str:
    """Train the reference run; store it, or return its first difference from the stored one."""
    with tempfile.TemporaryDirectory(prefix="reference-") as folder:
        place = Path(folder)
        rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}."} for n in range(50)]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if start(REFERENCE_RUN.split(), place).wait():
            return (place / LOG).read_text()
        made = place / "made"
        made.mkdir()
        shutil.copy(place / "prompt.safetensors", made)
        shutil.copy(place / "run" / "metrics.jsonl", made)
        if not renew:
            return difference(REFERENCE, made, REFERENCE_TOLERANCE)
        shutil.rmtree(REFERENCE, ignore_errors=True)
        shutil.copytree(made, REFERENCE)
    return ""


if __name__ == "__main__":
    sys.exit(main())
