"""The process around a run: its signals, running out of memory, a closed stdout, and output of other libraries."""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

LIBRARIES = (
    r"(transformers|datasets|torch|huggingface_hub|safetensors|pyarrow)(\.|$)"  # modules whose warnings are noise
)


@contextlib.contextmanager
def deferred_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP do no more within the block than call `note` with their number.

    A SIGHUP that is ignored, as `nohup` has it, stays ignored. Python handles signals in the main thread alone, so in
    another thread nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, lambda number, frame: note(number)) for signum in stop_signals()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None:  # None: it was not Python that set it
                signal.signal(signum, handler)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a command: SIGINT, SIGTERM, and SIGHUP unless it is ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        signals.append(hangup)
    return signals


def silence_libraries() -> Callable[[], None]:
    """Let `datasets` and `transformers` show no bars, warnings or log lines; return the function that undoes it."""
    import datasets
    import transformers

    no_bars, bars = datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled()
    levels = datasets.logging.get_verbosity(), transformers.logging.get_verbosity()
    python_warnings = warnings.catch_warnings()
    python_warnings.__enter__()
    warnings.filterwarnings("ignore", module=LIBRARIES)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()

    def restore() -> None:
        python_warnings.__exit__(None, None, None)
        if not no_bars:
            datasets.enable_progress_bars()
        if bars:
            transformers.logging.enable_progress_bar()
        datasets.logging.set_verbosity(levels[0])
        transformers.logging.set_verbosity(levels[1])

    return restore


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries, as `silence_libraries` does, for the duration of a block."""
    restore = silence_libraries()
    try:
        yield
    finally:
        restore()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; PyTorch says so only in the text of a `RuntimeError`."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def drop_output() -> None:
    """Discard stdout from now on, once its reader has gone or its disk is full, so that no later write to it fails."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a notebook's stdout has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Give a closed stdout or stderr a place to write to, and let both escape what their encoding cannot say."""
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
