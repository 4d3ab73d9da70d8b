"""Rows of CSV files, with commas, semicolons or tabs between fields: every field is text, as it stands there."""

import csv
import re
from collections.abc import Iterator
from typing import TextIO

from softprompt.errors import UserError

DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}  # the first that fits, of those that divide the header alike
SEPARATOR_LINE = re.compile(r"sep=(.)\s*$", re.IGNORECASE)  # what spreadsheets write for themselves
LARGEST_FIELD = 2**31 - 1


def read_csv(file: TextIO, suffix: str, notes: list[str]) -> Iterator[dict[str, str]]:
    """Row by row; a line that is empty is no row.

    Args:
        file: opened with `newline=""`, as the csv module wants it.
        notes: is given a line if blanks around the names in the header were taken off.

    Raises:
        UserError: a row with more or fewer fields than the header, or a quote that is not closed, with its line.
    """
    limit = csv.field_size_limit(LARGEST_FIELD)
    try:
        first, skipped, named = file.readline(), 0, None
        while first and (not first.strip() or SEPARATOR_LINE.match(first)):
            named = SEPARATOR_LINE.match(first) or named
            first, skipped = file.readline(), skipped + 1
        delimiter = named[1] if named else _delimiter(first, suffix)
        reader = csv.reader(_again(first, file), delimiter=delimiter, strict=True)
        names = _names(next(_records(reader, skipped), (0, [""]))[1], notes)
        for number, (line, record) in enumerate(_records(reader, skipped), start=1):
            if len(record) != len(names):
                raise UserError(
                    f"line {line}, row {number}: has {len(record)} fields, the header has {len(names)}; put a field"
                    " that holds a delimiter, a quote or a line break between double quotes"
                )
            yield dict(zip(names, record, strict=True))
    finally:
        csv.field_size_limit(limit)


def _again(first: str, file: TextIO) -> Iterator[str]:
    """The lines of a file of which the first has been read."""
    yield first
    yield from file


def _records(reader: Iterator[list[str]], skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Every record that is not empty, with the line on which it begins."""
    while True:
        line = getattr(reader, "line_num", 0) + skipped + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cause = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            raise UserError(
                f"line {line}: {cause}; write a quote inside a field twice, and close the field with one"
            ) from error
        if record:
            yield line, record


def _delimiter(header: str, suffix: str) -> str:
    """The delimiter that divides the header into most fields."""
    candidates = DELIMITERS[suffix]

    def fields(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter), []))

    return max(candidates, key=lambda delimiter: (fields(delimiter), -candidates.index(delimiter)))


def _names(header: list[str], notes: list[str]) -> list[str]:
    """The names of the columns without blanks around them; a name that is empty or stands there twice gets a number."""
    padded = [name for name in header if name != name.strip()]
    if padded:
        notes.append(f"blanks around names in the header were taken off: {', '.join(map(repr, padded))}")
    names: list[str] = []
    for place, padded_name in enumerate(header):
        name = padded_name.strip() or f"Unnamed: {place}"  # as pandas calls it
        number = sum(other.strip() == name for other in header[:place])
        names.append(f"{name}.{number}" if number else name)
    return names
