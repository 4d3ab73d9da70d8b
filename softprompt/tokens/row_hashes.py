"""Hashes that tell which rows a run had.

A hash of all rows is checked when a run resumes. Hashes of a few rows tell whether a prompt is scored later on rows
that trained or chose it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

from softprompt.tokens.encoding import EncodedRow

SKETCH_SIZE = 64


def rows_sha256(*splits: list[EncodedRow]) -> str:
    """The SHA-256 of the input_ids and labels of all rows of all splits, in their order."""
    content = [[[row.input_ids, row.labels] for row in rows] for rows in splits]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def sketch_of(rows: Iterable[EncodedRow]) -> list[str]:
    """The smallest hashes of the distinct rows, at most 64.

    They are a random sample of the distinct rows, which does not depend on the order of the rows. Source: bottom-k
    sketches (Broder, 1997).
    """
    return sorted(hashes_of(rows))[:SKETCH_SIZE]


def hashes_of(rows: Iterable[EncodedRow]) -> set[str]:
    """The 48-bit hash of every distinct row's input_ids, as hexadecimal text."""
    return {hashlib.blake2b(json.dumps(row.input_ids).encode(), digest_size=6).hexdigest() for row in rows}


def share_among(sketch: Sequence[str], hashes: set[str]) -> float:
    """The share, from 0 to 1, of a sketch's rows that are among `hashes`; an empty sketch gives 0.

    It is exact if the sketch was made of at most 64 distinct rows, and an estimate if there were more.
    """
    return len(hashes.intersection(map(str, sketch))) / len(sketch) if sketch else 0.0
