"""Read rows with `datasets` from a file, a folder or a hub id, or take them from memory, and check them."""

import csv
import functools
import glob
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, Features, Json, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from softprompt.errors import UserError
from softprompt.system import sources

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
COLUMNS = ("instruction", "input", "output")
QUESTION_COLUMNS = ("instruction", "input")
# data is a name, or rows that are already in memory
Data: TypeAlias = str | Sequence[Mapping[str, Any]] | Dataset | DatasetDict


@dataclass(frozen=True)
class Row:
    """One Alpaca row; `number` counts the rows of the data from 1, for messages."""

    instruction: str
    input: str
    output: str
    number: int


def name_of(data: Data) -> str:
    """What messages call the data: its name, or "the rows given" if it came from memory."""
    return data if isinstance(data, str) else "the rows given"


def load_tables(data: Data, option: str, columns: Sequence[str] = COLUMNS) -> dict[str, list[dict[str, object]]]:
    """Read every split under its name, with those of `columns` that it has; a single table is called `train`.

    Args:
        option: the option that names the data, for messages.

    Raises:
        UserError: the data is missing, cannot be read, or has none of the columns.
    """
    name = name_of(data)
    try:
        with tempfile.TemporaryDirectory(prefix="softprompt-") as cache:
            loaded = _load(data, option, cache) if isinstance(data, str) else _in_memory(data)
            splits = loaded if isinstance(loaded, dict) else {"train": loaded}
            return {split: _records(table, columns) for split, table in splits.items()}
    except DatasetNotFoundError as error:
        raise UserError(f"`{option}` {name}: the hub has no such data set") from error
    except (DatasetGenerationError, ValueError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, UserError):
            message = str(error)
            raise error if message.startswith("`") else UserError(f"`{option}` {name}: {message}") from error
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise UserError(f"`{option}` {name}: holds no row") from error
        raise UserError(f"`{option}` {name}: cannot be read ({' '.join(str(cause).split())[:200]})") from error


def _in_memory(data: Any) -> Any:
    """Take rows from memory: a data set of `datasets` unchanged, or a list of dicts.

    Raises:
        UserError: `data` is neither.
    """
    if isinstance(data, Dataset | DatasetDict):
        return data
    if not isinstance(data, Sequence) or isinstance(data, bytes):
        raise UserError(f"is a {type(data).__name__}; give a name, a list of dicts or a data set of `datasets`")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"row {number}: is a {type(row).__name__}, not a dict")
    return list(data)


def _load(name: str, option: str, cache: str) -> Dataset | DatasetDict:
    """Read a shipped data set, a hub id, a folder or a file, whichever `name` is."""
    if sources.is_builtin(name):
        return load_dataset(str(sources.data_folder(name)), cache_dir=cache)
    if not sources.is_path(name):
        sources.require_dataset(name, option)
        return load_dataset(name)
    path = sources.local_path(name, option)
    if not path.exists():
        raise UserError(f"`{option}` {name}: no such file or folder")
    if path.is_dir():
        return _load_folder(path, option, cache)
    return _load_file(path, option, cache)


def _load_folder(path: Path, option: str, cache: str) -> Dataset | DatasetDict:
    """Read a `save_to_disk` folder, or a folder of data files such as `train.jsonl` and `validation.jsonl`."""
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        try:
            return load_from_disk(str(path))
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"`{option}` {path}: a damaged save_to_disk folder ({error!r}); save it again") from error
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS]
    if not files:
        raise UserError(f"`{option}` {path}: neither a save_to_disk folder nor one with {', '.join(READERS)} files")
    splits = {file.stem: file for file in files}
    if len(splits) < len(files):
        raise UserError(f"`{option}` {path}: two files are of the same split; keep one or name one file")
    return DatasetDict({split: _load_file(file, option, cache) for split, file in splits.items()})


def _load_file(path: Path, option: str, cache: str) -> Dataset:
    """Read one data file as its suffix says."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"`{option}` {path}: the suffix must be one of {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise UserError(f"`{option}` {path}: the file is empty; give Alpaca rows")
    # `datasets` would read brackets in a file's name as a pattern
    read = functools.partial(load_dataset, reader, data_files=glob.escape(str(path)), split="train", cache_dir=cache)
    if reader == "csv":
        return read(**_csv_options(path))
    table = read()
    if reader == "json" and (dates := [name for name, kind in table.features.items() if _is_time(kind)]):
        # `datasets` turns a column in which every text looks like a date into dates; read as Json, it keeps its text
        return read(features=Features(table.features | {name: Json(decode=True) for name in dates}))
    return table


def _is_time(kind: object) -> bool:
    return isinstance(kind, Value) and kind.dtype.startswith(("timestamp", "date", "time"))


def _csv_options(path: Path) -> dict[str, object]:
    """The options that read every column of a CSV file as text, even words such as "NA".

    Raises:
        UserError: the file has no row, or a row has more or fewer fields than the header, which pandas would
            silently shift or fill.
    """
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header, number = next(reader, []), 0
            for number, record in enumerate(filter(None, reader), start=1):
                if len(record) != len(header):
                    raise UserError(f"row {number}: has {len(record)} fields, the header has {len(header)}")
    finally:
        csv.field_size_limit(limit)
    if number == 0:
        raise UserError("holds no row")
    names = [name or f"Unnamed: {place}" for place, name in enumerate(header)]  # as pandas calls them
    return {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}


def _records(table: Dataset | list[Mapping[str, object]], columns: Sequence[str]) -> list[dict[str, object]]:
    """Copy those of `columns` that the table has into plain dicts, which no longer depend on the files.

    Raises:
        UserError: the table has none of the columns.
    """
    if isinstance(table, list):
        names = list(dict.fromkeys(name for row in table for name in row))
    else:
        names = table.column_names
    if not set(columns) & set(names):
        if isinstance(table, list) and not table:
            raise UserError("holds no row")
        needed = " and ".join(_required(columns))
        raise UserError(f"rows need {needed} as columns; here are {', '.join(map(str, names[:5])) or 'none'}")
    used = [name for name in columns if name in names]
    if isinstance(table, list):
        return [{name: row.get(name) for name in used} for row in table]
    return list(table.select_columns(used))


def _required(columns: Sequence[str]) -> list[str]:
    """The columns that every row must have; `input` is optional."""
    return [name for name in columns if name != "input"]


def check_rows(records: list[dict[str, object]], name: str, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """Check every row and number it. Rows with a blank output are kept here; encoding skips and counts them.

    Args:
        name: what messages call the data.

    Raises:
        UserError: there are no rows, a row lacks a required column or has a blank instruction, or a value is neither
            text nor a number.
    """
    if not records:
        raise UserError(f"{name}: holds no row")
    rows = []
    for number, record in enumerate(records, start=1):
        for column in _required(columns):
            if _is_missing(record.get(column)) or (column == "instruction" and not str(record[column]).strip()):
                needed = " and ".join(f"an {needed}" for needed in _required(columns))
                raise UserError(f"{name}, row {number}: no {column}; every row needs {needed}")
        instruction, given, output = (_text(record.get(column), column, number, name) for column in COLUMNS)
        rows.append(Row(instruction, given, output, number))
    return rows


def _is_missing(value: object) -> bool:
    """Whether a value is None, or NaN, which tables use for a missing value; only NaN differs from itself."""
    return value is None or value != value


def _text(value: object, column: str, number: int, name: str) -> str:
    """Return text unchanged, a number as text, and "" for a missing value; raise `UserError` for anything else."""
    if _is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{name}, row {number}: {column} is a {type(value).__name__}, not text; write it as text")
