"""Rows of JSON files, read as a stream: an array, one object a line, or an object that holds arrays of rows by name.

What a file is, its content decides and not its suffix, except that a `.jsonl` file is never one object of arrays. The
standard library parses every value; numbers stay as they are written. At most one row and one chunk are in memory.
"""

import json
import re
from collections.abc import Generator, Iterator
from typing import Any, NoReturn, TextIO, TypeAlias

from softprompt.data.split_names import SPLIT_WORDS
from softprompt.data.values import Raw, as_row
from softprompt.errors import UserError

CHUNK = 2**18  # characters
BLANKS = re.compile(r"[ \t\n\r]*")
REST_OF_NUMBER = re.compile(r"[-+.0-9eE]*")  # what a chunk may have cut in two
LONGEST_WORD = 12  # an error so near the end of a chunk may be the chunk's: `-Infinity`, `\uXXXX`
LINE_SUFFIXES = (".jsonl", ".ndjson")
ROW_KEYS = ("data", "rows", "examples", "instances", "records")  # keys of an object under which its rows stand
WHOLE = ""  # the split of rows that stand under no name
DECODER = json.JSONDecoder(parse_int=Raw, parse_float=Raw, parse_constant=Raw)
PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}
SHOWN = 20  # characters of what is no JSON

NOT_CLOSED = "an object or a list is not closed; is a bracket missing, or is the file cut off?"
LINE_BREAK = "a text goes on over the end of its line; close it with a quote, or write a line break in it as \\n"
# by the beginning of the parser's message
CAUSES = {
    "Unterminated": "a text is not closed; close it with a quote",
    "Invalid control character": "a control character stands in a text as it is; write it as an escape such as \\t",
    "Invalid": "a backslash in a text begins no escape that JSON knows; write a backslash as \\\\",
    "Extra data": "something stands behind the object; write one object a line, or an array of all",
    "Expecting property name": "a key must be a text between double quotes",
    "Expecting ','": 'a comma is missing, or a quote inside a text is not written as \\"',
    "Expecting ':'": "a colon is missing behind a key; write one",
}

Found: TypeAlias = tuple[str, dict[str, str]]  # the name of the split, and a row


def read_json(file: TextIO, suffix: str, notes: list[str]) -> Iterator[Found]:
    """Every row with the name of its split.

    Args:
        notes: is given a line if an object of arrays holds more than its rows.

    Raises:
        UserError: what is not JSON, with its line and the cause in words, or a row that is no object.
    """
    text = _Text(file)
    first = text.peek()
    if first == "[":
        text.at += 1
        for value in _items(text):
            yield WHOLE, as_row(value)
        if text.peek():
            text.refuse("something stands behind the `]` that closes the rows; delete it")
    elif first == "{":
        line = text.line
        if suffix in LINE_SUFFIXES:
            yield WHOLE, as_row(_object(text.value(), text.line))
        elif (yield from _object_of_rows(text, notes)):
            if text.peek():
                text.refuse("something stands behind the object that holds the rows; delete it")
            return
        yield from _lines(text) if text.line == line else _one_after_another(text)
    elif first:
        _object(text.value(), text.line)  # which refuses it, whatever it is


class _Text:
    """The text of a file in chunks. `at` is the place in `buffer` up to which it has been read."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.buffer, self.at, self.first_line, self.ended = file, "", 0, 1, False

    @property
    def line(self) -> int:
        """The number of the line that `at` is on, from 1."""
        return self.line_of(self.at)

    def line_of(self, place: int) -> int:
        """The number of the line that a place in the buffer is on."""
        return self.first_line + self.buffer.count("\n", 0, place)

    def more(self) -> bool:
        """Read on and drop what has been read; false at the end. What is left over doubles: a long row stays cheap."""
        chunk = self.file.read(max(CHUNK, len(self.buffer) - self.at))
        self.first_line = self.line
        self.buffer, self.at, self.ended = self.buffer[self.at :] + chunk, 0, not chunk
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is not blank; an empty text at the end."""
        while True:
            match = BLANKS.match(self.buffer, self.at)
            assert match is not None  # it matches the empty text
            self.at = match.end()
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The next value, which begins at the next character that is not blank."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - LONGEST_WORD
                if cut and not self.ended:
                    self.more()
                    continue
                self.fail(error.pos, error.msg)
            except RecursionError:
                self.refuse("lists and objects are nested too deeply; write them flatter")
            if type(value) is Raw and not self.ended and REST_OF_NUMBER.fullmatch(self.buffer, end):
                self.more()
                continue
            self.at = end
            return value

    def rest_of_line(self) -> str | None:
        """The text up to the next line break, which is passed over; None at the end."""
        start = self.at
        while (end := self.buffer.find("\n", start)) < 0:
            known = len(self.buffer) - self.at
            if not self.more():
                end = len(self.buffer)
                break
            start = known
        line, self.at = self.buffer[self.at : end], min(end + 1, len(self.buffer))
        return None if not line and end == len(self.buffer) else line

    def fail(self, place: int, message: str) -> NoReturn:
        """Raise `UserError` for an error of the parser at a place in the buffer."""
        cause, place = _explain(self.buffer, place, message)
        raise UserError(f"line {self.line_of(place)}: {cause}")

    def refuse(self, cause: str) -> NoReturn:
        """Raise `UserError` for what stands at the next character."""
        raise UserError(f"line {self.line}: {cause}")


def _items(text: _Text) -> Iterator[dict]:
    """The rows of an array whose `[` has been passed, up to and with its `]`."""
    for value in _values(text):
        yield _object(value, text.line if not isinstance(value, dict) else 0)


def _values(text: _Text) -> Iterator[Any]:
    """The values of an array whose `[` has been passed, up to and with its `]`."""
    if text.peek() == "]":
        text.at += 1
        return
    while True:
        yield text.value()
        comma = text.peek()
        if comma == "]":
            text.at += 1
            return
        if comma != ",":
            text.refuse(
                "a comma is missing behind a row; write one"
                if comma
                else "the file ends before the `]` that closes the rows; is it whole?"
            )
        line = text.line
        text.at += 1
        if text.peek() == "]":
            raise UserError(f"line {line}: a comma stands behind the last row; delete it")


def _object_of_rows(text: _Text, notes: list[str]) -> Generator[Found, None, bool]:
    """The first object of a file, key by key: the rows of the arrays in it, or the object itself as the first row.

    Returns whether it held arrays of rows.
    """
    text.at += 1
    others: dict[str, Any] = {}
    found = False
    character = text.peek()
    while character != "}":
        key = text.value()
        if not isinstance(key, str) or isinstance(key, Raw):
            text.refuse("a key must be a text between double quotes")
        if text.peek() != ":":
            text.refuse(f"a colon is missing behind the key {key!r}; write one")
        text.at += 1
        if text.peek() == "[" and (key in ROW_KEYS or key.lower() in SPLIT_WORDS):
            text.at += 1
            if text.peek() in ("{", "]"):
                found = True
                for value in _items(text):
                    yield WHOLE if key in ROW_KEYS else key, as_row(value)
            else:
                others[key] = list(_values(text))
        else:
            others[key] = text.value()
        character = text.peek()
        if character == ",":
            text.at += 1
            if text.peek() == "}":
                text.fail(text.at, "Illegal trailing comma")
        elif character != "}":
            text.fail(text.at, "Expecting ',' delimiter")
    text.at += 1
    if not found:
        yield WHOLE, as_row(others)
    elif others:
        notes.append(f"beside its rows it holds {', '.join(others)}, which is not used")
    return found


def _lines(text: _Text) -> Iterator[Found]:
    """One object on every further line, so that an error is where its line says."""
    number = text.line
    while (line := text.rest_of_line()) is not None:
        if line.strip():
            try:
                value = DECODER.decode(line)
            except json.JSONDecodeError as error:
                cause, _ = _explain(line, error.pos, error.msg)
                raise UserError(f"line {number}: {cause}") from error
            except RecursionError as error:
                raise UserError(
                    f"line {number}: lists and objects are nested too deeply; write them flatter"
                ) from error
            yield WHOLE, as_row(_object(value, number))
        number += 1


def _one_after_another(text: _Text) -> Iterator[Found]:
    """Objects that may take several lines each."""
    while text.peek():
        line = text.line
        yield WHOLE, as_row(_object(text.value(), line))


def _object(value: Any, line: int) -> dict:
    """A row, which must be an object.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, dict):
        return value
    names: dict[type, str] = {list: "a list", str: "a text", Raw: "a number"}
    what = names.get(type(value)) or json.dumps(value)
    raise UserError(f"line {line}: a row is {what}; every row must be an object such as {{...}} with columns")


def _explain(text: str, place: int, message: str) -> tuple[str, int]:
    """The cause with its remedy, and the place that is to blame.

    Args:
        place: where the parser of the standard library stopped, and `message` what it said.
    """
    character, before = text[place : place + 1], text[:place].rstrip()
    if message.startswith("Illegal trailing comma") or (character in ("}", "]") and before.endswith(",")):
        return "a comma stands before a closing bracket; delete it", place if character == "," else len(before) - 1
    if message.startswith("Invalid control character") and character == "\n":
        return LINE_BREAK, place
    if not text[place:].strip() and message.startswith("Expecting"):
        return NOT_CLOSED, max(len(before) - 1, 0)
    if character == "'":
        return "single quotes are no JSON; write texts and keys between double quotes", place
    for beginning, cause in CAUSES.items():
        if message.startswith(beginning):
            return cause, place
    if character == ",":
        return "a comma stands where a row or a value should; delete it", place
    word = re.match(r"[A-Za-z_]*", text[place : place + SHOWN])
    if word and word[0] in PYTHON_WORDS:
        return f"{word[0]} is Python and no JSON; write {PYTHON_WORDS[word[0]]}", place
    shown = text[place : place + SHOWN].splitlines()[0]
    return f"is not JSON (at {shown!r}); check what the file holds and its suffix", place
