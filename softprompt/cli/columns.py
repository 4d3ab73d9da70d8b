"""Text in the columns of a terminal, where a Chinese character takes two: cut, padded, wrapped and aligned."""

import unicodedata
from collections.abc import Iterable

LONGEST_NAME, LONGEST_TEXT = 32, 2000  # characters of a field that are shown


def display_width(text: str) -> int:
    """Return how many columns `text` takes."""
    return sum(_width(character) for character in text)


def fit(text: str, columns: int) -> str:
    """Return `text` in exactly `columns` columns: padded on the right, or cut and ended with dots."""
    if display_width(text) > columns:
        text = _head(text, columns - 3) + "..."
    return text + " " * (columns - display_width(text))


def wrap(text: str, columns: int) -> list[str]:
    """Break `text` into lines of at most `columns` columns, at spaces where there are any."""
    lines = []
    while len(head := _head(text, columns)) < len(text):
        # a line that ends right before a space is whole; else it ends at its last space, or is cut if it has none
        at_space = head if text[len(head)] == " " else head.rpartition(" ")[0]
        line = at_space or head or text[0]
        lines.append(line.rstrip())
        text = text[len(line) :].lstrip()
    return [*lines, text]


def fields(pairs: Iterable[tuple[str, str]], *, columns: int) -> str:
    """Return lines with the names on the left and their texts, aligned and wrapped, on the right.

    Both may be a stranger's, so of longer ones the beginning is shown.
    """
    pairs = [(_beginning(name, LONGEST_NAME), _beginning(text, LONGEST_TEXT)) for name, text in pairs]
    margin = max(display_width(name) for name, _ in pairs) + 4
    lines = []
    for name, text in pairs:
        for place, part in enumerate(wrap(text, columns - margin)):
            lines.append(fit("  " + name if place == 0 else "", margin) + part)
    return "\n".join(line.rstrip() for line in lines)


def _beginning(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _head(text: str, columns: int) -> str:
    """Return as much of the beginning of `text` as fits into `columns` columns."""
    taken = 0
    for place, character in enumerate(text):
        taken += _width(character)
        if taken > columns:
            return text[:place]
    return text


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
