"""Run `train.py`, `generate.py` and the package's commands as a user does, in this process or in one of their own, and
look at the disk.
"""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from softprompt.__main__ import main as package_main
from softprompt.cli.program import DOORS, run
from softprompt.config.options import flags_in

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What a command left on the screen."""

    status: int
    out: str
    err: str


def name_of(program: str) -> str:
    """What stands in front of a complaint."""
    return DOORS.get(program, "softprompt")


def main_of(program: str):
    """The `main` of a command of the package, by its name."""
    return lambda argv: package_main([program, *argv])


def run_command(capfd: pytest.CaptureFixture, program: str, *argv: object) -> Result:
    """Run a command in this process; signal handlers are put back."""
    capfd.readouterr()
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    main = main_of(program)
    try:
        status = run(lambda: main([str(word) for word in argv]), prog=name_of(program))
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return Result(status, *capfd.readouterr())


def start_command(program: str, *argv: object, cwd: Path, **settings) -> subprocess.Popen:
    """Start a command in a process of its own, with as many threads as this one, writing no bytecode."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, str(ROOT / f"{program}.py"), *map(str, argv)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
    return subprocess.Popen(words, cwd=cwd, env=environment, **streams)


def run_python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python code that can import softprompt and the commands."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=settings, capture_output=True, text=True, timeout=120
    )


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file and folder with the hash of its content; the cache of fingerprints is no output and left out."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if "cache" not in path.parts]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


def assert_one_line(result: Result, *wanted: object, status: int = 2) -> None:
    """The command failed with `status` and one line on stderr that holds every word of `wanted`."""
    assert result.status == status, result.err + result.out
    assert len(result.err.splitlines()) == 1 and result.err.endswith("\n"), result.err
    assert "Traceback" not in result.err + result.out
    assert flags_in(result.err) == result.err and "`--" not in result.err, result.err  # options as flags
    for word in wanted:
        assert str(word) in result.err
