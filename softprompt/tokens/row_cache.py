"""Encoded rows of a large data set, kept under the user's cache folder for the next run over the same files.

An entry is a folder of Arrow files and `entry.json`. It is found by the content of the data's files, by how they are
read and by how rows are written. Entries only save time: one that is damaged counts as absent.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softprompt.data.row import Row, RowKinds
from softprompt.data.rows import MOST_KEPT
from softprompt.data.splits import Splits
from softprompt.data.values import to_json
from softprompt.system import sources
from softprompt.system.cache import cache_folder
from softprompt.system.files import FileId, atomic_folder, remove_folder, remove_temporaries
from softprompt.system.foreign import decode_json
from softprompt.system.sources import PACKED, ROW_SUFFIXES
from softprompt.tokens.encoded_rows import EncodedRows, RowFacts
from softprompt.tokens.encoded_splits import Cut, EncodedSplit, EncodedSplits, encode_splits
from softprompt.tokens.encoding import Encoder

VERSION = 1  # goes up when rows of the same files are read, written or stored in another way
MOST_BYTES = 20 << 30
ENTRY = "entry.json"
SUFFIXES = (*ROW_SUFFIXES, *(suffix + PACKED for suffix in ROW_SUFFIXES), ".arrow")  # of files that rows are read from
MOST_FILES, DEEPEST = 10_000, 3
SPLITS = ("train", "held_out", "test")
PARTS = {"rows": "{}.arrow", "without_prompt": "{}-base.arrow"}  # the files of a split


@dataclasses.dataclass(frozen=True)
class RowCache:
    """The entries for certain data files, read in a certain way.

    Attributes:
        folder: holds an entry for every way in which the rows were written.
        files: the data files as they were when they were hashed.
    """

    folder: Path
    files: Mapping[Path, FileId | None]

    @classmethod
    def of(cls, data: Mapping[str, Any], how: Mapping[str, Any]) -> "RowCache | None":
        """The entries for data that is named by paths; None for other data, and for a user without a cache folder.

        Args:
            data: for every option that names data its value, which may be None.
            how: every option that decides which rows are read and how.
        """
        root, names = cache_folder(), {option: name for option, name in data.items() if name is not None}
        if root is None or not all(map(_is_path, names.values())):
            return None
        files: dict[Path, FileId | None] = {}
        digest = hashlib.sha256(json.dumps([VERSION, _versions(), dict(how)], default=str).encode())
        try:
            for option, name in names.items():
                path = sources.local_path(name, option)
                digest.update(f"{option} {path.name}\n".encode())
                for file in _files_in(path):
                    files[file] = FileId.of(file)
                    digest.update(f"{file.relative_to(path.parent)} {_sha256(file)}\n".encode())
        except OSError:  # whoever reads the rows says what is wrong
            return None
        return cls(root / "rows" / digest.hexdigest()[:32], files)

    def kinds(self) -> RowKinds | None:
        """What decides how the rows are written, if an entry knows it; the rows were then read without a fault."""
        for entry in self._entries():
            if (content := _content(entry)) is not None:
                return RowKinds(**content["kinds"])
        return None

    def encoded(self, splits: Callable[[], Splits], encoder: Encoder, way: Any, *, max_length: int) -> EncodedSplits:
        """The rows as `encode_splits` gives them, from an entry if there is one, else from `splits`, and kept if many.

        Args:
            way: as JSON what decides how the encoder writes rows, its tokenizer included.
        """
        key = hashlib.sha256(json.dumps([way, max_length], sort_keys=True).encode()).hexdigest()[:32]
        if (found := _read(self.folder / key, encoder)) is not None:
            return found
        rows = splits()
        if sum(map(len, (rows.train_rows, rows.eval_rows, rows.test_rows))) <= MOST_KEPT:
            return encode_splits(rows, encoder, max_length=max_length)
        with contextlib.suppress(OSError):  # no room in the cache folder: the rows are encoded for this run alone
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_temporaries(self.folder, "[0-9a-f]*", locked=False)
            with atomic_folder(self.folder / key) as folder:
                encoded = encode_splits(rows, encoder, max_length=max_length, folder=folder, most_kept=0)
                _write(folder, encoded, rows.kinds)
                unchanged = all(FileId.of(file) == known for file, known in self.files.items())
                if not unchanged:
                    (folder / ENTRY).unlink()  # so that no run takes it
            _remove_old(self.folder.parent, keep=self.folder / key)
            return _read(self.folder / key, encoder) or encoded
        encoder.lost_turns = 0
        return encode_splits(rows, encoder, max_length=max_length)

    def _entries(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(path.parent for path in self.folder.glob(f"*/{ENTRY}"))
        return []


def _is_path(name: Any) -> bool:
    return isinstance(name, str) and sources.is_path(name) and not sources.is_builtin(name)


def _versions() -> list[str]:
    """The versions of the packages that read, render and tokenise rows."""
    return [importlib.metadata.version(name) for name in ("datasets", "transformers", "tokenizers", "jinja2")]


def _files_in(path: Path) -> list[Path]:
    """A file, or the files of a folder and its folders that may hold rows, in an order of their own.

    Raises:
        OSError: there is no plain file, or there are too many or too deep ones for a data set.
    """
    found = [path] if path.is_file() else []
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        rows = [Path(folder, name) for name in sorted(files) if name.lower().endswith(SUFFIXES)]
        found += [file for file in rows if file.is_file()]  # no pipe, which would be read for ever
        if len(found) > MOST_FILES or (names and len(Path(folder).relative_to(path).parts) >= DEEPEST):
            raise OSError(f"{path}: no data set has so many files")
    if not found:
        raise OSError(f"{path}: no plain file")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, encoded: EncodedSplits, kinds: RowKinds) -> None:
    """Write what an entry says of its Arrow files."""
    content = {
        "kinds": vars(kinds),
        "notes": encoded.notes,
        "choices": list(encoded.choices),
        "splits": {
            name: {
                "skipped": list(split.skipped),
                "copies": split.copies,
                "cut": vars(split.cut),
                "facts": vars(split.facts),
                "sources": [_source(row) for row in split.sources],
            }
            for name, split in zip(SPLITS, encoded.splits, strict=True)
        },
        "files": {path.name: _sha256(path) for path in sorted(folder.glob("*.arrow"))},
    }
    (folder / ENTRY).write_text(to_json(content), "utf-8")


def _source(row: Row) -> dict[str, Any]:
    """A row as JSON, without the columns that it was read from."""
    names = ("messages", "output", "number", "answer", "tools", "text", "encoded", "given")
    return {name: getattr(row, name) for name in names}


def _content(entry: Path) -> dict[str, Any] | None:
    """What an entry says, or None if it cannot be read."""
    try:
        content = decode_json((entry / ENTRY).read_text("utf-8"))
        RowKinds(**content["kinds"])
        return content
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _read(entry: Path, encoder: Encoder) -> EncodedSplits | None:
    """The rows of an entry, or None if there is no such entry, or none that is whole."""
    content = _content(entry)
    if content is None:
        return None
    try:
        if any(_sha256(entry / Path(name).name) != known for name, known in content["files"].items()):
            return None
        train, held_out, test = (_split(entry, name, content["splits"][name]) for name in SPLITS)
        os.utime(entry / ENTRY)  # the entries that were not used for longest go first
        return EncodedSplits(encoder, train, held_out, test, content["notes"], tuple(content["choices"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _split(entry: Path, name: str, content: dict[str, Any]) -> EncodedSplit:
    """One split of an entry."""
    paths = {part: entry / pattern.format(name) for part, pattern in PARTS.items()}
    rows: dict[str, Any] = {part: EncodedRows(path) if path.exists() else () for part, path in paths.items()}
    facts = content["facts"] | {"sketch": tuple(content["facts"]["sketch"])}
    sources = [Row(**{**each, "messages": tuple(each["messages"])}) for each in content["sources"]]
    return EncodedSplit(
        **rows,
        skipped=content["skipped"],
        copies=content["copies"],
        cut=Cut(**content["cut"]),
        sources=sources,
        known_facts=RowFacts(**facts),
    )


def _remove_old(root: Path, keep: Path) -> None:
    """Remove the entries that were not used for longest, until the others take at most 20 GB; `keep` stays."""
    entries = [(path.stat().st_mtime, path.parent) for path in root.glob(f"*/*/{ENTRY}") if path.parent != keep]
    room = MOST_BYTES - _size(keep)
    for _, entry in sorted(entries, reverse=True):
        room -= _size(entry)
        if room < 0:
            with contextlib.suppress(OSError):  # another run may be using it
                remove_folder(entry)


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.iterdir())
