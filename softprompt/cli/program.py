"""A command as a program: its exit status, its one-line error, and what the user types for another command."""

import contextlib
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from softprompt.config.options import flags_in
from softprompt.errors import Interrupted, UserError
from softprompt.system.foreign import visible
from softprompt.system.process import drop_output, is_out_of_memory, silence_libraries, stop_signals, usable_streams

MEMORY_ADVICE = "try `gradient_checkpointing`, a smaller `per_device_train_batch_size` or `max_length`"
DOORS = {"train": "train.py", "generate": "generate.py"}  # scripts beside the package that start these commands


def run(main: Callable[[], None], *, prog: str) -> int:
    """Call `main` and return the exit status: 0, 2 for wrong input or a failing machine, or 128 + the signal.

    An exception that is a bug of ours passes through, so Python shows its traceback and exits with 1.
    """
    with usable_streams():
        return _run(main, prog)


def _run(main: Callable[[], None], prog: str) -> int:
    """Call `main` and return the exit status, as `run` does."""
    if threading.current_thread() is threading.main_thread():  # Python lets no other set what a signal does
        for signum in stop_signals():
            signal.signal(signum, _raise_interrupted)
    gc.disable()  # until `settle`: to scan what the imports create, all of it in use, took 0.4 of 3.4 s
    try:
        main()
        sys.stdout.flush()
        return 0
    except Interrupted as stop:
        return _say(prog, stop.message, stop.exit_status)
    except BrokenPipeError:
        drop_output()
        return 128 + signal.SIGPIPE
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _say(prog, f"error: out of memory; {MEMORY_ADVICE}", 2)
        if isinstance(error, RuntimeError):
            raise
        return _say(prog, f"error: {_one_line(error)}", 2)
    finally:
        gc.enable()


def leave(status: int) -> int:
    """Return `status`; but after an error, end the process at once if a thread still works, which Python waits for."""
    busy = [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]
    if status and busy:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    return status


def settle() -> None:
    """Silence the libraries until the process ends, and leave what was imported out of garbage collection.

    A command calls this once, when everything is imported.
    """
    silence_libraries()
    gc.freeze()
    gc.enable()


def typed(command: str, started_as: str | None = None) -> str:
    """Return what the user types for another command: `softprompt generate`, or the way this process was started.

    Args:
        started_as: the first word of the command line; None takes that of this process.
    """
    started = Path(sys.argv[0] if started_as is None else started_as)
    if started.name == "__main__.py":
        return f"python -m softprompt {command}"
    if started.name in DOORS.values():
        door = DOORS.get(command)
        return f"python {shlex.quote(str(started.with_name(door)))}" if door else f"python -m softprompt {command}"
    return f"softprompt {command}"


def _raise_interrupted(signum: int, frame: object) -> NoReturn:
    raise Interrupted(signum)


def _one_line(error: BaseException) -> str:
    """Return the message without line breaks, and for an `OSError` with the file in front."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def _say(prog: str, message: str, status: int) -> int:
    """Print one line to stderr, in which options are spelled as flags and nothing reaches the terminal unseen."""
    with contextlib.suppress(OSError, ValueError):  # the exit status stays, also where nobody can read the line
        print(visible(flags_in(f"{prog}: {message}")), file=sys.stderr, flush=True)
    return status
