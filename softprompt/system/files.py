"""Files and folders that appear whole or not at all: they are written beside the target, synced and renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from softprompt.errors import UserError


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Write `content` to `path`. A reader, also after a crash, finds the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is then as it was.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # the error of a full disk names no file, and others name the temporary one
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        _sync_folder(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def check_output_file(path: Path, *, option: str, replace: bool) -> None:
    """Check, before any work is done, that the output `path` may be written; nothing that lasts is written here.

    Args:
        option: the option that names the file, for messages.
        replace: whether a file that is there may be replaced.

    Raises:
        UserError: a folder or a device is there, a file is there and `replace` is false, or nothing can be written.
    """
    if path.is_dir():
        raise UserError(f"`{option}` {path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"`{option}` {path}: is no plain file, and would be replaced by one; name another")
    require_writable(path.parent, what=f"`{option}` {path}")
    if path.exists() and not replace:
        raise UserError(f"`{option}` {path}: already there; name another, or replace it with `overwrite`")


def check_output_folder(folder: Path, *, option: str) -> None:
    """Raise `UserError` unless `folder` is a folder or can be made; what it holds is not looked at."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`{option}` {folder}: is a file; name another folder")
    require_writable(folder, what=f"`{option}` {folder}")


def require_writable(folder: str | os.PathLike, *, what: str) -> None:
    """Raise a `UserError` that begins with `what` unless `folder`, or its nearest existing parent, is writable."""
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{what}: cannot write in {folder} ({reason}); choose another place") from error


def _sync_folder(folder: Path) -> None:
    """Sync `folder` to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the umask of the process; the only way to read it is to set it and set it back."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
