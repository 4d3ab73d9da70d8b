#!/usr/bin/env python
"""Mutate prompt files and training states in this process: each is refused in one line, or is what it was.

Usage: python scripts/reliability/fuzz.py --prompts 100000 --states 5000 --seed 0

A prompt may raise `UserError` alone, a state also `Damaged`. A load that succeeds must give the tensor of the bytes
that the file holds, and only under a checksum that fits. The exit status is 1 if anything else happens, or if the
memory of the process grows by more than 300 MB.
"""

import argparse
import hashlib
import json
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from softprompt.errors import UserError  # noqa: E402
from softprompt.prompt.embedding import SoftPromptEmbedding  # noqa: E402
from softprompt.prompt.file import TENSOR_NAME, load_prompt, prompt_bytes  # noqa: E402
from softprompt.prompt.metadata import PromptMetadata  # noqa: E402
from softprompt.training.state_file import Damaged, read_state, state_bytes  # noqa: E402

MOST_GROWTH_MB = 300
SHAPE = (4, 16)
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -2.0, 1e308, "", "0", "4", "nan", "\0", "\x1b[2J",
    "\ud800", "a" * 5000, [], [1], [-1], [[]], [4, 16], [2**40, 2**40], [0, 256], {}, {"a": 1}, "[" * 5000, "[1, 2]",
    '{"curve": [[1, 2]]}', "NaN", "1e999",
]  # fmt: skip
STATE_LAYOUT = {"weight": (torch.float32, (range(1, 9), range(16, 17))), "count": (torch.int64, ())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10000, help="how many mutated prompt files")
    parser.add_argument("--states", type=int, default=2000, help="how many mutated states")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this many seconds for each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    args = parser.parse_args()
    before = peak_mb()
    faults = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / "mutated.safetensors"
        for what, raw, load, many in (
            ("prompts", whole_prompt(), load_mutated_prompt, args.prompts),
            ("states", whole_state(), load_mutated_state, args.states),
        ):
            counts = mutate_many(raw, load, path, many, args.seconds, args.seed)
            print(f"{what}: " + ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())))
            faults += [name for name in counts if name not in ("refused", "taken", "unchanged")]
    growth = peak_mb() - before
    print(f"peak memory: {growth:.0f} MB above the start")
    return 1 if faults or growth > MOST_GROWTH_MB else 0


def peak_mb() -> float:
    """The most memory that this process has held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def whole_prompt() -> bytes:
    """A prompt file in which every key of the metadata has a value."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    facts = PromptMetadata(
        base="builtin:bloom-small@1",
        base_sha256="0" * 64,
        tokenizer_sha256="1" * 64,
        eos_token="</s>",
        init="answers",
        init_text="a text",
        init_ids=[1, 2, 3, 4],
        end_ids=[2],
        template="file",
        template_text="{{ instruction }}",
        placement="front",
        before_ids=[5],
        after_ids=[6, 7],
        data="rows.jsonl",
        rows_sketch={"train": ["ab"], "held_out": []},
        training={"steps": 4, "rows": 9, "curve": [[2, 1.5]], "held_out_loss": {"prompt": 1.0}},
    )
    return prompt_bytes(SoftPromptEmbedding.from_tensor(weight), facts.to_strings())


def whole_state() -> bytes:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    content = {"step": 4, "train_loss": 1.5, "recipe": {"options": {"seed": 1}, "facts": {}}}
    return state_bytes(content, {"weight": weight, "count": torch.tensor(7)})


def mutate_many(
    raw: bytes, load: Callable[[Path], bool], path: Path, many: int, seconds: float, seed: int
) -> Counter[str]:
    """Count what became of `many` mutations; whatever is neither refused, taken nor unchanged is a fault."""
    source, counts, end = random.Random(seed), Counter[str](), time.monotonic() + seconds
    for number in range(many):
        if time.monotonic() > end:
            break
        mutated = mutation(raw, source)
        if mutated == raw:
            counts["unchanged"] += 1
            continue
        path.write_bytes(mutated)
        try:
            right = load(path)
            counts["taken" if right else f"wrong tensor (mutation {number} of seed {seed})"] += 1
        except (UserError, Damaged) as error:
            one_line = str(error) and str(error).isprintable()
            counts["refused" if one_line else f"not one line (mutation {number} of seed {seed})"] += 1
        except Exception as error:
            counts[f"{type(error).__name__} (mutation {number} of seed {seed})"] += 1
    return counts


def mutation(raw: bytes, source: random.Random) -> bytes:
    """One mutated file: some bytes, its length, or its header, with or without a checksum that fits."""
    kind = source.randrange(5)
    if kind == 0:
        changed = bytearray(raw)
        for _ in range(source.randint(1, 8)):
            changed[source.randrange(len(raw))] = source.randrange(256)
        return bytes(changed)
    if kind == 1:
        cut = raw[: source.randrange(len(raw))]
        return cut if source.random() < 0.7 else raw + source.randbytes(source.randint(1, 64))
    header, data = parts_of(raw)
    metadata, key = header["__metadata__"], source.choice(list(header["__metadata__"]))
    if kind == 2:  # the value of a key, of any type
        metadata[key] = source.choice(VALUES)
    elif kind == 3:  # the JSON or the text of a key, with characters of it changed
        text = list(str(metadata[key]) or "x")
        for _ in range(source.randint(1, 4)):
            text[source.randrange(len(text))] = source.choice('0123456789-.eE[]{},:"\\ntruefalse\0\x1b\ud800\u202e')
        metadata[key] = "".join(text)
    else:  # the tensor's entry, or the tensors there are
        name = source.choice([each for each in header if each != "__metadata__"])
        field = source.choice(["dtype", "shape", "data_offsets", "more", "all", "none"])
        if field in ("all", "more"):
            header[name if field == "all" else "more"] = source.choice(VALUES)
        elif field == "none":
            del header[name]
        else:
            header[name][field] = source.choice([*VALUES, "F16", "F64", "I64", [16, 4], [4, 15], [1, 64], [0, 512]])
    if source.random() < 0.2:
        data = source.randbytes(len(data))
    return joined(header, data, fits=source.random() < 0.7)


def parts_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: dict[str, Any], data: bytes, *, fits: bool) -> bytes:
    """A file, with a checksum that fits its content if asked for."""
    metadata = header["__metadata__"]
    if fits:
        metadata.pop("sha256", None)
        metadata["sha256"] = checksum_of(header, data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checksum_of(header: dict[str, Any], data: bytes) -> str:
    """The checksum that a prompt, or a state, with this header without one should have; see docs/file-format.md."""
    if header["__metadata__"].get("format") == "softprompt-state":
        return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data).hexdigest()
    return hashlib.sha256(data + json.dumps(header["__metadata__"], sort_keys=True).encode()).hexdigest()


def has_right_checksum(raw: bytes) -> tuple[bool, dict[str, Any], bytes]:
    """Whether the checksum of a file fits, computed here, and its parts."""
    header, data = parts_of(raw)
    stated = header["__metadata__"].pop("sha256")
    return stated == checksum_of(header, data), header, data


def load_mutated_prompt(path: Path) -> bool:
    """Load a prompt; whether its tensor is that of its bytes, under a checksum that fits."""
    weight = load_prompt(path).weight
    fits, header, data = has_right_checksum(path.read_bytes())
    return fits and weight.numpy().tobytes() == data and list(weight.shape) == header[TENSOR_NAME]["shape"]


def load_mutated_state(path: Path) -> bool:
    """Read a state; whether its tensors are those of its bytes, under a checksum that fits."""
    content, tensors = read_state(path, STATE_LAYOUT, lambda content: None)
    fits, header, data = has_right_checksum(path.read_bytes())
    together = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return fits and together == data and content == json.loads(header["__metadata__"]["state"])


if __name__ == "__main__":
    sys.exit(main())
