"""Every figure of speed that the docs state, measured by one command and kept for each machine.

usage: python benchmarks/speed/report.py --machine NAME [--only KIND ...]   measure here, and keep it
       python benchmarks/speed/report.py --write                            write docs/speed.md from all that is kept

`benchmarks/results/speed/NAME.json` keeps what each benchmark printed, with the CPU's features, the versions, the
commit and the load of the machine before and after. `--write` puts the machines' columns side by side, and says
above each table of which commit, day and machine it is.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from home import ROOT

KEPT = ROOT / "benchmarks" / "results" / "speed"
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- written by benchmarks/speed/report.py -->", "<!-- end of what it writes -->"
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Kind:
    """One measurement.

    Attributes:
        title: the heading of its tables.
        command: the benchmark and its options.
        keys: the columns of its table that say which row it is.
        figures: the columns that a machine has of its own; empty if it prints no table.
    """

    title: str
    command: Sequence[str]
    keys: Sequence[str] = ()
    figures: Sequence[str] = ()


TRAINING = {
    "keys": ("precision", "P", "side"),
    "figures": ("s/step, mean", "time ÷ softprompt's", "peak GB", "FLOP utilisation"),
}
SHORT = ("--precision", "bf16", "--rows", "16", "--trial-rows", "8", "--rounds", "2")
SIDES = ("--sides", "softprompt", "tutorial", "best")
KINDS = {
    "training": Kind(
        "Training, bloom-389m-zh in bf16, 12 virtual tokens",
        ("compare_peft.py", *SHORT, "--virtual-tokens", "12", *SIDES),
        **TRAINING,
    ),
    "training-100": Kind(
        "Training, bloom-389m-zh in bf16, 100 virtual tokens",
        ("compare_peft.py", *SHORT, "--virtual-tokens", "100", *SIDES),
        **TRAINING,
    ),
    "training-llama": Kind(
        "Training, llama-360m in bf16",
        ("compare_peft.py", *SHORT, "--virtual-tokens", "12", "--shape", "llama-360m", *SIDES),
        **TRAINING,
    ),
    "decoding": Kind(
        "Decoding, bloom-389m-zh in bf16",
        ("compare_decode.py", "--precision", "bf16", "--virtual-tokens", "12", "--new-tokens", "32", "--rounds", "2"),
        ("precision", "P", "questions", "batch"),
        (
            "softprompt, tokens/s",
            "`PeftModel.generate`, tokens/s",
            "ratio",
            "share of the bound",
            "PEFT's share",
            "equal answers",
        ),
    ),
    "lanes": Kind("Eight prompts in one pass, the shipped base", ("lanes.py", "--steps", "4", "--rounds", "3")),
    "serving": Kind(
        "Requests that share passes, the shipped base",
        ("serve_load.py", "--model", "builtin:bloom-small@1", "--rounds", "3"),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", help="what this machine is called in the tables; measure")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/speed.md")
    options = parser.parse_args(argv)
    if not (options.machine or options.write):
        parser.error("give --machine NAME to measure, or --write")
    if options.machine:
        for name in options.only:
            keep(options.machine, name, measured(KINDS[name]))
    if options.write:
        machines = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(KEPT.glob("*.json"))}
        PAGE.write_text(with_report(PAGE.read_text("utf-8"), machines), "utf-8")


def measured(kind: Kind) -> dict[str, Any]:
    """Run a benchmark; its table and where and when it ran."""
    script, *words = kind.command
    before, start = os.getloadavg()[0], time.monotonic()
    command = [sys.executable, str(ROOT / "benchmarks" / "speed" / script), *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "command": " ".join(("python benchmarks/speed/" + script, *words)),
        "output": done.stdout.strip(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cpu": cpu(),
    }


def cpu() -> str:
    """The features of the CPU that matter here, and how many cores the process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    except OSError:  # no Linux
        flags = []
    found = [name for name in FEATURES if name in flags]
    return f"{platform.machine()} with {', '.join(found) or 'unknown features'}, {os.cpu_count()} cores"


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def keep(machine: str, name: str, found: Mapping[str, Any]) -> None:
    """Add a measurement to what is kept of a machine."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{machine}.json"
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | {name: found}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def with_report(page: str, machines: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the tables of all machines between the two marks."""
    head, rest = page.split(BEGIN)
    parts = [section(kind, name, machines) for name, kind in KINDS.items()]
    return f"{head}{BEGIN}\n\n" + "\n\n".join(filter(None, parts)) + f"\n\n{END}{rest.split(END)[1]}"


def section(kind: Kind, name: str, machines: Mapping[str, Mapping[str, Any]]) -> str:
    """One measurement: where it was made, and its table, in which every machine has its columns."""
    found = {machine: content[name] for machine, content in machines.items() if name in content}
    if not found:
        return ""
    lines = [f"### {kind.title}", "", f"`{next(iter(found.values()))['command']}`", ""]
    lines += [f"- {machine}: {provenance(each)}" for machine, each in found.items()]
    if kind.figures:
        rows = {machine: parsed(each["output"]) for machine, each in found.items()}
        return "\n".join([*lines, "", *side_by_side(kind, rows), *remarks(found)])
    for machine, each in found.items():
        lines += ["", f"{machine}:", "", "```", each["output"], "```"]
    return "\n".join(lines)


def provenance(found: Mapping[str, Any]) -> str:
    """Where, when and with what a measurement was made."""
    versions = ", ".join(f"{name} {version.split('+')[0]}" for name, version in found["versions"].items())
    before, after = found["load"]
    busy = f"load of the machine {before} before" + ("" if after is None else f" and {after} after")
    where = f"{found['cpu']}; {found['date']}, commit {found['commit'][:7]}; {versions}"
    return f"{where}; {busy}, {found['minutes']} minutes"


def parsed(output: str) -> list[dict[str, str]]:
    """The rows of the Markdown table that a benchmark printed."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def remarks(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the benchmarks printed below their tables."""
    said = []
    for machine, each in found.items():
        last = each["output"].rpartition("|")[2].strip()
        said += ["", f"{machine}: {last}"] if last else []
    return said


def side_by_side(kind: Kind, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """One table of all machines; a row that a machine lacks is empty there."""
    alone = len(rows) == 1
    head = [*kind.keys] + [each if alone else f"{machine}: {each}" for machine in rows for each in kind.figures]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(kind.keys) + "---:|" * (len(head) - len(kind.keys))]
    keys = dict.fromkeys(tuple(row[key].strip("*") for key in kind.keys) for own in rows.values() for row in own)
    for key in keys:
        cells = list(key)
        for own in rows.values():
            match = [row for row in own if tuple(row[name].strip("*") for name in kind.keys) == key]
            cells += [match[0].get(figure, "") if match else "" for figure in kind.figures]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
