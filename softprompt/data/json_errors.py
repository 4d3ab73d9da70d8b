"""What is wrong at a place in JSON text, in plain words, and what to do about it."""

import re

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


def explain(text: str, place: int, message: str) -> tuple[str, int]:
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
