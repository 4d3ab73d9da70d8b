#!/usr/bin/env python
"""Give every command what it cannot take: it says so in one line, with exit status 2, and writes nothing.

Usage: python scripts/reliability/bad_input.py

Every line of `LINES` is a command line without its good part, and words that the complaint must hold. Each runs in a
fork of this process; of `--processes` of them the same is asked of a process of its own. The exit status is 1 if one
takes what it should refuse, says more or less than a line, leaves the word out, or changes a file.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from runs import ERRORS, FETCHED, LOG, PROMPT, ROOT, fault_of, preload, run_command, watched  # noqa: E402

SECONDS = 60
MOST_MEGABYTES = 2000  # those of the parent included
# what each command has besides the words of a line, of which the last count
GOOD = {
    "train": "--device cpu --data rows.jsonl --virtual-tokens 2 --max-steps 1 --prompt-file new.safetensors",
    "sweep": "--device cpu --data rows.jsonl --virtual-tokens 2 --max-steps 1 --prompt-file new.safetensors",
    "generate": f"--device cpu --max-new-tokens 2 --prompt-file {PROMPT}",
    "chat": f"--device cpu --max-new-tokens 2 --prompt-file {PROMPT}",
    "evaluate": f"--device cpu --data rows.jsonl --eval-generate 0 --prompt-file {PROMPT}",
    "inspect": f"--prompt-file {PROMPT}",
}
COUNTS = ("0", "-1", "1.5", "x", "", "nan", "1e3", "9" * 400, "2147483648")  # none of them is a count
# options that take a count, by command; every value of COUNTS is refused
COUNTED = {
    "train": "virtual-tokens max-length per-device-train-batch-size gradient-accumulation-steps logging-steps"
    " save-steps eval-steps max-train-rows early-stopping-patience",
    "sweep": "max-trials max-steps virtual-tokens max-length",
    "generate": "max-length max-new-tokens num-return-sequences",
    "evaluate": "max-rows max-length max-new-tokens bootstrap-samples",
    "inspect": "num-nearest",
}
# options that take a real number above 0, or from 0 on
REAL = {
    "train": "learning-rate num-train-epochs warmup-steps weight-decay max-grad-norm adam-beta1 eval-fraction",
    "generate": "temperature top-p repetition-penalty",
}
REALS = ("-1", "x", "", "nan", "inf", "1e999")
# words of a line => words of the complaint
LINES = {
    "train": r"""
        --data gone.jsonl => --data gone.jsonl
        --data ./gone => --data ./gone
        --data '' => --data
        --data empty.jsonl => --data empty.jsonl
        --data folder => --data folder
        --data text.txt => --data text.txt
        --data binary.jsonl => --data binary.jsonl
        --data cut.json => --data cut.json
        --data columns.csv => --data columns.csv
        --data fields.csv => --data fields.csv
        --data blank.jsonl => --data blank.jsonl
        --data mixed.jsonl => mixed.jsonl, row 2: output
        --data binary.parquet => --data binary.parquet
        --data pipe => --data pipe
        --data loop.jsonl => --data 'loop.jsonl'
        --data dangling.jsonl => --data dangling.jsonl
        --data builtin:gone => --data builtin:gone
        --data /dev/null => --data /dev/null
        --eval-data gone.jsonl => --eval-data gone.jsonl
        --eval-data empty.jsonl => --eval-data empty.jsonl
        --eval-data rows.jsonl => --eval-data rows.jsonl
        --eval-data text.txt => --eval-data text.txt
        --test-data gone.jsonl => --test-data gone.jsonl
        --test-data blank.jsonl => --test-data blank.jsonl
        --eval-data held.jsonl --eval-fraction 0.1 => --eval-fraction
        --eval-fraction 1 => --eval-fraction
        --columns x => --columns x
        --columns instruction=gone => --columns
        --columns a=b => --columns a=b
        --columns instruction=output,output=output => --columns
        --columns instruction= => --columns
        --data-split gone => --data-split gone
        --data-config gone => --data-config gone
        --model gone => --model gone
        --model ./gone => --model ./gone
        --model rows.jsonl => --model rows.jsonl
        --model folder => --model folder
        --model encoder => --model encoder
        --model cut-base => cut-base/model.safetensors: cut short
        --model pointer-base => git lfs pull
        --model builtin:gone => 'builtin:gone'
        --model '' => --model
        --model pipe => --model pipe
        --device toaster => --device toaster
        --device cuda:99 => --device cuda:99
        --device meta => --device meta
        --precision fp8 => --precision
        --init telepathy => --init
        --init-from gone.safetensors => gone.safetensors
        --init-from rows.jsonl => rows.jsonl
        --init-from cut.safetensors => cut.safetensors
        --init-from altered.safetensors => altered.safetensors
        --init-from foreign.safetensors => foreign.safetensors
        --init-from wide.safetensors => wide.safetensors
        --init-from p.safetensors --virtual-tokens 9 => --virtual-tokens 9
        --init-from folder => folder
        --virtual-tokens 2201 --init vocab => --virtual-tokens 2201
        --init-text '' --virtual-tokens 2 => --init-text
        --template gone.jinja => --template gone.jinja
        --template chat => --template chat
        --template '' => --template
        --template endless.jinja => --template endless.jinja
        --template broken.jinja => --template broken.jinja
        --template binary.jsonl => --template binary.jsonl
        --placement system => --placement system
        --placement middle => --placement
        --optim sgd => --optim
        --weight-decay 0.1 => --weight-decay
        --lr-scheduler-type wild => --lr-scheduler-type
        --max-steps 0 => --max-steps
        --max-steps -2 => --max-steps
        --num-train-epochs 0 => --num-train-epochs
        --num-train-epochs 1e300 => --num-train-epochs
        --adam-beta1 1 => --adam-beta1
        --max-tokens-per-pass none => --max-tokens-per-pass
        --max-tokens-per-pass 0 => --max-tokens-per-pass
        --seed -1 => --seed
        --seed 9223372036854775808 => --seed
        --seed x => --seed
        --save-total-limit -1 => --save-total-limit
        --eval-generate -1 => --eval-generate
        --eval-generate 2 --eval-fraction 0 => --eval-generate
        --early-stopping-patience 1 --eval-fraction 0 => --early-stopping-patience
        --save-last --eval-fraction 0 => --save-last
        --prompt-file p.safetensors => already there
        --prompt-file folder => --prompt-file folder
        --prompt-file rows.jsonl/p.safetensors => --prompt-file rows.jsonl/p.safetensors
        --prompt-file /proc/p.safetensors => --prompt-file /proc/p.safetensors
        --prompt-file '' => --prompt-file
        --prompt-file pipe => --prompt-file pipe
        --prompt-file . => --prompt-file
        --prompt-file {long}.safetensors => File name too long
        --run-dir rows.jsonl => --run-dir rows.jsonl
        --run-dir /proc/run => --run-dir /proc/run
        --run-dir new.safetensors => --run-dir
        --run-dir notes => --run-dir notes
        --run-dir p.run => --run-dir p.run
        --resume --overwrite => --resume
        --resume --prompt-file p.safetensors --run-dir nothing => --resume
        --resume --run-dir p.run --virtual-tokens 3 => --virtual-tokens
        --gone => --gone
        --max-step 1 => --max-step
        --lr 1 => --learning-rate
        --learning-rate => --learning-rate
        stray => stray
    """,
    "sweep": r"""
        --data gone.jsonl => --data gone.jsonl
        --data blank.jsonl => --data blank.jsonl
        --eval-fraction 0 => --eval-fraction
        --eval-fraction 1 => --eval-fraction
        --relative-rates 0 => --relative-rates
        --relative-rates -1 => --relative-rates
        --relative-rates x => --relative-rates
        --relative-rates inf => --relative-rates
        --relative-rates => --relative-rates
        --virtual-tokens => --virtual-tokens
        --virtual-tokens 2 x => --virtual-tokens
        --init vocab telepathy => --init
        --sweep-dir rows.jsonl => --sweep-dir rows.jsonl
        --sweep-dir notes => --sweep-dir notes
        --sweep-dir /proc/sweep => --sweep-dir /proc/sweep
        --sweep-dir new.safetensors => --sweep-dir
        --prompt-file p.safetensors => already there
        --prompt-file folder => --prompt-file folder
        --resume --overwrite => --resume
        --model folder => --model folder
        --device toaster => --device toaster
        --learning-rate 1 => --learning-rate
        --save-steps 1 => --save-steps
        --seed -1 => --seed
        stray => stray
    """,
    "generate": r"""
        --prompt-file gone.safetensors Hi => gone.safetensors
        --prompt-file rows.jsonl Hi => rows.jsonl
        --prompt-file folder Hi => folder
        --prompt-file pipe Hi => pipe
        --prompt-file cut.safetensors Hi => cut.safetensors
        --prompt-file altered.safetensors Hi => altered.safetensors
        --prompt-file foreign.safetensors Hi => foreign.safetensors
        --prompt-file wide.safetensors Hi => hidden size
        --prompt-file nameless.safetensors Hi => --model
        --prompt-file stranger.safetensors Hi => --model
        --prompt-file empty.jsonl Hi => empty.jsonl
        --prompt-file dangling.jsonl Hi => dangling.jsonl
        --model gone Hi => --model gone
        --model folder Hi => --model folder
        --model cut-base Hi => cut-base/model.safetensors: cut short
        '' => --instruction
        ' ' => --instruction
        --instruction Hi Hello => --instruction: Hello
        --top-k -1 Hi => --top-k
        --top-k 99999999999 Hi => --top-k
        --top-p 0 Hi => --top-p
        --top-p 1.1 Hi => --top-p
        --temperature 0.0001 Hi => --temperature
        --repetition-penalty 0 Hi => --repetition-penalty
        --num-return-sequences 2 --no-do-sample Hi => --num-return-sequences
        --do-sample=maybe Hi => --do-sample
        --seed -1 Hi => --seed
        --seed 1.5 Hi => --seed
        --precision int4 Hi => --precision
        --device cpu:x Hi => --device
        --output-file a.jsonl Hi => --output-file
        --resume Hi => --resume
        --overwrite Hi => --overwrite
        --columns a=b Hi => --columns
        --data-split test Hi => --data-split
        --data-config x Hi => --data-config
        --instructions held.jsonl Hi => --instructions
        --instructions held.jsonl --input x => --instructions
        --instructions held.jsonl --compare => --instructions
        --instructions gone.jsonl => --instructions gone.jsonl
        --instructions '' => --instructions
        --instructions empty.jsonl => --instructions empty.jsonl
        --instructions text.txt => --instructions text.txt
        --instructions folder => --instructions folder
        --instructions held.jsonl --output-file - => --output-file
        --instructions held.jsonl --output-file folder => --output-file folder
        --instructions held.jsonl --output-file p.safetensors => --output-file p.safetensors
        --instructions held.jsonl --output-file held.jsonl => --output-file held.jsonl
        --instructions held.jsonl --output-file rows.jsonl => already there
        --instructions held.jsonl --output-file /proc/a.jsonl => --output-file /proc/a.jsonl
        --instructions held.jsonl --output-file rows.jsonl/a => --output-file rows.jsonl/a
        --instructions held.jsonl --output-file stopped.jsonl => stopped.jsonl.partial
        --instructions held.jsonl --resume --overwrite => --resume
        --instructions held.jsonl --resume --output-file rows.jsonl => --resume
        --instructions held.jsonl --columns instruction=gone => --columns
        --instructions held.jsonl --per-device-eval-batch-size 0 => --per-device-eval-batch-size
        --instructions held.jsonl --data-split gone => --data-split
        --beams 4 Hi => --beams
        Hi there => there
    """,
    "chat": r"""
        --prompt-file gone.safetensors => gone.safetensors
        --prompt-file cut.safetensors => cut.safetensors
        --prompt-file altered.safetensors => altered.safetensors
        --prompt-file wide.safetensors => hidden size
        --prompt-file nameless.safetensors => --model
        --model folder => --model folder
        --device toaster => --device toaster
        --top-p 2 => --top-p
        --seed x => --seed
        --temperature -1 => --temperature
        --instructions held.jsonl => --instructions
        stray => stray
    """,
    "evaluate": r"""
        --prompt-file gone.safetensors => gone.safetensors
        --prompt-file p.safetensors cut.safetensors => cut.safetensors
        --prompt-file p.safetensors wide.safetensors => wide.safetensors
        --prompt-file p.safetensors rows.jsonl => rows.jsonl
        --prompt-file => --prompt-file
        --data gone.jsonl => --data gone.jsonl
        --data blank.jsonl => --data blank.jsonl
        --data empty.jsonl => --data empty.jsonl
        --data folder => --data folder
        --split gone => --split gone
        --held-out => --held-out
        --run-dir p.run => --run-dir
        --columns x=y => --columns
        --columns output=gone => --columns
        --choices a => --choices
        --choices a a => --choices
        --choices a '' => --choices
        --choices yes no => --choices
        --output-file - => --output-file
        --output-file folder => --output-file folder
        --output-file rows.jsonl => --output-file rows.jsonl
        --output-file held.jsonl => already there
        --output-file p.safetensors => --output-file p.safetensors
        --output-file /proc/a.json => --output-file /proc/a.json
        --overwrite => --overwrite
        --eval-generate -1 => --eval-generate
        --per-device-eval-batch-size 0 => --per-device-eval-batch-size
        --seed -1 => --seed
        --model folder => --model folder
        --model cut-base => cut-base/model.safetensors: cut short
        --device toaster => --device toaster
        --text-prompt {text} => --text-prompt: has 4,000 tokens
        --unknown => --unknown
    """,
    "inspect": r"""
        --prompt-file gone.safetensors => gone.safetensors
        --prompt-file rows.jsonl => rows.jsonl
        --prompt-file folder => folder
        --prompt-file cut.safetensors => cut.safetensors
        --prompt-file altered.safetensors => altered.safetensors
        --prompt-file wide.safetensors => hidden size
        --prompt-file '' => --prompt-file
        --num-nearest 99999 => --num-nearest
        --run-dir gone => --run-dir gone
        --run-dir folder => --run-dir folder
        --run-dir notes => --run-dir notes
        --plot a.jpg => --plot
        --plot folder/../gone.txt => --plot
        --overwrite => --overwrite
        --model folder => --model folder
        --device cpu => --device
        cut.safetensors p.safetensors => p.safetensors
    """,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take only every so-manieth command line")
    parser.add_argument("--processes", type=int, default=3, help="how many also run in a process of their own")
    args = parser.parse_args()
    lines = command_lines()[:: args.every]
    began, faults = time.monotonic(), []
    preload()
    with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
        place = Path(folder) / "work"
        prepare(place)
        before = snapshot(place)
        for number, (words, wanted) in enumerate(lines):
            for name in (ERRORS, LOG):
                (place / name).unlink(missing_ok=True)
            outcome = watched(lambda words=words: run_command(words), place, SECONDS)
            (place / FETCHED).unlink(missing_ok=True)  # a name that is no path may be one of the hub
            fault = fault_of(outcome, place, MOST_MEGABYTES) or complaint_fault(outcome.status, outcome.errors, wanted)
            if not fault and number < args.processes:
                fault = of_process(words, place, outcome.errors)
            if not fault and snapshot(place) != before:
                fault = f"it wrote {sorted(snapshot(place).items() ^ before.items())[0][0]}"
                before = snapshot(place)
            if fault:
                faults.append(f"{shlex.join(words)[:300]}: {fault}")
                print(faults[-1], flush=True)
    print(f"{len(lines)} command lines, {len(faults)} of them wrong, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


def command_lines() -> list[tuple[list[str], str]]:
    """Every command line, and the words that its complaint must hold."""
    found = []
    for command, lines in LINES.items():
        parts = [line.rpartition(" => ") for line in lines.strip().splitlines()]
        for options, values in ((COUNTED, COUNTS), (REAL, REALS)):
            names = options.get(command, "").split()
            parts += [(f"--{name}='{value}'", "", f"--{name}") for name in names for value in values]
        for words, _, wanted in parts:
            filled = words.replace("{long}", "x" * 300).replace("{text}", "a" * 4000)
            found.append(([command, *GOOD[command].split(), *shlex.split(filled)], wanted.strip()))
    return found


def complaint_fault(status: int | None, errors: str, wanted: str) -> str:
    """What is wrong with a complaint, or an empty text."""
    if status != 2:
        return f"status {status}"
    return "" if wanted in errors else f"{wanted} is not in: {errors.strip()[:300]}"


def of_process(words: list[str], place: Path, errors: str) -> str:
    """What a process of its own says otherwise than a fork."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "softprompt", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    said = done.stderr.replace("python -m softprompt", "softprompt")
    return "" if (done.returncode, said) == (2, errors) else f"a process: {done.returncode}, {done.stderr[:300]}"


def snapshot(place: Path) -> dict[str, str]:
    """Everything in the folder but the cache, with what it is."""
    return {str(path): kind_of(path) for path in sorted(place.rglob("*")) if belongs(path.relative_to(place))}


def belongs(path: Path) -> bool:
    return path.parts[0] not in ("cache", ERRORS, LOG)


def kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a link to " + os.readlink(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else oct(path.stat().st_mode)


def prepare(place: Path) -> None:
    """Make the folder that the command lines run in, with files of many kinds, and a prompt with its run."""
    place.mkdir()
    rows = [{"instruction": f"What is {n} plus {n}?", "input": "", "output": f"It is {2 * n}."} for n in range(8)]
    for name, part in (("rows.jsonl", rows[:6]), ("held.jsonl", rows[6:])):
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    blank = [{"instruction": "", "output": ""}, {"instruction": "a", "output": ""}]
    contents: dict[str, str | bytes] = {
        "empty.jsonl": "",
        "text.txt": "a text\n",
        "binary.jsonl": bytes(range(256)),
        "binary.parquet": b"PAR1" + bytes(99),
        "cut.json": '[{"instruction": "a", "out',
        "columns.csv": "one,two\n1,2\n",
        "fields.csv": "instruction,output\n1,2,3\n",
        "blank.jsonl": "".join(json.dumps(row) + "\n" for row in blank),
        "mixed.jsonl": '{"instruction": "a", "output": "b"}\n{"instruction": 5, "output": ["b"]}\n',
        "endless.jinja": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "broken.jinja": "{% if %}",
    }
    for name, content in contents.items():
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("folder", "notes", "encoder", "cut-base", "pointer-base"):
        (place / name).mkdir()
    (place / "notes" / "notes.txt").write_text("of another program")
    (place / "loop.jsonl").symlink_to("loop.jsonl")
    (place / "dangling.jsonl").symlink_to("gone")
    os.mkfifo(place / "pipe")
    prepare_bases(place)
    prepare_prompts(place)


def prepare_bases(place: Path) -> None:
    """Make model folders that cannot be used."""
    shipped = ROOT / "softprompt" / "assets" / "bloom-small"
    for name in ("cut-base", "pointer-base"):
        for file in shipped.iterdir():
            (place / name / file.name).write_bytes(file.read_bytes())
    raw = (shipped / "model.safetensors").read_bytes()
    (place / "cut-base" / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 912384\n"
    (place / "pointer-base" / "model.safetensors").write_text(pointer)
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 8}
    (place / "encoder" / "config.json").write_text(json.dumps(config))


def prepare_prompts(place: Path) -> None:
    """Train a prompt, and make prompt files that cannot be used."""
    import torch
    from safetensors.torch import save_file

    from softprompt import SoftPromptEmbedding, load_prompt, save_prompt

    words = ["train", *GOOD["train"].split(), "--prompt-file", PROMPT, "--eval-fraction", "0.3"]
    outcome = watched(lambda: run_command(words), place, SECONDS)
    if outcome.status:
        raise SystemExit(outcome.errors)
    raw, file = (place / PROMPT).read_bytes(), load_prompt(place / PROMPT)
    (place / "cut.safetensors").write_bytes(raw[:-4])
    (place / "altered.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    save_file({"prompt_embeddings": torch.ones(2, 192)}, place / "foreign.safetensors")
    whole = SoftPromptEmbedding.from_tensor(file.weight)
    save_prompt(place / "wide.safetensors", SoftPromptEmbedding.from_tensor(torch.ones(2, 64)), file.metadata)
    save_prompt(place / "nameless.safetensors", whole, {})
    save_prompt(place / "stranger.safetensors", whole, file.metadata | {"base": "./folder", "base_sha256": "0" * 64})
    header = {"kind": "softprompt answers", "version": 1}
    (place / "stopped.jsonl.partial").write_text(json.dumps(header) + "\n")


if __name__ == "__main__":
    sys.exit(main())
