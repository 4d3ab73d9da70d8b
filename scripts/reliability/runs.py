"""What the scripts of this folder share: how runs are compared, and child processes that kill themselves.

A process that imports PyTorch takes seconds to start. So a parent imports everything once and starts no thread of its
own, and every command is a fork of it, which costs as much as the command's own work.
"""

import faulthandler
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "p.safetensors"
# keys of metrics and metadata that tell how fast a machine was, which no two runs have in common
CLOCK = ("seconds", "second", "memory", "time", "elapsed")
CALLS = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")  # of `os`, that change what is on a disk
HANGS_S = 100  # seconds after which a run says where it is
COUNT = "count.txt"  # how many of these calls a run made that was not killed
LOG, ERRORS = "log.txt", "errors.txt"
NOT_SHOWN = "\x1b\x07\0\u202e"  # characters that change what a terminal shows
FETCHED, RAN = "fetched", "ran"  # files that show that a network was asked for, or that code of a stranger ran


def preload() -> None:
    """Import the package and what it needs, with one thread; whatever is forked afterwards has it."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.pop("HF_HUB_OFFLINE", None)  # what would be fetched is to be seen
    sys.path.insert(0, str(ROOT))
    import softprompt

    for module in pkgutil.walk_packages(softprompt.__path__, "softprompt."):
        importlib.import_module(module.name)


def fork(words: list[str], folder: Path, kill_at: int = 0, threads: int = 1) -> int:
    """Run a command of softprompt in `folder`, in a fork of this process, and return its number.

    The output is appended to `folder/log.txt`, and the cache is a folder of its own. The process kills itself in front
    of its `kill_at`-th call of `CALLS`, counted from 1.
    """
    sys.stdout.flush()
    if process := os.fork():
        return process
    status = 70
    try:
        enter(folder)
        faulthandler.dump_traceback_later(HANGS_S)  # into the log, which tells where a run hangs
        count = counted_calls(kill_at)
        random.seed()  # a fresh process would not have the state of its parent
        import torch

        torch.set_num_threads(threads)
        status = run_command(words)
        sys.stdout.flush()
        (folder / COUNT).write_text(str(count[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def enter(folder: Path) -> None:
    """Make `folder` the working folder and the home of the cache, and its log the output of this process."""
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)


def run_command(words: list[str]) -> int:
    """Run a command of softprompt in this process, and return its exit status."""
    from softprompt.__main__ import main
    from softprompt.cli.program import run

    return run(partial(main, words), prog="softprompt")


def counted_calls(kill_at: int) -> list[int]:
    """Let this process kill itself in front of a call of `CALLS`; return a list of one item, the calls so far."""
    count = [0]

    def counted(call: Callable) -> Callable:
        def inner(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return inner

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return count


def ended(process: int, limit: float) -> int:
    """Wait for a fork and return its exit status, or minus the signal that killed it; after `limit` seconds, kill it.

    Raises:
        TimeoutError: the process had not ended by then.
    """
    until = time.monotonic() + limit
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise TimeoutError(f"no end within {limit:.0f} s")
        time.sleep(0.003)


@dataclass(frozen=True)
class Outcome:
    """How commands in a fork ended.

    Attributes:
        status: the exit status, minus the signal that killed it, or None if it was killed when its time was over.
        errors: what they wrote to stderr.
        megabytes: the most memory that the fork held, that of its parent included.
    """

    status: int | None
    errors: str
    megabytes: float


def watched(action: Callable[[], int], folder: Path, seconds: float) -> Outcome:
    """Call `action`, which returns an exit status, in a fork in `folder` without a network, for at most `seconds`.

    Whoever looks for another machine leaves a file `fetched` in the folder; `ran` is for code that must not run.
    """
    sys.stdout.flush()
    process = os.fork()
    if not process:
        status = 70
        try:
            enter(folder)
            os.dup2(os.open(folder / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
            without_network(folder)
            status = action()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    until, found, late = time.monotonic() + seconds, 0, False
    while not found:
        found, status, used = os.wait4(process, 0 if late else os.WNOHANG)
        if not found and time.monotonic() > until:
            late = True
            os.kill(process, signal.SIGKILL)
        time.sleep(0.003)
    unit = 1 if sys.platform == "darwin" else 1024
    errors = (folder / ERRORS).read_text("utf-8", "replace")
    return Outcome(None if late else os.waitstatus_to_exitcode(status), errors, used.ru_maxrss * unit / 1e6)


def without_network(folder: Path) -> None:
    """Let every look-up and connection of this process fail, and leave a file that tells of it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        (folder / FETCHED).write_text(repr(args)[:200])
        raise OSError("no network here")

    socket.getaddrinfo = socket.create_connection = refuse
    socket.socket.connect = refuse  # type: ignore[method-assign]


def fault_of(outcome: Outcome, folder: Path, most_megabytes: float) -> str:
    """What is wrong with how a command took what is hostile, or an empty text: it worked, or said why in one line."""
    for name in (FETCHED, RAN):
        if (folder / name).exists():
            return f"{name}: {(folder / name).read_text() if (folder / name).is_file() else ''}"
    if outcome.status is None:
        return "no end"
    if outcome.megabytes > most_megabytes:
        return f"{outcome.megabytes:.0f} MB"
    if any(sign in outcome.errors + (folder / LOG).read_text("utf-8", "replace") for sign in NOT_SHOWN):
        return "control characters are sent"
    lines = outcome.errors.splitlines()
    complaints = [line for line in lines if "error: " in line]
    if outcome.status == 0:
        return lines[-1][:300] if "Traceback" in outcome.errors or "Warning" in outcome.errors else ""
    if outcome.status != 2:
        return f"status {outcome.status}: {(lines or [''])[-1][:300]}"
    others = [line for line in lines if not line.startswith("note: ")]
    if others != complaints or len(complaints) != 1:
        return f"{len(others)} lines: {outcome.errors[:300]!r}"
    return "out of memory" if "out of memory" in outcome.errors else ""


def start(words: list[str], folder: Path, threads: int = 1) -> subprocess.Popen:
    """Start a command of softprompt in `folder` as users do, in a process that imports all by itself."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "softprompt", *words], cwd=folder, env=environment, stdout=log, stderr=log
        )


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [without_clock(line) for line in lines]


def without_clock(value: dict[str, Any]) -> dict[str, Any]:
    """A record without the keys that tell how fast the machine was."""
    return {key: each for key, each in value.items() if not any(word in key for word in CLOCK)}
