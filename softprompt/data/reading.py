"""Find what a name of data stands for, read its splits, and check every row."""

import contextlib
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from softprompt.data.files import read_file
from softprompt.data.folders import Splits, read_folder
from softprompt.data.row import Row
from softprompt.data.split_names import ALIASES, standard_names
from softprompt.data.tables import Part, Table
from softprompt.data.values import is_missing, kind_of
from softprompt.errors import UserError
from softprompt.system import sources

COLUMNS = ("instruction", "input", "output")
QUESTION_COLUMNS = ("instruction", "input")
STAND_INS = {"input": "context", "output": "response"}  # the names of databricks-dolly and its like
MOST_NAMED = 10  # columns of one note
MOST_CLASSES = 20  # outputs that are all numbers below this look like class labels
# data is a name, or rows that are already in memory
Data: TypeAlias = str | Sequence[Mapping[str, Any]] | Dataset | DatasetDict


def name_of(data: Data) -> str:
    """What messages call the data: its name, or "the rows given" if it came from memory."""
    return data if isinstance(data, str) else "the rows given"


@dataclass
class Source:
    """The splits of one `data`, read when they are asked for.

    Attributes:
        name: what to call it in messages, and `option` the option that named it.
        splits: a reader for every split, under its standard name if it has one.
        given: for every name of a split as it was written, the standard one.
        notes: what is worth telling the user, so far.
    """

    name: str
    option: str
    splits: Splits
    given: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def choose(self, wanted: Iterable[str]) -> str:
        """The name of the first wanted split that is there, or of the only one.

        Raises:
            UserError: several splits are there and none of those.
        """
        for split in wanted:
            if split in self.splits:
                return split
        if len(self.splits) == 1:
            return next(iter(self.splits))
        raise UserError(
            f"`{self.option}` {self.name}: has the splits {', '.join(self.given)} but no train; name one file"
        )

    def note(self, lines: Iterable[str]) -> None:
        """Keep notes, each once."""
        self.notes += [line for line in dict.fromkeys(lines) if line not in self.notes]

    def note_unused_splits(self, used: Iterable[str]) -> None:
        """Keep a note of the splits that are neither used nor one of train, validation and test."""
        used = {*used, *ALIASES}
        unused = [given for given, split in self.given.items() if split not in used]
        if unused:
            self.note([f"{self.name}: these splits are not used: {', '.join(unused)}"])

    def rows(
        self, split: str, *, label: str | None = None, columns: Sequence[str] = COLUMNS, carry: bool = False
    ) -> list[Row]:
        """Every row of a split. A row without a question or an output stays: encoding counts and skips it.

        Args:
            label: what to call the split in messages; the name of the data if it is not given.
            columns: those that are read; `input` may be missing.
            carry: keep the other columns with each row, and do not note that they are unused.

        Raises:
            UserError: a split that cannot be read, without rows or a column that is needed, or with a value that is no
                text and no number.
        """
        with _named(self.option, self.name):
            table = self.splits[split]()
            found = _find_columns(table, columns)
        label = label or self.name
        if not len(table):
            raise UserError(f"{label}: holds no row")
        for column in _required(columns):
            if column not in found:
                needed = " and ".join(f"an {each}" for each in _required(columns))
                raise UserError(f"{label}, row 1: no {column}; every row needs {needed}")
        others = [name for name in table.columns if name not in (*found.values(), *COLUMNS)]
        rows = []
        for number, record in enumerate(table.rows([*found.values(), *others] if carry else [*found.values()]), 1):
            try:
                instruction, given, output = (
                    _text(record.get(found.get(column, "")), found.get(column, column)) for column in COLUMNS
                )
            except UserError as error:
                file, place = table.where(number)
                raise UserError(f"{file or label}, row {place}: {error}") from None
            kept = {name: record[name] for name in others if not is_missing(record.get(name))} if carry else {}
            rows.append(Row.asked(instruction, given, output, number, others=kept))
        self.note(table.notes)
        self.note(f"{self.name}: {note}" for note in _notes_on(table, found, [] if carry else others, rows))
        return rows


@contextlib.contextmanager
def open_data(data: Data, option: str, columns: Sequence[str] = COLUMNS) -> Iterator[Source]:
    """The splits of data; a single table is `train`. What is read into temporary files is gone behind the block.

    Args:
        option: the option that names the data, for messages.
        columns: by which rows are known.

    Raises:
        UserError: data that is not there or cannot be read.
    """
    name, notes = name_of(data), list[str]()
    with tempfile.TemporaryDirectory(prefix="softprompt-", ignore_cleanup_errors=True) as cache:
        with _named(option, name):
            splits = _load(data, option, Path(cache), columns, notes) if isinstance(data, str) else _in_memory(data)
        given = standard_names(splits)
        yield Source(name, option, {given[each]: read for each, read in splits.items()}, given, notes)


@contextlib.contextmanager
def _named(option: str, name: str) -> Iterator[None]:
    """Put option and name in front of what is said of data, unless the message begins with a path or an option."""
    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(f"`{option}` {name}: the hub has no such data set") from error
    except UserError as error:
        message = str(error)
        if message.startswith("`"):
            raise
        path = str(sources.local_path(name, option)) if sources.is_path(name) else name
        if message.startswith(tuple(path + mark for mark in (":", ",", "/", "\\"))):
            raise UserError(f"`{option}` {message}") from error
        raise UserError(f"`{option}` {name}: {message}") from error
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(f"`{option}` {name}: cannot be read ({' '.join(str(cause).split())[:200]})") from error


def _in_memory(data: Any) -> Splits:
    """Take rows from memory: a data set of `datasets` unchanged, or a list of dicts.

    Raises:
        UserError: `data` is neither.
    """
    if isinstance(data, DatasetDict):
        return {name: functools.partial(Table, [Part(rows)]) for name, rows in data.items()}
    if not isinstance(data, Dataset):
        if not isinstance(data, Sequence) or isinstance(data, bytes):
            raise UserError(f"is a {type(data).__name__}; give a name, a list of dicts or a data set of `datasets`")
        for number, row in enumerate(data, start=1):
            if not isinstance(row, Mapping):
                raise UserError(f"row {number}: is a {type(row).__name__}, not a dict")
        data = list(data)
    return {"train": functools.partial(Table, [Part(data)])}


def _load(name: str, option: str, cache: Path, columns: Sequence[str], notes: list[str]) -> Splits:
    """Read a shipped data set, a hub id, a folder or a file, whichever `name` is."""
    if sources.is_builtin(name):
        return read_folder(sources.data_folder(name), cache, columns, notes)
    if not sources.is_path(name):
        sources.require_dataset(name, option)
        return _in_memory(load_dataset(name))
    path = sources.local_path(name, option)
    if not path.exists():
        raise UserError(f"`{option}` {name}: no such file or folder")
    if path.is_dir():
        return read_folder(path, cache, [*columns, *STAND_INS.values()], notes)
    return {split: functools.partial(_same, table) for split, table in read_file(path, cache).items()}


def _same(table: Table) -> Table:
    return table


def _find_columns(table: Table, columns: Sequence[str]) -> dict[str, str]:
    """Find the name that a table has for each of `columns`; a column that it lacks is left out.

    Raises:
        UserError: it has none of them.
    """
    names = table.columns
    found = {column: column for column in columns if column in names}
    for column in columns:
        stand_in = STAND_INS.get(column)
        if column not in found and stand_in in names and "instruction" in names:
            found[column] = stand_in
    if not found:
        if not names and not len(table):
            raise UserError("holds no row")
        needed = " and ".join(_required(columns))
        raise UserError(f"rows need {needed} as columns; here are {', '.join(map(str, names[:5])) or 'none'}")
    return found


def _required(columns: Sequence[str]) -> list[str]:
    """The columns that every row must have; `input` is optional."""
    return [name for name in columns if name != "input"]


def _notes_on(table: Table, found: dict[str, str], others: list[str], rows: list[Row]) -> Iterator[str]:
    """What is worth saying of a table: columns under other names, class labels, and columns that are not used."""
    renamed = [f"{name} is read as {column}" for column, name in found.items() if name != column]
    if renamed:
        yield "the column " + ", and ".join(renamed)
    classes = table.class_labels([*found.values()])
    for column, names in classes.items():
        yield f"{column} holds class labels; their names are used: {_listed(names)}"
    outputs = {row.output for row in rows}
    bare = outputs == {str(number) for number in range(len(outputs))} and 1 < len(outputs) <= MOST_CLASSES
    if bare and not classes and len(outputs) < len(rows):
        yield (
            f"every output is a number from 0 to {len(outputs) - 1}, which looks like class labels without their names;"
            " they are learnt as they are written"
        )
    unused = [str(name) for name in others if table.holds_something(name)]
    if unused:
        yield f"columns that hold something and are not used: {_listed(unused)}"


def _listed(names: Sequence[str]) -> str:
    """Names one after another; only the first of many."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def _text(value: object, column: str) -> str:
    """Return text unchanged, a number as it was written, and "" for a missing value.

    Raises:
        UserError: a value of another type.
    """
    if is_missing(value):
        return ""
    kind = kind_of(value)
    if kind not in ("text", "number"):
        raise UserError(f"{column} is a {kind}, not text; write it as text")
    return str(value)
