"""Tables of rows: Arrow files that rows are streamed into, and one way to go through them wherever they came from.

The Arrow files hold text alone. Which values were no text in their file stands in a column of its own.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from softprompt.data.values import Raw, is_blank, shortest_text
from softprompt.errors import UserError

NOT_TEXT = "softprompt: columns that are no text"  # of each row, as a JSON list
ROWS_TOGETHER = 1000
CHARACTERS_TOGETHER = 2**24
MOST_COLUMNS = 1000


@dataclass(frozen=True)
class Part:
    """Some rows of a table. `file` is the file that they stand in, or empty."""

    rows: "Dataset | Sequence[Mapping[str, Any]]"
    file: str = ""


@dataclass
class Table:
    """The rows of one split, in one or more parts, with what is worth saying about them."""

    parts: list[Part]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rows: "Sequence[Dataset]", file: str = "", notes: Sequence[str] = ()) -> "Table":
        """The rows of one file, which may be in several data sets."""
        return cls([Part(each, file) for each in rows], list(notes))

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    @property
    def columns(self) -> list[str]:
        """Every column of any part, in the order in which they come."""
        names = dict.fromkeys(itertools.chain.from_iterable(_columns_of(part.rows) for part in self.parts))
        return [name for name in names if name != NOT_TEXT]

    def rows(self, columns: Sequence[str], places: Tensor | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Row by row its place from 0, and the values of some columns, without those that the row lacks.

        Args:
            places: which rows, as ascending places; None takes all.
        """
        before = 0
        for part in self.parts:
            count = len(part.rows)
            if places is None:
                yield from enumerate(_rows_of(part.rows, columns), start=before)
            else:
                first, last = torch.searchsorted(places, torch.tensor([before, before + count])).tolist()
                chosen = places[first:last] - before
                some = _some_of(part.rows, columns, chosen)
                yield from ((before + place, row) for place, row in zip(_each(chosen), some, strict=True))
            before += count

    def example(self) -> dict[str, Any]:
        """The first row, without pictures and sounds, which are not opened for this."""
        for part in self.parts:
            if not len(part.rows):
                continue
            if not isinstance(part.rows, Dataset):
                return dict(part.rows[0])
            kinds = part.rows.features
            columns = [name for name in part.rows.column_names if not getattr(kinds[name], "decode", False)]
            return next(_rows_of(part.rows.select(range(1)), [name for name in columns if name != NOT_TEXT]))
        return {}

    def where(self, number: int) -> tuple[str, int]:
        """The file of a row, empty for rows that stand in none, and the row's number there."""
        before = dict.fromkeys((part.file for part in self.parts), 0)
        for part in self.parts:
            if number <= len(part.rows):
                return part.file, before[part.file] + number
            number -= len(part.rows)
            before[part.file] += len(part.rows)
        raise AssertionError("no such row")

    def holds_something(self, column: str) -> bool:
        """Whether any row has more than blanks in a column."""
        return any(_holds_something(part.rows, column) for part in self.parts)

    def class_labels(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """The names of the classes, for every column that holds class labels."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            if isinstance(part.rows, Dataset):
                kinds = part.rows.features
                found |= {name: kinds[name].names for name in columns if isinstance(kinds.get(name), ClassLabel)}
        return found


class TableWriter:
    """Streams rows of text into Arrow files: a new one begins where rows have a column that the last one lacks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, 0
        self.columns: dict[str, None] = {}
        self.written: list[Path] = []
        self.writer: ArrowWriter | None = None
        self.waiting: list[dict[str, str]] = []
        self.characters = 0
        self.done = 0

    def add(self, row: dict[str, str]) -> None:
        """Take one row."""
        self.waiting.append(row)
        self.characters += sum(map(len, row.values()))
        if len(self.waiting) >= ROWS_TOGETHER or self.characters >= CHARACTERS_TOGETHER:
            self._flush()

    def finish(self) -> list[Dataset]:
        """The tables of all rows, in their order, read from the disk as they are asked for."""
        self._flush()
        self._close()
        return [Dataset.from_file(str(path)) for path in self.written]

    def _flush(self) -> None:
        """Write the rows that wait."""
        if not self.waiting:
            return
        names = dict.fromkeys(itertools.chain.from_iterable(self.waiting))
        if self.writer is None or not names.keys() <= self.columns.keys():
            self._begin(names)
        assert self.writer is not None
        batch: dict[str, list] = {name: [row.get(name) for row in self.waiting] for name in self.columns}
        batch[NOT_TEXT] = [_not_text(row) for row in self.waiting]
        try:
            self.writer.write_batch(batch)
        except UnicodeEncodeError as error:
            raise self._no_unicode() from error
        self.done += len(self.waiting)
        self.waiting, self.characters = [], 0

    def _begin(self, names: Mapping[str, None]) -> None:
        """Open a file that has the columns so far and those named."""
        self._close()
        self.columns |= dict.fromkeys(name for name in names if name != NOT_TEXT)
        if len(self.columns) > MOST_COLUMNS:
            raise UserError(
                f"rows have more than {MOST_COLUMNS:,} different keys; give every row the same keys, such as output"
            )
        path = self.folder / f"rows-{len(self.written)}.arrow"
        self.written.append(path)
        features = Features({name: Value("string") for name in (*self.columns, NOT_TEXT)})
        self.writer = ArrowWriter(features=features, path=str(path))

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.finalize()
        self.writer = None

    def _no_unicode(self) -> UserError:
        """The error that names the first waiting row with half a character in it."""
        for number, row in enumerate(self.waiting, start=self.done + 1):
            for name, value in row.items():
                try:
                    (name + value).encode()
                except UnicodeEncodeError:
                    return UserError(
                        f"row {number}: {name!r} holds half of a \\u pair, which is no character; delete it"
                    )
        raise AssertionError("every row can be written")


def _not_text(row: Mapping[str, str]) -> str | None:
    """Which columns of a row hold no text."""
    names = [name for name, value in row.items() if type(value) is Raw]
    return json.dumps(names) if names else None


def _columns_of(rows: "Dataset | Sequence[Mapping[str, Any]]") -> Iterable[str]:
    if isinstance(rows, Dataset):
        return rows.column_names
    return dict.fromkeys(itertools.chain.from_iterable(rows))


def _each(numbers: Tensor) -> Iterator[int]:
    """The numbers one by one, without a list of all of them."""
    return itertools.chain.from_iterable(part.tolist() for part in numbers.split(ROWS_TOGETHER))


def _some_of(
    rows: "Dataset | Sequence[Mapping[str, Any]]", columns: Sequence[str], places: Tensor
) -> Iterator[dict[str, Any]]:
    """The rows at some places, which are ascending."""
    if len(places) > len(rows) // 2:  # most of them: faster all in a row than one by one
        wanted = torch.zeros(len(rows), dtype=torch.bool)
        wanted[places] = True
        yield from itertools.compress(_rows_of(rows, columns), _each(wanted))
        return
    for some in places.split(ROWS_TOGETHER):
        few = some.tolist()
        yield from _rows_of(rows.select(few) if isinstance(rows, Dataset) else [rows[place] for place in few], columns)


def _rows_of(rows: "Dataset | Sequence[Mapping[str, Any]]", columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Row by row, as plain values detached from the file; class labels by name, and floats as their type has them."""
    if not isinstance(rows, Dataset):
        for row in rows:
            yield {name: row[name] for name in columns if name in row}
        return
    used = [name for name in columns if name in rows.column_names]
    if not used:
        yield from ({} for _ in range(len(rows)))
        return
    marked = NOT_TEXT in rows.column_names
    change = {name: how for name in used if (how := _how_to_write(rows.features[name])) is not None}
    # a format such as pandas decides how values come, and says nothing of what they are
    plain = rows.with_format(None).select_columns([*used, NOT_TEXT] if marked else used)
    for batch in plain.iter(batch_size=ROWS_TOGETHER):
        marks = batch.pop(NOT_TEXT) if marked else None
        for name, how in change.items():
            batch[name] = [None if value is None else how(value) for value in batch[name]]
        for place, values in enumerate(zip(*batch.values(), strict=True)):
            row = dict(zip(batch, values, strict=True))
            if marked:
                row = {name: value for name, value in row.items() if value is not None}
                if marks is not None and marks[place] is not None:
                    row |= {name: Raw(row[name]) for name in json.loads(marks[place]) if name in row}
            yield row


def _how_to_write(kind: Any) -> Any:
    """A function from the values of a column to what is to be read, or None where they are it."""
    if isinstance(kind, ClassLabel):
        return lambda value: kind.int2str(value) if 0 <= value < kind.num_classes else None
    if isinstance(kind, Value) and kind.dtype in ("float16", "float32"):
        return lambda value: None if value != value else Raw(shortest_text(value, kind.dtype))
    return None


def _holds_something(rows: "Dataset | Sequence[Mapping[str, Any]]", column: str) -> bool:
    """Whether any row has more than blanks in a column."""
    if not isinstance(rows, Dataset):
        return any(not is_blank(row.get(column)) for row in rows)
    if column not in rows.column_names:
        return False
    if getattr(rows.features[column], "decode", False):  # pictures and sounds are not opened for this
        return rows.data.column(column).null_count < rows.data.num_rows
    return any(not is_blank(row.get(column)) for row in _rows_of(rows, [column]))
