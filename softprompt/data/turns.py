"""The turns of a conversation as chat templates take them, from every way in which data sets write them."""

import ast
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from softprompt.data.json_rows import DECODER
from softprompt.data.values import Raw, is_blank, is_missing, kind_of, to_json
from softprompt.errors import UserError

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
FUNCTION_CALL = "function_call"  # the name of a turn in ShareGPT files, and of a key in OpenAI's older ones
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    FUNCTION_CALL: "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class Float(float):
    """A float that is shown as it was written, such as 3.10 and 1e3.

    A template that prints the number shows it so. The filter `tojson` goes through `json`, which shows any float as
    Python writes it; whole numbers keep all their digits there, too.
    """

    text: str

    def __new__(cls, text: str) -> "Float":
        self = super().__new__(cls, text)
        self.text = str(text)
        return self

    def __repr__(self) -> str:
        return self.text


def parse(value: object, column: str, what: str = "a list") -> Any:
    """What a nested value holds, with `Raw` numbers: a value from memory is returned as it is, and a text is parsed.

    A text is JSON, or a list as Python and pandas write it into a CSV file.

    Raises:
        UserError: the text is neither.
    """
    if not isinstance(value, str):
        return value.tolist() if hasattr(value, "tolist") else value
    try:
        return DECODER.decode(value)
    except json.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError):
        raise UserError(f"{column} is a text that is no JSON; write {what}") from None


def plain(value: object) -> Any:
    """A nested value as templates take it: dicts, lists, texts, numbers, booleans and None.

    Keys that hold null or NaN are left out at every depth. Whole numbers keep their digits, and so do others where a
    template prints them (`Float`).

    Raises:
        UserError: a whole number has more digits than Python reads.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items() if not is_missing(each)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # an array or a number of numpy
        return plain(value.tolist())
    if is_missing(value):
        return None
    if isinstance(value, Decimal):
        return plain(Raw(value))
    if type(value) is Raw:
        try:
            return int(value) if value.lstrip("-").isdecimal() else Float(value)
        except ValueError:
            raise UserError(f"a number of {len(value):,} digits cannot be read; write it as text") from None
    return value if isinstance(value, str | bool | int | float) else str(value)


def json_text(value: object, column: str) -> str:
    """The JSON text of a list or an object, without keys that hold null and with numbers as they were written."""
    return to_json(_present(parse(value, column)))


def _present(value: object) -> Any:
    """A nested value without keys that hold null or NaN."""
    if isinstance(value, Mapping):
        return {key: _present(each) for key, each in value.items() if not is_missing(each)}
    if hasattr(value, "tolist"):  # an array or a number of numpy
        return _present(value.tolist())
    return [_present(each) for each in value] if isinstance(value, list | tuple) else value


def turns_of(value: object, column: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """The turns of a conversation, and the list as it was written, which has as many items.

    Raises:
        UserError: it is no list of turns, a role is not known, or the content of a turn is no text.
    """
    written = parse(value, column, 'a list of turns such as [{"role": "user", "content": "..."}]')
    if isinstance(written, Mapping):
        written = _one_by_one(written)
    if not isinstance(written, Sequence) or isinstance(written, str | bytes):
        raise UserError(f'{column} is a {kind_of(written)}; write a list of turns such as [{{"role": "user", ...}}]')
    return [_turn(each, f"{column}, turn {place}") for place, each in enumerate(written, start=1)], list(written)


def _one_by_one(written: Mapping[str, Any]) -> list[Any]:
    """The turns of a dict that holds a list of roles and a list of contents; any other dict is one turn."""
    lists = {key: each.tolist() if hasattr(each, "tolist") else each for key, each in written.items()}
    lengths = {len(each) if isinstance(each, list | tuple) else None for each in lists.values()}
    if len(lengths) != 1 or None in lengths:
        return [written]
    return [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]


def _turn(written: object, where: str) -> dict[str, Any]:
    """One turn; keys besides role and content are kept.

    Raises:
        UserError: its role is missing or not known, or its content is no text.
    """
    if not isinstance(written, Mapping):
        raise UserError(
            f'{where} is a {kind_of(written)}; write an object such as {{"role": "user", "content": "..."}}'
        )
    turn = plain(written)
    name = next((turn.pop(key) for key in ROLE_KEYS if key in turn), None)
    if name is None:
        raise UserError(f"{where} has no role; give it one of system, user, assistant and tool")
    role = ROLES.get(str(name).strip().lower())
    if role is None:
        raise UserError(f"{where}: the role {str(name)!r} is not known; it must be system, user, assistant or tool")
    found = [turn.pop(key) for key in CONTENT_KEYS if key in turn]
    content = found[0] if found else ""
    calls = []
    if name == FUNCTION_CALL and (calls := _calls(content)):
        content = ""
    elif isinstance(turn.get(FUNCTION_CALL), dict):
        calls = _calls(turn.pop(FUNCTION_CALL))
    turn = {"role": role, "content": _content(content, role, where), **turn}
    return turn | ({"tool_calls": calls} if calls and "tool_calls" not in turn else {})


def _calls(value: object) -> list[dict[str, Any]]:
    """The calls of functions that a value or its JSON text holds, as OpenAI writes them; empty if it holds none."""
    if isinstance(value, str):
        try:
            value = plain(DECODER.decode(value))
        except (ValueError, RecursionError):
            return []
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        return []
    return [{"type": "function", "function": call} for call in calls]


def _content(value: object, role: str, where: str) -> str:
    """The text of a turn's content, which may come in parts.

    Raises:
        UserError: a part is no text, or the content is of another kind. What a tool returns is written as JSON.
    """
    if isinstance(value, list) and all(isinstance(part, dict | str) for part in value):
        return "".join(part if isinstance(part, str) else _part(part, where) for part in value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool | dict | list) and role != "tool":
        raise UserError(f"{where}: the content is a {kind_of(value)}, not text; write it as text")
    return to_json(value) if isinstance(value, bool | dict | list) else str(value)


def _part(part: dict[str, Any], where: str) -> str:
    """The text of one part of a content."""
    if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        raise UserError(f"{where}: a part is of type {part.get('type')!r}; only text can be read, so leave the row out")
    return part["text"]


def tools_of(value: object, column: str) -> tuple[Any, ...]:
    """The descriptions of functions in a value: a list or one object, its JSON text, or a list of such texts.

    Raises:
        UserError: it is something else.
    """
    if is_blank(value):
        return ()
    found = parse(value, column, "a list of functions")
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise UserError(f"{column} is a {kind_of(found)}; write a list of functions")
    tools = [plain(parse(each, column, "every function as an object")) for each in found]
    if not all(isinstance(each, dict) for each in tools):
        raise UserError(
            f"{column} holds a {kind_of(next(each for each in tools if not isinstance(each, dict)))}"
            " that describes no function; write a list of objects"
        )
    return tuple(tools)


def pairs_of(value: object, column: str) -> list[dict[str, Any]]:
    """The turns of a history, which is a list of pairs: a question and its answer.

    Raises:
        UserError: it is something else.
    """
    if is_blank(value):
        return []
    pairs = parse(value, column, "a list of pairs [question, answer]")
    turns = []
    for place, pair in enumerate(pairs if isinstance(pairs, list | tuple) else [pairs], start=1):
        pair = plain(pair)
        usual = isinstance(pair, list) and len(pair) == 2
        if not usual or not all(each is None or kind_of(each) in ("text", "number") for each in pair):
            raise UserError(f"{column}, pair {place}: is no pair; write a list of pairs [question, answer]")
        both = zip(("user", "assistant"), pair, strict=True)
        turns += [{"role": role, "content": str(each)} for role, each in both if each is not None]
    return turns


def ids_of(value: object, column: str) -> list[int]:
    """The token ids in a list or its JSON text.

    Raises:
        UserError: it is no list of whole numbers.
    """
    found = plain(parse(value, column, "a list of token ids"))
    if not isinstance(found, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in found):
        raise UserError(f"{column} is no list of whole numbers; write token ids such as [5, 17]")
    return found
