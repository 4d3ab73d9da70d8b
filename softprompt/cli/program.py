"""A command as a program: its exit status, its one line of complaint, and libraries that keep quiet."""

import gc
import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from softprompt.errors import Interrupted, UserError
from softprompt.system.process import drop_output, is_out_of_memory


def run(main: Callable[[], None], *, prog: str) -> int:
    """Call `main` and return the exit status: 0, 1 (our bug), 2 (input or machine), or 128 + the signal."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _raise_interrupted)
    gc.disable()  # until `quiet_libraries`: walking over what the imports make, all of it alive, took 0.4 of 3.4 s
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


def quiet_libraries() -> None:
    """Leave the screen to softprompt: no bars, warnings or log lines of the libraries that a command uses.

    They are imported by now, and are left out of garbage collection from here on.
    """
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    gc.freeze()
    gc.enable()


MEMORY_ADVICE = "try --gradient-checkpointing, a smaller --per-device-train-batch-size or --max-length"


def _raise_interrupted(signum: int, frame: object) -> NoReturn:
    raise Interrupted(signum)


def _one_line(error: BaseException) -> str:
    """The message with the file of an `OSError` in front and no line breaks."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def _say(prog: str, message: str, status: int) -> int:
    """Print one line to stderr and hand the status back."""
    print(f"{prog}: {message}", file=sys.stderr, flush=True)
    return status
