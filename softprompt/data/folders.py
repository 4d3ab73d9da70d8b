"""A folder of rows to the table of each of its splits: what `save_to_disk` wrote, or files named by their split.

No file is read before its split is asked for, except for the first row of a file whose name says nothing.
"""

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from datasets import DatasetDict, load_from_disk

from softprompt.data.files import read_file, rows_in
from softprompt.data.split_names import SPLIT_WORDS
from softprompt.data.tables import Part, Table
from softprompt.errors import UserError
from softprompt.system.sources import ROW_SUFFIXES, stem_of, suffix_of

NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets` and others
SHARD = re.compile(r"(?P<name>.+?)[-_.](?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]{16})?")
NUMBERED = re.compile(r"(?P<name>.+?)[-_.]?(?P<number>\d+)")

Splits: TypeAlias = dict[str, Callable[[], Table]]


def read_folder(folder: Path, cache: Path, columns: Iterable[str], notes: list[str]) -> Splits:
    """The splits of a folder under the names that they have there.

    Args:
        cache: a folder for what is read.
        columns: of which a file whose name says nothing must have one, to be taken for rows beside other files.
        notes: is given a line that names the files that are left aside.

    Raises:
        UserError: there is nothing that can be read.
    """
    if _is_saved(folder):
        return _saved(folder)
    groups, strays = _groups(folder)
    if not any(name.lower() in SPLIT_WORDS for name in groups):
        inner, more = _groups(folder / "data")  # as a clone of a hub repository has it
        if inner and (not groups or any(name.lower() in SPLIT_WORDS for name in inner)):
            strays += [file for files in groups.values() for file in files] + more
            groups = inner
    if not groups:
        raise UserError(f"{folder}: neither a save_to_disk folder nor one with {', '.join(ROW_SUFFIXES)} files")
    if sum(map(len, groups.values())) > 1:
        kept = {name: files for name, files in groups.items() if _is_rows(name, files, set(columns))}
        strays += [file for name, files in groups.items() if kept and name not in kept for file in files]
        groups = kept or groups
    if strays:
        notes.append(f"{folder}: these files are not read: {', '.join(str(f.relative_to(folder)) for f in strays)}")
    for name, files in groups.items():
        _check_shards(folder, name, files, notes)
    if len(groups) == 1:
        ((name, files),) = groups.items()
        if len(files) == 1:
            tables = read_file(files[0], cache)
            names = [name] if len(tables) == 1 else list(tables)
            return {each: functools.partial(_same, table) for each, table in zip(names, tables.values(), strict=True)}
    return {name: functools.partial(_read_group, files, cache) for name, files in groups.items()}


def _same(table: Table) -> Table:
    return table


def _read_group(files: list[Path], cache: Path) -> Table:
    """The rows of several files, one after another."""
    whole = Table([])
    for file in files:
        tables = read_file(file, cache, may_be_empty=True)
        if len(tables) > 1:
            raise UserError(f"{file}: holds the splits {', '.join(tables)}; name the file instead of its folder")
        for table in tables.values():
            whole.parts += table.parts
            whole.notes += table.notes
    if not len(whole):
        raise UserError(f"{files[0]}: holds no row")
    return whole


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder; other programs have files of the same names."""

    def mentions(name: str, word: bytes) -> bool:
        return (folder / name).is_file() and word in (folder / name).read_bytes()

    if mentions("dataset_dict.json", b"splits") or mentions("state.json", b"_data_files"):
        return True
    return any(folder.glob("*.arrow")) and not _groups(folder)[0]


def _saved(folder: Path) -> Splits:
    """What `save_to_disk` wrote, whatever the format that was set."""
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # whatever `datasets` makes of a damaged folder
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: a damaged save_to_disk folder ({cause}); save it again") from error
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    return {name: functools.partial(_same, Table([Part(rows)])) for name, rows in splits.items()}


def _groups(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of every split by the split's name, in the order of their numbers; and files that hold no rows."""
    groups: dict[str, list[Path]] = {}
    strays: list[Path] = []
    if not folder.is_dir():
        return groups, strays
    for path in sorted(folder.iterdir(), key=_by_number):
        if path.is_dir() and path.name.lower() in SPLIT_WORDS:
            inner = sorted((file for file in path.iterdir() if suffix_of(file) in ROW_SUFFIXES), key=_by_number)
            strays += [file for file in inner if file.name.startswith(".")]
            files = [file for file in inner if not file.name.startswith(".")]
            name = path.name
        elif path.is_file() and suffix_of(path) in ROW_SUFFIXES:
            if path.name.startswith(".") or path.name in NOT_ROWS:
                strays.append(path)
                continue
            name, files = _split_of(path), [path]
        else:
            continue
        if files:
            groups.setdefault(name, []).extend(files)
    return groups, strays


def _by_number(path: Path) -> list:
    """What puts train-2 before train-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _split_of(path: Path) -> str:
    """The split that a file's name gives, without the number of a shard."""
    stem = stem_of(path)
    if match := SHARD.fullmatch(stem):
        return match["name"]
    match = NUMBERED.fullmatch(stem)
    return match["name"] if match and match["name"].lower() in SPLIT_WORDS else stem


def _check_shards(folder: Path, name: str, files: list[Path], notes: list[str]) -> None:
    """Say which shards are not there.

    Raises:
        UserError: two files are the same part of a split.
    """
    stems = [str(file.parent / stem_of(file)) for file in files]
    plain = [file for file in files if stem_of(file) == name and file.parent.name != name]
    if len(set(stems)) < len(stems) or (plain and len(files) > 1):
        raise UserError(f"{folder}: two files are of the same split {name}; keep one or name one file")
    shards = [match for file in files if (match := SHARD.fullmatch(stem_of(file)))]
    if shards and len(shards) < max(int(match["count"]) for match in shards):
        count = max(int(match["count"]) for match in shards)
        notes.append(f"{folder}: of the {count} files of the split {name}, only {len(shards)} are there")


def _is_rows(name: str, files: list[Path], columns: set[str]) -> bool:
    """Whether files hold rows: their name says so, or the first row of the first one has a column that is known."""
    if name.lower() in SPLIT_WORDS or suffix_of(files[0]) == ".parquet":
        return True
    try:
        with rows_in(files[0], []) as rows:
            _, row = next(rows, ("", {}))
            return bool(columns & row.keys())
    except UserError:
        return False
