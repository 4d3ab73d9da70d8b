"""What others wrote: their code, behind which every exception is one line; their JSON, bounded; their text, shown.

A folder or a file that a stranger gives may hold anything, so no list of exceptions would be complete.
"""

import contextlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softprompt.errors import UserError
from softprompt.system.process import is_out_of_memory

MAX_JSON_BYTES = 1 << 28
MAX_DEPTH = 32
MAX_REASON = 300  # characters of a foreign message that are quoted
TURNING = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}  # they turn the order of what follows
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@contextlib.contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turn whatever foreign code raises within the block into a `UserError` that begins with `what`.

    Memory that ran out stays what it is. Only calls of other libraries belong into such a block: in code of ours the
    same exceptions are bugs.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # a panic of a Rust extension is no Exception
        ours = not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        if ours or is_out_of_memory(error):
            raise
        raise UserError(f"{what} ({reason_of(error)})") from error


def reason_of(error: BaseException) -> str:
    """The message of a foreign exception on one line, cut to `MAX_REASON` characters; without one, its type."""
    words = visible(" ".join(str(error).split()))
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ImportError):
        return f"a package is missing: {words[:MAX_REASON]}"
    if isinstance(error, KeyError) or len(words) < 4:
        words = f"{type(error).__name__} {words}".strip()
    return words if len(words) <= MAX_REASON else words[: MAX_REASON - 3] + "..."


def require_plain_file(path: Path, what: str) -> None:
    """Raise a `UserError` that begins with `what` unless `path` is a plain file that is not empty, nor a Git LFS
    pointer in place of the file."""
    try:
        if not path.is_file():
            raise UserError(f"{what}: {path.name} is no plain file" if path.exists() else f"{what}: no {path.name}")
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as error:
        raise UserError(f"{what}: {path.name} cannot be read ({error.strerror or error})") from error
    if not head:
        raise UserError(f"{what}: {path.name} is empty; fetch it again")
    if head == LFS_POINTER:
        raise UserError(
            f"{what}: {path.name} is a Git LFS pointer and not the file itself; run `git lfs pull` in its repository"
        )


def decode_json(text: str | bytes) -> Any:
    """Decode JSON as `json.loads` does; what is nested too deeply is a `ValueError` as well."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that must hold one object.

    Raises:
        UserError: it begins with `what`; the file is missing, too large, no JSON, or not an object.
    """
    require_plain_file(path, what)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{what}: {path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
        content = decode_json(path.read_text("utf-8"))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {path.name} is not JSON ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path.name} is not a JSON object")
    return content


def parse_json(text: str, what: str) -> Any:
    """Parse JSON in which nothing is nested deeper than `MAX_DEPTH` and no number is NaN or infinite.

    Raises:
        UserError: it begins with `what`, which the text is not.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not JSON ({reason_of(error)})") from error
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise UserError(f"{what} is nested too deeply")
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level, depth = [each for several in inner for each in several], depth + 1
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def visible(text: str) -> str:
    """Return `text` with everything that is not printable, such as an escape sequence of terminals, as its escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible_text(text: str) -> str:
    """Return a text of several lines in which what a terminal would obey, or show out of order, is escaped.

    Line breaks and tabs stay, and so do characters of scripts that are not printable by themselves, such as joiners.
    """
    return "".join(repr(c)[1:-1] if _is_obeyed(c) else c for c in text)


def _is_obeyed(character: str) -> bool:
    return character not in "\n\t" and (unicodedata.category(character) in ("Cc", "Cs") or character in TURNING)
