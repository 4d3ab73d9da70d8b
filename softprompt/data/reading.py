"""Rows: load them with `datasets` from a file, folder or hub id, check them, and hold some out."""

import csv
import functools
import glob
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, Features, Json, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from softprompt.data.encoding import Row
from softprompt.errors import UserError
from softprompt.system import builtin, sources

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
COLUMNS = ("instruction", "input", "output")
QUESTION_COLUMNS = ("instruction", "input")
HELD_OUT_SPLITS = ("validation", "test")
SCORED_SPLITS = ("test", "validation", "train")  # a validation split chose the prompt, a test split beside it did not
DEFAULT_EVAL_FRACTION = 0.1
MAX_DEFAULT_EVAL_ROWS = 200
MIN_DEFAULT_EVAL_ROWS = 8  # fewer choose by chance


@dataclass(frozen=True)
class Splits:
    """Rows to train on, rows held out to choose by, and rows for a last figure; the latter two may be empty."""

    train_rows: list[Row]
    eval_rows: list[Row]
    test_rows: list[Row] = field(default_factory=list)


def load_splits(
    data: str, *, eval_data: str | None, eval_fraction: float | None, seed: int, test_data: str | None = None
) -> Splits:
    """Load `data` and choose the held-out rows.

    In this order: `eval_data`; a seeded `eval_fraction` of the rows; the data's own `validation`, else `test` split; a
    tenth of the rows. The test rows are `test_data`, or the data's own `test` split where that is not held out.

    Raises:
        UserError: missing or unreadable data, or rows that are not Alpaca rows.
    """
    tables = _load_tables(data, "--data")
    train_rows = _rows(tables[_choose(tables, ("train",), data, "--data")], data)
    test_rows = _named_rows(test_data, "--test-data", ("test", *HELD_OUT_SPLITS, "train"))
    own = [split for split in HELD_OUT_SPLITS if split in tables and "train" in tables]
    chooses = own[0] if own and eval_data is None and eval_fraction is None else None
    if test_data is None and "test" in own and chooses != "test":
        test_rows = _rows(tables["test"], f"{data} (test)")
    if eval_data is not None:
        return Splits(train_rows, _named_rows(eval_data, "--eval-data", (*HELD_OUT_SPLITS, "train")), test_rows)
    if chooses is not None:
        return Splits(train_rows, _rows(tables[chooses], f"{data} ({chooses})"), test_rows)
    return Splits(*_hold_out(train_rows, eval_fraction, seed), test_rows)


def _named_rows(name: str | None, flag: str, wanted: Sequence[str]) -> list[Row]:
    """The rows of data that a flag names; none without a name."""
    if name is None:
        return []
    tables = _load_tables(name, flag)
    return _rows(tables[_choose(tables, wanted, name, flag)], name)


def load_split(data: str, split: str | None = None) -> tuple[list[Row], str]:
    """The rows of one split and what to call them in messages: `split`, else the test, validation or only one.

    Raises:
        UserError: as `load_splits`, or there is no such split.
    """
    tables = _load_tables(data, "--data")
    if split is not None and split not in tables:
        raise UserError(f"--split {split}: --data {data} has only {', '.join(tables)}")
    chosen = _choose(tables, SCORED_SPLITS, data, "--data") if split is None else split
    name = data if len(tables) == 1 else f"{data} ({chosen})"
    return _rows(tables[chosen], name), name


def load_table(data: str, split: str) -> list[Row]:
    """The rows of one split, by its name.

    Raises:
        UserError: as `load_splits`, or there is no such split.
    """
    return load_split(data, split)[0]


def load_questions(data: str) -> tuple[list[Row], str]:
    """Rows to answer, and what to call them in messages; of several splits the one that `--eval-data` would take.

    An `output` column is not looked at, and the rows' outputs are empty.

    Raises:
        UserError: as `load_splits`.
    """
    tables = _load_tables(data, "--instructions", QUESTION_COLUMNS)
    split = _choose(tables, (*HELD_OUT_SPLITS, "train"), data, "--instructions")
    name = data if len(tables) == 1 else f"{data} ({split})"
    return _rows(tables[split], name, QUESTION_COLUMNS), name


def _hold_out(rows: list[Row], fraction: float | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows by a seeded draw; both parts keep the file's order."""
    if fraction is None:
        count = min(int(len(rows) * DEFAULT_EVAL_FRACTION), MAX_DEFAULT_EVAL_ROWS)
        count = 0 if count < MIN_DEFAULT_EVAL_ROWS else count
    else:
        count = min(round(len(rows) * fraction), len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[:count])
    return (
        [row for place, row in enumerate(rows) if place not in chosen],
        [row for place, row in enumerate(rows) if place in chosen],
    )


def _load_tables(name: str, flag: str, columns: Sequence[str] = COLUMNS) -> dict[str, list[dict[str, object]]]:
    """Every split under its name; a single table is `train`."""
    try:
        with tempfile.TemporaryDirectory(prefix="softprompt-") as cache:
            loaded = _load(name, flag, cache)
            splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
            return {split: _records(table, columns) for split, table in splits.items()}
    except DatasetNotFoundError as error:
        raise UserError(f"{flag} {name}: the hub has no such data set") from error
    except (DatasetGenerationError, ValueError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, UserError):
            message = str(error)
            raise error if message.startswith(flag) else UserError(f"{flag} {name}: {message}") from error
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise UserError(f"{flag} {name}: holds no row") from error
        raise UserError(f"{flag} {name}: cannot be read ({' '.join(str(cause).split())[:200]})") from error


def _load(name: str, flag: str, cache: str) -> Dataset | DatasetDict:
    """Hand `name` to the reader that fits it."""
    if builtin.is_builtin(name):
        return load_dataset(str(builtin.data_folder(name)), cache_dir=cache)
    if not sources.is_path(name):
        sources.require_dataset(name, flag)
        return load_dataset(name)
    path = sources.local_path(name, flag)
    if not path.exists():
        raise UserError(f"{flag} {name}: no such file or folder")
    if path.is_dir():
        return _load_folder(path, flag, cache)
    return _load_file(path, flag, cache)


def _load_folder(path: Path, flag: str, cache: str) -> Dataset | DatasetDict:
    """A `save_to_disk` folder, or a folder of data files such as `train.jsonl` and `validation.jsonl`."""
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        try:
            return load_from_disk(str(path))
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{flag} {path}: a damaged save_to_disk folder ({error!r}); save it again") from error
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS]
    if not files:
        raise UserError(f"{flag} {path}: neither a save_to_disk folder nor one with {', '.join(READERS)} files")
    splits = {file.stem: file for file in files}
    if len(splits) < len(files):
        raise UserError(f"{flag} {path}: two files are of the same split; keep one or name one file")
    return DatasetDict({split: _load_file(file, flag, cache) for split, file in splits.items()})


def _load_file(path: Path, flag: str, cache: str) -> Dataset:
    """One data file, by its suffix."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{flag} {path}: the suffix must be one of {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{flag} {path}: the file is empty; give Alpaca rows")
    # a name with brackets is a name, and no pattern
    read = functools.partial(load_dataset, reader, data_files=glob.escape(str(path)), split="train", cache_dir=cache)
    if reader == "csv":
        return read(**_csv_options(path))
    table = read()
    if reader == "json" and (dates := [name for name, kind in table.features.items() if _is_time(kind)]):
        # a column in which every text looks like a date was taken for dates; as Json it keeps its text
        return read(features=Features(table.features | {name: Json(decode=True) for name in dates}))
    return table


def _is_time(kind: object) -> bool:
    return isinstance(kind, Value) and kind.dtype.startswith(("timestamp", "date", "time"))


def _csv_options(path: Path) -> dict[str, object]:
    """Read every column as text, with no word standing for a missing value.

    Raises:
        UserError: a row with more or fewer fields than the header; pandas would shift or fill them silently.
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


def _records(table: Dataset, columns: Sequence[str]) -> list[dict[str, object]]:
    """The columns that are used, as plain values detached from the files they came from."""
    if not set(columns) & set(table.column_names):
        needed = " and ".join(_required(columns))
        raise UserError(f"rows need {needed} as columns; here are {', '.join(table.column_names[:5]) or 'none'}")
    return list(table.select_columns([name for name in columns if name in table.column_names]))


def _required(columns: Sequence[str]) -> list[str]:
    """The columns without which a row means nothing."""
    return [name for name in columns if name != "input"]


def _choose(tables: dict[str, list], wanted: Iterable[str], name: str, flag: str) -> str:
    """The name of the first wanted split that is there, or of the only one."""
    for split in wanted:
        if split in tables:
            return split
    if len(tables) == 1:
        return next(iter(tables))
    raise UserError(f"{flag} {name}: has the splits {', '.join(tables)} but no train; name one file")


def _rows(records: list[dict[str, object]], name: str, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """Check every row and give it its number. A blank output stays: encoding counts and skips it.

    Raises:
        UserError: no row at all, a row that lacks what its columns must hold, or a value that is no text and no number.
    """
    if not records:
        raise UserError(f"{name}: holds no row")
    rows = []
    for number, record in enumerate(records, start=1):
        for column in _required(columns):
            if _is_missing(record.get(column)) or (column == "instruction" and not str(record[column]).strip()):
                needed = " and ".join(f"an {needed}" for needed in _required(columns))
                raise UserError(f"{name}, row {number}: no {column}; every row needs {needed}")
        rows.append(Row(*(_text(record.get(column), column, number, name) for column in COLUMNS), number=number))
    return rows


def _is_missing(value: object) -> bool:
    """None, or the NaN that tables use for it."""
    return value is None or value != value


def _text(value: object, column: str, number: int, name: str) -> str:
    """Text stays, numbers become text, a missing value is empty."""
    if _is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{name}, row {number}: {column} is a {type(value).__name__}, not text; write it as text")
