#!/usr/bin/env python
"""Give softprompt what is damaged or hostile: each is refused in one line, or taken for what it is.

Usage: python scripts/reliability/fuzz.py --prompts 1000000 --states 100000 --folders 2000 --metadata 1000 --seed 0

Prompt files and training states are mutated and read in this process. A prompt may raise `UserError` alone, a state
also `Damaged`. A load that succeeds must give the tensor of the bytes that the file holds, and only under a checksum
that fits. The memory of the process may grow by 300 MB.

Model folders are damaged, and prompt files get hostile metadata under a checksum that fits. Each goes through the
commands in a fork of this process without a network, which may take 300 MB more than with a whole folder or file, and
a minute. Folders go through `train`, and if that works, through `generate` with the prompt; prompt files through
`generate`, `evaluate`, `inspect` and `train --init-from`. A command ends well, or with status 2 and one line. Code
of the folder that runs, and a look for another machine, are seen.

The exit status is 1 if anything else happens.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
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
from folders import copied, damage, joined, parts_of, whole_folders  # noqa: E402
from metadata import hostile  # noqa: E402
from runs import ERRORS, PROMPT, fault_of, preload, run_command, watched  # noqa: E402

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
SECONDS = 60  # for all commands of a case, on a machine that others use as well
BASE = "builtin:bloom-small@1"
SHORT = "--device cpu --data rows.jsonl --max-steps 1 --per-device-train-batch-size 2 --eval-fraction 0"
ANSWER = "--device cpu --max-new-tokens 2 Hello"
STATE_LAYOUT = {"weight": (torch.float32, (range(1, 9), range(16, 17))), "count": (torch.int64, ())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10000, help="how many mutated prompt files")
    parser.add_argument("--states", type=int, default=2000, help="how many mutated states")
    parser.add_argument("--folders", type=int, default=0, help="how many damaged model folders")
    parser.add_argument("--metadata", type=int, default=0, help="how many prompt files with hostile metadata")
    parser.add_argument("--keep", type=Path, help="keep the folder of each fault in this folder")
    parser.add_argument(
        "--cases", type=int, nargs="+", help="only these folders or files, by number, to see a fault again"
    )
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
        print(f"peak memory: {growth:.0f} MB above the start", flush=True)
        torch.set_num_threads(1)  # what is forked has one thread
        preload()
        for what, many, fuzz in (("folders", args.folders, fuzz_folders), ("metadata", args.metadata, fuzz_metadata)):
            if many:
                found = fuzz(Path(folder), many, args)
                print(f"{what}: " + ", ".join(f"{count:,} {name}" for name, count in sorted(found[0].items())))
                faults += found[1]
    return 1 if faults or growth > MOST_GROWTH_MB else 0


def fuzz_folders(root: Path, many: int, args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Train on damaged model folders, and answer; return the counts, and the faults in a line each."""
    wholes = whole_folders(root / "whole")

    def prepare(place: Path, source: random.Random | None) -> str:
        copied(wholes[source.randrange(2) if source else 0], place / "base")
        return damage(place / "base", source) if source else ""

    commands = [
        f"train --model base --virtual-tokens 2 --prompt-file {PROMPT} {SHORT}",
        f"generate --model base --prompt-file {PROMPT} {ANSWER}",
    ]
    return fuzz_commands(root / "folders", many, args, prepare, commands)


def fuzz_metadata(root: Path, many: int, args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Give every command prompt files with hostile metadata; return the counts, and the faults in a line each."""
    made = root / "made"
    write_rows(made)
    whole = f"train --model {BASE} --virtual-tokens 2 --prompt-file {PROMPT} {SHORT} --init answers"
    if watched(lambda: run_command(whole.split()), made, SECONDS).status:
        raise SystemExit((made / ERRORS).read_text())
    header, data = parts_of((made / PROMPT).read_bytes())
    metadata = header["__metadata__"]

    def prepare(place: Path, source: random.Random | None) -> str:
        changed = hostile(metadata, source) if source else dict(metadata)
        said = [f"{key[:40]}={str(changed[key])[:60]!r}" for key in changed if changed[key] != metadata.get(key)]
        (place / PROMPT).write_bytes(with_checksum(header | {"__metadata__": changed}, data))
        return ", ".join(said)

    commands = [
        f"generate --prompt-file {PROMPT} {ANSWER}",
        f"evaluate --prompt-file {PROMPT} --device cpu --data rows.jsonl --eval-generate 2",
        f"inspect {PROMPT}",
        f"train --model {BASE} --init-from {PROMPT} --prompt-file new.safetensors {SHORT}",
    ]
    return fuzz_commands(root / "metadata", many, args, prepare, commands)


def fuzz_commands(
    root: Path,
    many: int,
    args: argparse.Namespace,
    prepare: Callable[[Path, random.Random | None], str],
    commands: list[str],
) -> tuple[Counter[str], list[str]]:
    """Run commands on what `prepare` puts into a folder, first on what is whole, until one refuses a folder.

    Returns:
        how many commands refused and took it, and what else came of it, in a line for each.
    """
    counts, faults, most, end = Counter[str](), [], 1e9, time.monotonic() + args.seconds
    for number in (-1, *(args.cases or range(many))):
        if time.monotonic() > end:
            break
        place = root / str(number)
        write_rows(place)
        source = random.Random(f"{args.seed} {number}") if number >= 0 else None
        what = prepare(place, source)
        peaks = []
        for words in commands:
            if f"--prompt-file {PROMPT}" in words and not (place / PROMPT).exists() and "train" not in words:
                continue  # the command before it refused the base
            (place / ERRORS).unlink(missing_ok=True)
            outcome = watched(lambda words=words: run_command(words.split()), place, SECONDS)
            peaks.append(outcome.megabytes)
            fault = fault_of(outcome, place, most + MOST_GROWTH_MB)
            if fault:
                faults.append(f"case {number} of seed {args.seed} ({what}), {words.split()[0]}: {fault}")
                print(faults[-1], flush=True)
                break
            counts["refused" if outcome.status else "taken"] += 1
        if number < 0:
            if faults or counts["refused"]:
                raise SystemExit((place / ERRORS).read_text())
            counts.clear()
            most = max(peaks)
        if args.keep and faults and faults[-1].startswith(f"case {number} "):
            shutil.copytree(place, args.keep / f"{root.name}-{number}", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(place)
    return counts, faults


def write_rows(place: Path) -> None:
    """Make a folder with rows to train on and to score."""
    place.mkdir(parents=True)
    rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}."} for n in range(4)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_checksum(header: dict[str, Any], data: bytes) -> bytes:
    """A file with a checksum that fits its content."""
    metadata = header["__metadata__"]
    metadata.pop("sha256", None)
    metadata["sha256"] = checksum_of(header, data)
    return joined(header, data)


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
    return with_checksum(header, data) if source.random() < 0.7 else joined(header, data)


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
