"""What the scripts of this folder share: how runs are compared, and a child process that kills itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "p.safetensors"
# keys of metrics and metadata that tell how fast a machine was, which no two runs have in common
CLOCK = ("seconds", "second", "memory", "time", "elapsed")
# runs a command of softprompt, counts its calls that change a disk, and kills the process in front of call KILL_AT
CHILD = """
import os, signal, sys
from functools import partial
count, at = 0, int(os.environ["KILL_AT"])
def counted(call):
    def inner(*args, **kwargs):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(os.environ["KILL_COUNT"], "w") as file:
            file.write(str(count))
        return call(*args, **kwargs)
    return inner
for name in ("fsync", "replace", "rename", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
from importlib import import_module
from softprompt.cli.program import leave, run
name = sys.argv[1]
main = import_module("softprompt.cli." + name).main
sys.argv = sys.argv[1:]
sys.exit(leave(run(partial(main, prog=name), prog=name)))
"""


def start(words: list[str], folder: Path, kill_at: int = 0) -> subprocess.Popen:
    """Start a command of softprompt in `folder`; it kills itself at its `kill_at`-th call, counted from 1."""
    environment = os.environ | {
        "KILL_AT": str(kill_at),
        "KILL_COUNT": str(folder / "count.txt"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    log = (folder / "log.txt").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], cwd=folder, env=environment, stdout=log, stderr=log
        )


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [without_clock(line) for line in lines]


def without_clock(value: dict[str, Any]) -> dict[str, Any]:
    """A record without the keys that tell how fast the machine was."""
    return {key: each for key, each in value.items() if not any(word in key for word in CLOCK)}
