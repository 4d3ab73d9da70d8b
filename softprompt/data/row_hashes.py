"""Which rows a run had, told by hashes: of all of them for a resume, of a few for whoever scores the prompt later."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from softprompt.data.encoding import EncodedRow

SKETCH_SIZE = 64


def rows_sha256(*splits: list[EncodedRow]) -> str:
    """Hash of the encoded rows of all splits."""
    content = [[[row.input_ids, row.labels] for row in rows] for rows in splits]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def sketch_of(rows: Iterable[EncodedRow]) -> list[str]:
    """The smallest hashes of the different rows, at most 64: a random sample of them, the same for every order.

    Source: bottom-k sketches (Broder, 1997).
    """
    return sorted(hashes_of(rows))[:SKETCH_SIZE]


def hashes_of(rows: Iterable[EncodedRow]) -> set[str]:
    """A hash of 48 bits for every different row, of its `input_ids`."""
    return {hashlib.blake2b(json.dumps(row.input_ids).encode(), digest_size=6).hexdigest() for row in rows}


def share_among(sketch: Sequence[str], hashes: set[str]) -> float:
    """Which share of the rows behind a sketch is among those of `hashes`; an estimate where they were more than 64."""
    return len(hashes.intersection(map(str, sketch))) / len(sketch) if sketch else 0.0
