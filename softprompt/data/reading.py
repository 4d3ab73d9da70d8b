"""Find what a name of data stands for, read its splits, and check every row."""

import contextlib
import functools
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from softprompt.config.commands import column_map
from softprompt.data.files import read_file
from softprompt.data.folders import Splits, read_folder
from softprompt.data.formats import (
    EXTRAS,
    IDS,
    OTHER_FORMATS,
    TELLING,
    Format,
    advice,
    are_bare_labels,
    find_formats,
)
from softprompt.data.row import Row, RowKinds
from softprompt.data.rows import Rows, Survey
from softprompt.data.split_names import ALIASES, standard_names
from softprompt.data.tables import Part, Table
from softprompt.errors import UserError
from softprompt.system import sources

MOST_NAMED = 10  # columns of one note
USUAL = {"question": "instruction", "input": "input", "answer": "output"}  # the columns of which no note is made
# data is a name, or rows that are already in memory
Data: TypeAlias = str | Sequence[Mapping[str, Any]] | Dataset | DatasetDict


def name_of(data: Data) -> str:
    """What messages call the data: its name, or "the rows given" if it came from memory."""
    return data if isinstance(data, str) else "the rows given"


@dataclass(frozen=True)
class DataOptions:
    """How data is read: the options `columns`, `data_config` and `data_split`."""

    columns: str | None = None
    data_config: str | None = None
    data_split: str | None = None

    def refuse_hub_only(self, option: str, name: str) -> None:
        """Raise `UserError` if an option is given that only a data set of the hub has."""
        for field_name in ("data_config", "data_split"):
            value = getattr(self, field_name)
            if value is not None:
                raise UserError(
                    f"`{field_name}` {value}: only for a hub id, and `{option}` {name} is none; leave it out"
                )


@dataclass
class Source:
    """The splits of one `data`, read when they are asked for.

    Attributes:
        name: what to call it in messages, and `option` the option that named it.
        splits: a reader for every split, under its standard name if it has one.
        given: for every name of a split as it was written, the standard one.
        notes: what is worth telling the user, so far.
        mapping: for names of formats the columns that stand for them.
        class_names: the names of the classes, and `labels` how often each label occurs, in classifications read so far.
        kinds: what decides how the rows that were read are written.
    """

    name: str
    option: str
    splits: Splits
    given: dict[str, str]
    notes: list[str] = field(default_factory=list)
    mapping: Mapping[str, str] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    kinds: RowKinds = RowKinds()

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
            f"`{self.option}` {self.name}: has the splits {', '.join(self.given)} but no train; name one file, or of a"
            " hub id one with `data_split`"
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

    def rows(self, split: str, *, label: str | None = None, asks: bool = False) -> tuple[Sequence[Row], Survey]:
        """Every row of a split, and what they are like.

        A row without a question or an answer stays: encoding counts and skips it.

        Args:
            label: what to call the split in messages; the name of the data if it is not given.
            asks: only questions are read. Columns that are no part of the format are kept with each row, and do not
                count as unused.

        Raises:
            UserError: a split that cannot be read, without rows or in no format that is known, or a value of another
                kind than its column holds.
        """
        label = label or self.name
        with _named(self.option, self.name):
            table = self.splits[split]()
            if not len(table) and table.columns:
                raise UserError("holds no row")
            formats = self._formats(table, label, asks)
        form, seen = formats[0], Survey()
        others = [name for name in table.columns if name not in form.columns.values()]
        carried = [name for name in others if asks and name not in form.answers]
        rows = seen.of(Rows(table, form, label=label, carried=carried, asks=asks))
        self.kinds |= seen.kinds
        if form.is_classification and not asks:
            column = form.columns["answer"]
            self.class_names += table.class_labels([column]).get(column, [])
            self.labels += seen.outputs
        self.note(table.notes)
        notes = _notes_on(table, formats, [] if asks else others, len(rows), seen)
        self.note(f"{self.name}: {note}" for note in notes)
        return rows, seen

    def _formats(self, table: Table, label: str, asks: bool) -> list[Format]:
        """The formats that a table may be read in, the best one first.

        Raises:
            UserError: there is none, with an example row.
        """
        columns = table.columns
        shown = f"here are {_listed([*map(str, columns)]) or 'none'}"
        for name, column in self.mapping.items():
            if column not in columns:
                raise UserError(f"`columns` {name}={column}: there is no column {column}; {shown}")
        if formats := find_formats(columns, self.mapping, asks=asks):
            return formats
        if IDS[0] in columns and not self.mapping:
            raise UserError(_cause_of_ids(asks) + f"; {shown}")
        needed = [USUAL["question"]] if asks else [USUAL["question"], USUAL["answer"]]
        if self.mapping:
            raise UserError(f"`columns` {', '.join(self.mapping)}: belong to no one format; {OTHER_FORMATS}; {shown}")
        if not columns and not len(table):
            raise UserError("holds no row")
        hint = f"; {advice(columns, table.example(), asks=asks)}" if columns else ""
        if lacking := next((name for name in needed if name not in columns and {*USUAL.values()} & {*columns}), None):
            every = " and ".join(map(with_article, needed))
            raise UserError(f"`{self.option}` {label}, row 1: no {lacking}; every row needs {every}; {shown}{hint}")
        raise UserError(f"rows need {' and '.join(needed)} as columns; {shown}{hint}")


@contextlib.contextmanager
def open_data(data: Data, option: str, options: DataOptions = DataOptions()) -> Iterator[Source]:
    """The splits of data; a single table is `train`. What is read into temporary files is gone behind the block.

    Args:
        option: the option that names the data, for messages.
        options: how to read it.

    Raises:
        UserError: data that is not there or cannot be read.
    """
    name, notes = name_of(data), list[str]()
    with tempfile.TemporaryDirectory(prefix="softprompt-", ignore_cleanup_errors=True) as cache:
        with _named(option, name):
            splits = _load(data, option, Path(cache), options, notes) if isinstance(data, str) else _in_memory(data)
            if not isinstance(data, str):
                options.refuse_hub_only(option, name)
        given = standard_names(splits)
        mapping = column_map(options.columns)
        yield Source(name, option, {given[each]: read for each, read in splits.items()}, given, notes, mapping)


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


def _load(name: str, option: str, cache: Path, options: DataOptions, notes: list[str]) -> Splits:
    """Read a shipped data set, a hub id, a folder or a file, whichever `name` is."""
    telling = [*TELLING, *column_map(options.columns).values()]
    if not sources.is_builtin(name) and not sources.is_path(name):
        return _from_hub(name, option, options)
    options.refuse_hub_only(option, name)
    if sources.is_builtin(name):
        return read_folder(sources.data_folder(name), cache, telling, notes)
    path = sources.local_path(name, option)
    if not path.exists():
        raise UserError(f"`{option}` {name}: no such file or folder")
    if path.is_dir():
        return read_folder(path, cache, telling, notes)
    return {split: functools.partial(_same, table) for split, table in read_file(path, cache).items()}


def _from_hub(name: str, option: str, options: DataOptions) -> Splits:
    """Read a data set of the hub.

    Raises:
        UserError: the hub has none of that name, it has several configurations of which none is chosen, or there is no
            such configuration or split.
    """
    sources.require_dataset(name, option)
    try:
        return _in_memory(load_dataset(name, options.data_config, split=options.data_split))
    except ValueError as error:
        message = " ".join(str(error).split())
        there = re.search(r"(?:available configs|Available|one of)[^\[]*(\[.*?\])", message)
        names = ", ".join(re.findall(r"'([^']*)'", there[1])) if there else ""
        if names and "split" in message:
            raise UserError(f"`data_split` {options.data_split}: {name} has only {names}") from error
        if names and options.data_config is None:
            raise UserError(
                f"`{option}` {name}: has several configurations; name one of {names} with `data_config`"
            ) from error
        if names:
            raise UserError(f"`data_config` {options.data_config}: {name} has only {names}") from error
        raise


def _same(table: Table) -> Table:
    return table


def _notes_on(table: Table, formats: list[Format], others: list[str], num_rows: int, seen: Survey) -> Iterator[str]:
    """What is worth saying of a table: its format, class labels, what is left out, and columns that are not used."""
    form = formats[0]
    yield from _notes_on_format(table, formats)
    classes = table.class_labels([*form.columns.values()])
    for column, names in classes.items():
        yield f"{column} holds class labels; their names are used: {_listed(names)}"
    outputs = seen.outputs.keys()
    if are_bare_labels(outputs) and not classes and len(outputs) < num_rows:
        yield (
            f"every output is a number from 0 to {len(outputs) - 1}, which looks like class labels without their names;"
            " they are learnt as they are written"
        )
    for what, numbers in seen.tally.rows.items():
        have = "has" if len(numbers) == 1 else "have"
        yield f"{counted(len(numbers), 'row')} {have} {what}: row {numbers_shown(numbers)}"
    other = _other_format(formats)
    said = {*other.columns.values()} if other else set()  # which the note on the other format has named
    unused = [str(name) for name in others if name not in said and table.holds_something(name)]
    if unused:
        yield f"columns that hold something and are not used: {_listed(unused)}"


def _notes_on_format(table: Table, formats: list[Format]) -> Iterator[str]:
    """How rows are read, unless they are instructions as ever; and how else they could be."""
    form = formats[0]
    extras = [form.columns[part] for part in EXTRAS if part in form.columns]
    if form.name == "instructions":
        renamed = [
            f"{form.columns[part]} is read as {name}"
            for part, name in USUAL.items()
            if form.columns.get(part, name) != name
        ]
        if renamed:
            yield "the column " + ", and ".join(renamed)
        extras = [name for name in extras if table.holds_something(name)]
        if not extras:
            return
    named = [column for part, column in form.columns.items() if part not in EXTRAS] + extras
    yield f"rows are read as {form.name} ({_columns(named)})"
    if other := _other_format(formats):
        parts = [part for part in other.known if part not in EXTRAS]
        where = _columns([other.columns[part] for part in parts])
        chosen = ",".join(f"{other.known[part]}={other.columns[part]}" for part in parts)
        yield f"they could be read as {other.name}, too ({where}), which `columns` {chosen} does"


def _other_format(formats: list[Format]) -> Format | None:
    """The next best format whose questions stand in a column that the best one does not use, if it is worth a note."""
    form = formats[0]
    if form.name == "instructions":
        return None
    return next((other for other in formats[1:] if other.main not in form.columns.values()), None)


def _cause_of_ids(asks: bool) -> str:
    """Why rows with `input_ids` cannot be read."""
    ids, labels = IDS
    if asks:
        return f"rows are token ids ({ids}), in which no question can be told from its answer; give questions as text"
    return f"rows with {ids} need {labels} as well, which say what is learnt; give them, or give rows as text"


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _listed(names: Sequence[str]) -> str:
    """Names one after another; only the first of many."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def counted(count: int, noun: str) -> str:
    """A number and what is counted, such as "1 row" and "2,000 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def numbers_shown(numbers: Sequence[int]) -> str:
    """The first few of some row numbers."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def with_article(name: str) -> str:
    """A name behind its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
