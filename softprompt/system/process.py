"""Signals that wait for the end of a step, memory that ran out, and an output whose reader has gone."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM only call `note` with their number."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.signal(signum, lambda number, frame: note(number)) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or, in the words of its own errors, PyTorch found no memory."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def drop_output() -> None:
    """Send stdout nowhere once its reader has gone (`| head`), so that nothing fails on it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
