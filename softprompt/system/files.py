"""Files and folders that appear whole or not at all: they are written beside the target, synced and renamed."""

import contextlib
import errno
import filecmp
import functools
import hashlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import UserError

SUFFIX = ".tmp"  # of temporary files
# what a file system without rights, or one that cannot sync a folder, answers
REFUSED = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
PROBE = 4096  # bytes that are written to try a place
LONGEST_WRITE = 86400  # seconds after which a temporary file of another host is taken to be of the dead


@dataclass(frozen=True)
class FileId:
    """Which file stands under a name, and in which state: it changes when the file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified: int  # ns

    @classmethod
    def of(cls, path: str | os.PathLike) -> "FileId | None":
        """Return the identity of the file at `path`; None if there is none."""
        try:
            stat = os.stat(path)
        except OSError:
            return None
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Write `content` to `path`. A reader, also after a crash, finds the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is then as it was.
    """
    path = Path(path)
    with _written(path, [content]) as temporary:
        os.replace(temporary, path)
    _sync_folder(path.parent)


def write_result(path: str | os.PathLike, content: bytes | Iterable[bytes], *, replaces: FileId | None) -> Path:
    """Write `content`, whole or in parts, but never over a file that came to `path` in the meantime.

    Args:
        replaces: the file that may be replaced, as it was when the work began; None: there was none.

    Returns:
        The path that was written: `path`, or a free name beside it if another file has that name by now. If that file
        holds `content` already, it stays as it is.

    Raises:
        OSError: as `write_atomic`.
    """
    path = Path(path)
    with _written(path, [content] if isinstance(content, bytes) else content) as temporary:
        if path.is_file() and FileId.of(path) != replaces and filecmp.cmp(path, temporary, shallow=False):
            os.unlink(temporary)
            return path
        target, count = path, 1
        while not _place(temporary, target, replaces if count == 1 else None):
            count += 1
            target = path.with_name(f"{path.stem}-{count}{path.suffix}")
    _sync_folder(path.parent)
    return target


def _place(temporary: str, target: Path, replaces: FileId | None) -> bool:
    """Give `temporary` the name `target`, unless another file than `replaces` has it; return whether it has it now."""
    if replaces is None and not os.path.lexists(target):
        try:
            os.link(temporary, target)  # unlike a rename, this fails if a file came there since
            os.unlink(temporary)
            return True
        except FileExistsError:
            return False
        except (OSError, NotImplementedError):  # a file system without hard links
            pass
    elif replaces is None or FileId.of(target) not in (None, replaces):
        return False
    os.replace(temporary, target)
    return True


@contextlib.contextmanager
def _written(path: Path, content: Iterable[bytes]) -> Iterator[str]:
    """Yield the name of a synced temporary file with `content` beside `path`; an error removes it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path), suffix=SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(content)
            file.flush()
            if hasattr(os, "fchmod"):  # Windows has none
                with _optional():
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        yield temporary
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # the error of a full disk names no file, and others name the temporary one
        raise


def remove_temporaries(folder: Path, name: str, *, locked: bool) -> None:
    """Remove temporary files for `name` in `folder`, a regular expression, that processes left which have ended.

    Whether a process of another host, or of another container, has ended cannot be told; its files go after a day.

    Args:
        locked: whether no other process writes such files now, so that all of them are of the dead.
    """
    pattern = re.compile(rf"\.(?:{name})\.(?:(\d+)(?:-([0-9a-f]+))?\.)?[^.]*{re.escape(SUFFIX)}")
    with contextlib.suppress(OSError):  # what cannot be removed only takes room
        for path in folder.iterdir():
            found = pattern.fullmatch(path.name)
            if found and (locked or (found[1] is not None and _has_ended(int(found[1]), found[2], path))):
                if path.is_dir() and not path.is_symlink():
                    remove_folder(path)
                else:
                    path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it, without opening folders, which some systems refuse; raises `OSError`."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


def _remove_quietly(folder: Path) -> None:
    with contextlib.suppress(OSError):
        remove_folder(folder)


def _has_ended(process: int, host: str | None, path: Path) -> bool:
    """Whether the process of this number and host, which wrote `path`, has ended; if in doubt, it has not."""
    if host != _host():
        return time.time() - path.lstat().st_mtime > LONGEST_WRITE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@functools.cache
def _host() -> str:
    """Return what processes have in common that see the numbers of each other: eight hexadecimal digits."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):  # containers of one machine share folders and not process numbers
        name += str(os.stat("/proc/self/ns/pid").st_ino)
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def temporary_prefix(path: Path) -> str:
    """Return how the names of temporary files for `path` begin; process and host tell whose they are."""
    return f".{path.name}.{os.getpid()}-{_host()}."


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    A folder that is at `path` is replaced.
    """
    path = Path(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=temporary_prefix(path), suffix=SUFFIX))
    try:
        yield temporary
        with _optional():
            os.chmod(temporary, 0o777 & ~_umask())
        _sync_folder(temporary)
        if path.exists():  # a rename replaces no folder that holds something
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=temporary_prefix(path), suffix=SUFFIX))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            _remove_quietly(old)
        else:
            os.rename(temporary, path)
    except BaseException:
        _remove_quietly(temporary)
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
    require_writable(path.parent, what=f"`{option}` {path}", names=(path.name,))
    if path.exists() and not replace:
        raise UserError(f"`{option}` {path}: already there; name another, or replace it with `overwrite`")


def check_output_folder(folder: Path, *, option: str) -> None:
    """Raise `UserError` unless `folder` is a folder or can be made; what it holds is not looked at."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`{option}` {folder}: is a file; name another folder")
    require_writable(folder, what=f"`{option}` {folder}")


def require_writable(folder: str | os.PathLike, *, what: str, names: tuple[str, ...] = ("probe",)) -> None:
    """Write a file for each of `names` in `folder`, or in its nearest existing parent, and remove it again.

    Raises:
        UserError: it cannot be written, for instance because the disk is full or a name is too long for the file
            system; the message begins with `what`.
    """
    folder = Path(folder)
    existing, missing = folder, []
    try:
        while not existing.exists() and existing != existing.parent:
            missing.append(existing.name)
            existing = existing.parent
        for each in missing:
            if len(os.fsencode(each)) > 255:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        for name in names:
            _try_write(existing, name)
            os.path.lexists(folder / (name + "." * 24))  # looks at the whole length of the path
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{what}: cannot write in {folder} ({reason}); choose another place") from error


def _try_write(folder: Path, name: str) -> None:
    """Write and remove a temporary file for `name`, as well as those that dead processes left; raises `OSError`."""
    remove_temporaries(folder, re.escape(name), locked=False)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=temporary_prefix(folder / name), suffix=SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Sync `folder` to disk, where that is possible, so that a rename in it survives a power cut."""
    with _optional():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _optional() -> Iterator[None]:
    """Go on if the system refuses what the block asks for; a disk that is full or fails is an error still."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise


def _umask() -> int:
    """Return the umask of the process; the only way to read it is to set it and set it back."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
