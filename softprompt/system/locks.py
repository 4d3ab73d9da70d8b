"""Advisory locks: while one process writes to a folder or a file, another is told who does, and touches nothing.

The lock belongs to an open file, so it ends with its process, however that ends. What the file says (process, host and
time) is only for the message.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from softprompt.errors import UserError

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # what a lock that another process holds gives
FAR = 1 << 30  # Windows locks bytes against reading too, so a byte behind the text is locked


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path` within the block; missing folders are made, and removed again if they stay empty.

    Args:
        what: what is locked, for the message.
        say: takes one line where the system or the file system has no locks; the block then runs without one.

    Raises:
        UserError: another process holds the lock; the message says which.
    """
    made = _make_folders(path.parent)
    try:
        handle = _locked(path, what, say)
        try:
            yield
        finally:
            if handle is not None:
                with contextlib.suppress(OSError):  # Windows removes no open file
                    path.unlink()
                os.close(handle)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something now
                folder.rmdir()


def _locked(path: Path, what: str, say: Callable[[str], None]) -> int | None:
    """Return the open and locked file, or None where there are no locks."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # a folder that cannot be written is refused by its own check
            return None
        try:
            _lock(handle)
            if _is_same(handle, path):
                _sign(handle)
                return handle
            os.close(handle)  # its holder ended and removed it between the two calls above
        except OSError as error:
            holder = _holder(handle)
            os.close(handle)
            if error.errno in HELD:
                raise UserError(f"{what}: in use by {holder}; wait until it ends, or name another place") from error
            with contextlib.suppress(OSError):
                path.unlink()
            say(f"note: {what} is not locked, since the file system has no locks; start no second run there")
            return None


def _lock(handle: int) -> None:
    """Lock an open file without waiting; raises `OSError`."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        os.lseek(handle, FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _is_same(handle: int, path: Path) -> bool:
    """Whether the locked file is still the one that has the name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    """Write into the lock file who holds it; a full disk is no error, since the text is only for a message."""
    text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, text.encode("utf-8", "replace"))


def _holder(handle: int) -> str:
    """Return what the lock file says of its holder."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        text = os.read(handle, 200).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return "".join(each if each.isprintable() else "?" for each in text) or "another process"


def _make_folders(folder: Path) -> list[Path]:
    """Make the missing folders of a path, and return those that were made, the innermost first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    for each in reversed(missing):
        try:
            each.mkdir()
        except OSError:  # found out, and said, by the check of the place
            break
        made.insert(0, each)
    return made
