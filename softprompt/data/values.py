"""Values as they were written: a number keeps its digits, and what is no text is never taken for one.

A JSON value that is no text is kept as the JSON text that it was written in, marked as such by its type. So a number
goes through unchanged, a text such as "true" stays a text, and an object can be told from a text that looks alike.
"""

import json
import struct
from decimal import Decimal
from numbers import Real

NOT_A_NUMBER = ("NaN", "nan")
KINDS = {"[": "list", "{": "dict", "t": "bool", "f": "bool"}
FLOAT_DIGITS = 9  # which tell any two float32 apart
FLOAT_CODES = {"float16": "e", "halffloat": "e", "float32": "f", "float": "f"}


class Raw(str):
    """The JSON text of a number, a list, an object or a boolean, as it was written."""

    __slots__ = ()


def is_missing(value: object) -> bool:
    """None, or the NaN that tables use for it."""
    if value is None or isinstance(value, str):
        return value is None or (type(value) is Raw and value in NOT_A_NUMBER)
    try:
        return bool(value != value)
    except TypeError:  # the NA of pandas, which is neither true nor false
        return True
    except ValueError:  # an array
        return False


def kind_of(value: object) -> str:
    """What a value is: `text`, `number`, or for all else the name of its Python type."""
    if type(value) is Raw:
        return KINDS.get(value[0], "number")
    if isinstance(value, str):
        return "text"
    if isinstance(value, Real | Decimal) and not isinstance(value, bool):  # numpy's numbers, too
        return "number"
    return type(value).__name__


def is_blank(value: object) -> bool:
    """Whether a value holds nothing: it is missing, or a text of blanks, or an empty list or object."""
    return is_missing(value) or (str(value).strip() in ("", "[]", "{}"))


def as_row(record: dict) -> dict[str, str]:
    """A parsed JSON object with every value as text, `Raw` where it was no text; keys that hold null are left out."""
    row = {}
    for key, value in record.items():
        if isinstance(value, str):
            if type(value) is not Raw or value not in NOT_A_NUMBER:
                row[key] = value
        elif value is not None:
            row[key] = Raw(to_json(value))
    return row


def to_json(value: object) -> str:
    """JSON text with every script readable, and with `Raw` values as they were written."""
    if type(value) is Raw:
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(str(key))}: {to_json(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def shortest_text(value: float, dtype: str) -> str:
    """The shortest text that is `value` again when it is read as `dtype`, written as Python writes a float."""
    code = FLOAT_CODES.get(dtype)
    if code is None or value in (float("inf"), float("-inf")):
        return str(value)
    for digits in range(FLOAT_DIGITS):
        nearest = Decimal(f"{value:.{digits}e}")
        last = Decimal((0, (1,), nearest.as_tuple().exponent))  # type: ignore[arg-type]
        # below a power of two the numbers lie closer than above it, so the nearest text may be that of another
        for near in (nearest, nearest + last, nearest - last):
            if _is(near, value, code):
                return str(float(near))
    return str(value)


def _is(near: Decimal, value: float, code: str) -> bool:
    """Whether a text is read as `value` by the type that `code` stands for."""
    try:
        return struct.unpack(code, struct.pack(code, float(near)))[0] == value
    except OverflowError:  # rounded up beyond the largest number of this type
        return False
