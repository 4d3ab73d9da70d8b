"""Encoded rows that may be many: few stay in memory, and more go to an Arrow file from which they are read again."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from softprompt.data.rows import StoredRows
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

SKETCH_SIZE = 64
ROWS_TOGETHER = 1000
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "learnt": List(Value("int32")),  # where labels begin and end to count, in turn
        "num_cut": Value("int64"),
        "number": Value("int64"),
    }
)


class EncodedRows(StoredRows[EncodedRow]):
    """Encoded rows in an Arrow file, which is mapped: a row takes memory while it is used."""

    def __init__(self, path: Path) -> None:
        self._rows = Dataset.from_file(str(path))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[EncodedRow]:
        for batch in self._rows.iter(batch_size=ROWS_TOGETHER):
            yield from map(_from_columns, *(batch[name] for name in FEATURES))

    @overload
    def __getitem__(self, place: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[EncodedRow]: ...
    def __getitem__(self, place: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        row: Any = self._rows[place]
        return _from_columns(*(row[name] for name in FEATURES))


@dataclass(frozen=True)
class RowFacts:
    """What a run asks of all rows of a split, found in one walk.

    Attributes:
        sha256: the hash of the rows' input_ids and labels in their order.
        sketch: the smallest hashes of the distinct rows, at most 64: a random sample of the distinct rows, which does
            not depend on the order of the rows. Source: bottom-k sketches (Broder, 1997).
        longest: the number of tokens of the longest row, 0 without rows.
        largest_id: the largest id of any row, 0 without rows.
        num_supervised: the number of labels that count.
    """

    sha256: str
    sketch: tuple[str, ...]
    longest: int
    largest_id: int
    num_supervised: int

    @classmethod
    def of(cls, rows: Iterable[EncodedRow]) -> "RowFacts":
        """Walk through the rows."""
        walk = FactsWalk()
        for row in rows:
            walk.add(row)
        return walk.facts()


class FactsWalk:
    """Collects the facts of rows, row by row."""

    def __init__(self) -> None:
        self._hash, self._separator = hashlib.sha256(b"[["), b""
        self._sketch: set[str] = set()
        self._last = "g"  # no hexadecimal text is as large
        self._longest = self._largest_id = self._supervised = 0

    def add(self, row: EncodedRow) -> None:
        """Take the next row."""
        ids = json.dumps(row.input_ids).encode()
        self._hash.update(self._separator + b"[" + ids + b", " + json.dumps(row.labels).encode() + b"]")
        self._separator = b", "
        short = _short_hash(ids)
        if short < self._last:
            self._sketch.add(short)
            if len(self._sketch) > SKETCH_SIZE:
                self._sketch.remove(max(self._sketch))
            if len(self._sketch) == SKETCH_SIZE:
                self._last = max(self._sketch)
        self._longest = max(self._longest, len(row.input_ids))
        self._largest_id = max(self._largest_id, max(row.input_ids, default=0))
        self._supervised += row.num_supervised

    def facts(self) -> RowFacts:
        """The facts of the rows so far."""
        whole = self._hash.copy()
        whole.update(b"]]")
        sketch = tuple(sorted(self._sketch))
        return RowFacts(whole.hexdigest(), sketch, self._longest, self._largest_id, self._supervised)


def hash_of_row(row: EncodedRow) -> str:
    """The 48-bit hash of a row's input_ids, as hexadecimal text."""
    return _short_hash(json.dumps(row.input_ids).encode())


def _short_hash(ids: bytes) -> str:
    return hashlib.blake2b(ids, digest_size=6).hexdigest()


class KnownRows:
    """Tells whether input_ids were seen before, by a 64-bit hash of them: of 10^6 rows, eight megabytes."""

    def __init__(self) -> None:
        self._new = array("q")
        self._sorted: Tensor | None = None

    def add(self, row: EncodedRow) -> None:
        """Remember a row."""
        self._new.append(_long_hash(row))
        self._sorted = None

    def holds(self, rows: Sequence[EncodedRow]) -> list[bool]:
        """Whether each of some rows is known."""
        if not self._new or not rows:
            return [False] * len(rows)
        if self._sorted is None:
            self._sorted = torch.tensor(self._new, dtype=torch.int64).sort().values
        asked = torch.tensor([_long_hash(row) for row in rows], dtype=torch.int64)
        places = torch.searchsorted(self._sorted, asked).clamp(max=len(self._sorted) - 1)
        return (self._sorted[places] == asked).tolist()


def _long_hash(row: EncodedRow) -> int:
    digest = hashlib.blake2b(array("q", row.input_ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class EncodedWriter:
    """Takes encoded rows and gives them back as one sequence, which is a list while they are few.

    Attributes:
        facts: what is known of the rows so far.
    """

    def __init__(self, path: Path, most_kept: int) -> None:
        """Prepare; the file `path` is written only if there are more than `most_kept` rows."""
        self._path, self._most_kept = path, most_kept
        self._waiting: list[EncodedRow] = []
        self._writer: ArrowWriter | None = None
        self.facts = FactsWalk()

    def add(self, rows: Iterable[EncodedRow]) -> None:
        """Take the next rows."""
        for row in rows:
            self.facts.add(row)
            self._waiting.append(row)
        if len(self._waiting) > (self._most_kept if self._writer is None else ROWS_TOGETHER):
            self._flush()

    def finish(self) -> Sequence[EncodedRow]:
        """All rows."""
        if self._writer is None:
            return self._waiting
        self._flush()
        self._writer.finalize()
        return EncodedRows(self._path)

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = ArrowWriter(features=FEATURES, path=str(self._path))
        for start in range(0, len(self._waiting), ROWS_TOGETHER):
            some = self._waiting[start : start + ROWS_TOGETHER]
            columns = zip(*map(_to_columns, some), strict=True)
            self._writer.write_batch(dict(zip(FEATURES, map(list, columns), strict=True)))
        self._waiting = []


def _to_columns(row: EncodedRow) -> tuple[list[int], list[int], int, int]:
    """A row as the columns of the file; a label that counts is the id at its place."""
    learnt, counts = [], False
    for place, label in enumerate(row.labels):
        if (label != IGNORE_INDEX) != counts:
            counts = not counts
            learnt.append(place)
    return row.input_ids, [*learnt, len(row.labels)] if counts else learnt, row.num_cut, row.number


def _from_columns(ids: list[int], learnt: list[int], num_cut: int, number: int) -> EncodedRow:
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in zip(learnt[::2], learnt[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return EncodedRow(ids, labels, num_cut, number)
