"""Hashes that tell which rows a run had.

A hash of all rows is checked when a run resumes. Hashes of a few rows tell whether a prompt is scored later on rows
that trained or chose it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

from softprompt.tokens.encoded_rows import RowFacts, hash_of_row
from softprompt.tokens.encoding import EncodedRow


def rows_sha256(*splits: Iterable[EncodedRow]) -> str:
    """The SHA-256 of the input_ids and labels of all rows of all splits, in their order, as one JSON text."""
    digest = hashlib.sha256(b"[")
    for number, rows in enumerate(splits):
        digest.update(b", [" if number else b"[")
        for place, row in enumerate(rows):
            digest.update(((", " if place else "") + json.dumps([row.input_ids, row.labels])).encode())
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()


def sketch_of(rows: Iterable[EncodedRow]) -> list[str]:
    """The smallest hashes of the distinct rows, at most 64 (see `RowFacts`)."""
    return list(RowFacts.of(rows).sketch)


def hashes_of(rows: Iterable[EncodedRow]) -> set[str]:
    """The 48-bit hash of every distinct row's input_ids, as hexadecimal text."""
    return {hash_of_row(row) for row in rows}


def share_among(sketch: Sequence[str], hashes: set[str]) -> float:
    """The share, from 0 to 1, of a sketch's rows that are among `hashes`; an empty sketch gives 0.

    It is exact if the sketch was made of at most 64 distinct rows, and an estimate if there were more.
    """
    return len(hashes.intersection(map(str, sketch))) / len(sketch) if sketch else 0.0
