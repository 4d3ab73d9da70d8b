"""The answers on disk: finished batches in `OUTPUT.partial`, and at the end the whole output in the rows' order.

The first line of the partial file says to which run its answers belong. Every further line is one batch, which is
synced to disk before the next one begins, so a crash loses only the batch in progress.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from softprompt.config.commands import GenerateConfig
from softprompt.data.values import to_json
from softprompt.errors import UserError
from softprompt.system import sources
from softprompt.system.files import FileId, check_output_file, remove_temporaries, write_atomic, write_result
from softprompt.system.foreign import decode_json
from softprompt.system.locks import hold_lock

KIND = "softprompt answers"
VERSION = 1
BATCHES_READ = 256  # so many batches are kept in memory while the output is written


class AnswerFile:
    """Answers by row number, which are saved batch by batch and stay on the disk.

    `header` is the first line of the partial file.
    """

    def __init__(self, path: Path, header: dict, num_rows: int, lines: dict[int, int]) -> None:
        """Take what is known of a partial file: `lines` says for the number of a row where its batch's line begins."""
        self.path, self.header, self.num_rows, self._lines = path, header, num_rows, lines
        self.replaces: FileId | None = None  # the file that the output may replace
        self.partial = partial_path(path)
        # neighbours in the file of rows may lie in any of the batches
        self._batch_at = functools.lru_cache(maxsize=BATCHES_READ)(self._read_batch)

    def _read_batch(self, start: int) -> dict[int, list[str]]:
        with self.partial.open("rb") as file:
            file.seek(start)
            batch = _batch(file.readline())
        assert batch is not None  # this process wrote the line, or has read it
        return batch

    @classmethod
    def start(cls, path: Path, header: dict, num_rows: int) -> "AnswerFile":
        """Write a partial file without answers; it replaces an earlier one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(partial_path(path), _line({"kind": KIND, "version": VERSION} | header))
        return cls(path, header, num_rows, {})

    @classmethod
    def go_on(cls, path: Path, header: dict, num_rows: int) -> "AnswerFile":
        """Read what a stopped run saved, and drop the first line that a crash damaged and all lines behind it."""
        partial = partial_path(path)
        with partial.open("rb") as file:
            whole, known = len(file.readline()), dict[int, int]()
            for line in file:
                batch = _batch(line)
                if batch is None:
                    break
                known |= dict.fromkeys(batch, whole)
                whole += len(line)
        os.truncate(partial, whole)
        return cls(path, header, num_rows, known)

    def __contains__(self, number: int) -> bool:
        """Whether the row of this number is answered."""
        return number in self._lines

    @property
    def num_answered(self) -> int:
        """How many rows are answered."""
        return len(self._lines)

    def answers_of(self, number: int) -> list[str]:
        """The answers of a row, read from the partial file."""
        return self._batch_at(self._lines[number])[number]

    def append(self, numbers: Sequence[int], answers: Sequence[list[str]]) -> None:
        """Save the answers of a finished batch."""
        with self.partial.open("ab") as file:
            start = file.seek(0, os.SEEK_END)
            file.write(_line({"rows": list(numbers), "answers": list(answers)}))
            file.flush()
            os.fsync(file.fileno())
        self._lines |= dict.fromkeys(numbers, start)

    def finish(self, records: Iterable[dict]) -> None:
        """Write the output, one object per row, and delete the partial file.

        A file that came to that place meanwhile is kept, unless it holds the same; `path` is then a free name beside.
        """
        self.path = write_result(self.path, map(_line, records), replaces=self.replaces)
        self.partial.unlink(missing_ok=True)

    def place(self) -> str:
        """Return the part of a message that says what is saved and how to go on."""
        return f"{self.num_answered} of {self.num_rows} rows are answered, in {self.partial}; go on with `resume`"


def answers_path(config: GenerateConfig) -> Path:
    """Return where the answers go, by default `rows.answers.jsonl` beside `rows.csv` or a folder `rows`.

    For rows that have no path, such as those of a hub id, the file is in the current folder.
    """
    if config.output_file is not None:
        return Path(config.output_file)
    name = config.instructions
    assert name is not None  # one question alone has no answer file
    if sources.is_builtin(name) or not sources.is_path(name):
        return Path(f"{name.removeprefix(sources.PREFIX).rsplit('/', 1)[-1]}.answers.jsonl")
    rows = sources.local_path(name, "instructions")
    if rows.name in ("", ".."):
        rows = rows.resolve()
    stem = rows.name if rows.is_dir() else sources.stem_of(rows)
    return rows.with_name(f"{stem}.answers.jsonl")


def partial_path(path: Path) -> Path:
    """Return the path of the partial file; by its suffix, a reader of that folder does not take it for rows."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def reserved_answers(config: GenerateConfig, say: Callable[[str], None]) -> Iterator[FileId | None]:
    """Check the output, and keep other processes from answering into it within the block.

    It yields the file that the output may replace.

    Args:
        say: takes a line if the file system has no locks.

    Raises:
        UserError: as `check_answer_file`; or another process answers into the file.
    """
    path = answers_path(config)
    if not path.parent.is_dir():
        check_answer_file(config)  # before the folder is made for the lock
    with hold_lock(path.with_name(f".{path.name}.lock"), what=f"`output_file` {path}", say=say):
        check_answer_file(config)
        remove_temporaries(path.parent, f"{re.escape(path.name)}(?:\\.partial)?", locked=False)
        partial = partial_path(path)
        replace = config.overwrite or (partial.exists() and read_header(partial).get("overwrite") is True)
        yield FileId.of(path) if replace else None


def check_answer_file(config: GenerateConfig) -> None:
    """Check, before anything is loaded, that the output may be written; nothing is written here.

    Raises:
        UserError: the output or the answers of a stopped run exist and no option allows replacing them, the output is
            no place for a file, or it is the prompt file or among the rows.
    """
    path = answers_path(config)
    partial = partial_path(path)
    refuse_sources(path, prompt_files=[config.prompt_file], rows=config.instructions, option="instructions")
    for each in (path, partial):  # which files may be replaced is checked below
        check_output_file(each, option="output_file", replace=True)
    started = read_header(partial) if partial.exists() else None
    if config.overwrite:
        return
    if started is not None and not config.resume:
        raise UserError(f"{partial}: holds a stopped run's answers; go on with `resume`, or replace it by `overwrite`")
    if path.exists() and config.resume and started is None:
        raise UserError(f"`resume`: there is no {partial} to go on from, and {path} exists; it is kept")
    if path.exists() and started is None:
        raise UserError(f"`output_file` {path}: already there; name another, or replace it with `overwrite`")


def read_header(partial: Path) -> dict:
    """Return the first line of a partial file.

    Raises:
        UserError: softprompt did not write the file, or another version did.
    """
    with partial.open("rb") as file:
        line = file.readline()
    try:
        header = decode_json(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise UserError(f"{partial}: not written by `softprompt generate`; name another `output_file`")
    if header.get("version") != VERSION:
        raise UserError(f"{partial}: written by another version of softprompt; delete it to start anew")
    return header


def refuse_sources(path: Path, *, prompt_files: Sequence[str], rows: str | None, option: str) -> None:
    """Raise `UserError` if an output file is a prompt file or among the rows, which `option` names.

    A file in the folder of the rows is refused as well, since it would be read as rows the next time.
    """
    target = path.resolve()
    if target in [Path(name).resolve() for name in prompt_files]:
        raise UserError(f"`output_file` {path}: is the `prompt_file`; name another")
    if rows is not None and sources.is_path(rows) and not sources.is_builtin(rows):
        source = sources.local_path(rows, option).resolve()
        if target == source or (source.is_dir() and source in target.parents):
            raise UserError(f"`output_file` {path}: is among the `{option}` {rows}; name another")


def _batch(line: bytes) -> dict[int, list[str]] | None:
    """Return the answers of one line by row number, or None if the line is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        batch = decode_json(line)
        return dict(zip(batch["rows"], batch["answers"], strict=True))
    except (ValueError, LookupError, TypeError):
        return None


def _line(value: dict) -> bytes:
    """Return one line of JSONL, in which no script is escaped."""
    return (to_json(value) + "\n").encode()
