"""One file of rows to the table of each of its splits.

JSON and CSV are read by our own readers into Arrow files in a temporary folder; Parquet is read by `datasets`.
"""

import contextlib
import glob
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from datasets import load_dataset

from softprompt.data.csv_rows import DELIMITERS, read_csv
from softprompt.data.json_rows import WHOLE, Found, read_json
from softprompt.data.tables import Part, Table, TableWriter
from softprompt.errors import UserError
from softprompt.system.sources import PACKED, ROW_SUFFIXES, suffix_of

PARQUET_MAGIC = b"PAR1"
OF_AN_EMPTY_FILE = ("BatchSize must be greater than 0", "corresponds to no data")  # what `datasets` 5.2 says of one
HEAD_BYTES = 64
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
OTHER_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def read_file(path: Path, cache: Path, *, may_be_empty: bool = False) -> dict[str, Table]:
    """The table of every split in one file; a file that names no split holds the split `train`.

    Args:
        cache: a folder for what is read.
        may_be_empty: do not refuse a file without rows, which a shard may be.

    Raises:
        UserError: it cannot be read or holds no row; the message begins with its path.
    """
    suffix = suffix_of(path)
    if suffix not in ROW_SUFFIXES:
        raise UserError(f"{path}: the suffix must be one of {', '.join(ROW_SUFFIXES)}, each also with {PACKED}")
    try:
        place = Path(tempfile.mkdtemp(dir=cache))
        tables = _parquet(path, place) if suffix == ".parquet" else _text_file(path, place)
        if not any(map(len, tables.values())) and not may_be_empty:
            raise UserError("holds no row")
    except RecursionError as error:
        raise UserError(f"{path}: lists and objects are nested too deeply; write them flatter") from error
    except UserError as error:
        raise UserError(f"{path}{', ' if str(error).startswith(('line ', 'row ')) else ': '}{error}") from error
    return tables


def _text_file(path: Path, cache: Path) -> dict[str, Table]:
    """Stream a JSON or CSV file into Arrow files, split by split."""
    notes: list[str] = []
    writers: dict[str, TableWriter] = {}
    with rows_in(path, notes) as rows:
        for split, row in rows:
            if (split or "train") not in writers:
                writers[split or "train"] = TableWriter(Path(tempfile.mkdtemp(dir=cache)))
            writers[split or "train"].add(row)
    notes = [f"{path}: {note}" for note in notes]
    return {split: Table.of(writer.finish(), str(path), notes) for split, writer in writers.items()}


@contextlib.contextmanager
def rows_in(path: Path, notes: list[str]) -> Iterator[Iterator[Found]]:
    """The rows of a JSON or CSV file, each with the name of its split."""
    suffix = suffix_of(path)
    if suffix in DELIMITERS:
        with open_text(path, newline="") as file:
            yield ((WHOLE, row) for row in read_csv(file, suffix, notes))
    else:
        with open_text(path) as file:
            yield read_json(file, suffix, notes)


def _parquet(path: Path, cache: Path) -> dict[str, Table]:
    """A Parquet file, as `datasets` reads it."""
    with readable(path), open_bytes(path) as file:
        head = file.read(HEAD_BYTES)
        check_head(head)
        if not head.startswith(PARQUET_MAGIC):
            raise UserError("is no Parquet file; save or download it again")
        plain = path
        if path.name.lower().endswith(PACKED) or "::" in str(path):  # which `datasets` takes for a chain of archives
            plain = cache / "rows.parquet"
            file.seek(0)
            with plain.open("wb") as copy:
                shutil.copyfileobj(file, copy)
    try:
        # a name with brackets is a name, and no pattern
        files = glob.escape(str(plain))
        table = load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache / "datasets"))
    except Exception as error:  # whatever pyarrow and `datasets` make of a damaged file
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        if any(words in cause for words in OF_AN_EMPTY_FILE):
            return {"train": Table([])}
        raise UserError(f"cannot be read as Parquet ({cause}); save or download it again") from error
    return {"train": Table([Part(table, str(path))])}


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked."""
    return cast(BinaryIO, gzip.open(path, "rb") if path.name.lower().endswith(PACKED) else path.open("rb"))


def check_head(head: bytes) -> None:
    """Raise `UserError` for a file that is empty, or is the pointer that Git LFS leaves where data is not fetched."""
    if not head:
        raise UserError("the file is empty; give Alpaca rows")
    if head.startswith(LFS_POINTER):
        raise UserError("is a pointer of Git LFS and not the data; fetch the data with `git lfs pull`")


@contextlib.contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text of a UTF-8 file.

    Args:
        newline: as `open` takes it.

    Raises:
        UserError: the file is empty, damaged, or in another encoding, with the first line that is not UTF-8.
    """
    with readable(path), open_bytes(path) as binary:
        head = binary.read(HEAD_BYTES)
        check_head(head)
        for mark, encoding in OTHER_ENCODINGS:
            if head.startswith(mark):
                raise UserError(f"is {encoding} text; save it as UTF-8")
        if b"\0" in head[:4]:
            raise UserError("is no UTF-8 text, perhaps UTF-16; save it as UTF-8")
        binary.seek(0)
        yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in words why the bytes of a file cannot be read while the block reads them."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"line {_first_bad_line(path)}: is not UTF-8 text; save the file as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError("is damaged, or no gzip file; pack or download it again") from error


def _first_bad_line(path: Path) -> int:
    """The number of the first line that is not UTF-8."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError("every line is UTF-8")
