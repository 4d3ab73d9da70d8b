"""What a prompt file says besides its tensor: every key with its type, checked, since the file may be a stranger's."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeGuard

from softprompt.base.fingerprint import parse_sketch
from softprompt.config.commands import MAX_INIT_TEXT, MAX_SYSTEM_TEXT
from softprompt.errors import UserError
from softprompt.system.foreign import parse_json

# characters of a value; what grows with the base and the run is limited by the header alone
MAX_TEXT, MAX_HEADER_BYTES = 1 << 20, 1 << 26
LIMITS = dict.fromkeys(("base_sketch", "rows_sketch", "training"), MAX_HEADER_BYTES)
LIMITS |= {"init_text": MAX_INIT_TEXT, "system": MAX_SYSTEM_TEXT}


@dataclass(frozen=True, kw_only=True)
class PromptMetadata:
    """What a prompt file says besides its tensor, with the type of every key. A key that the file lacks is empty here.

    Attributes:
        base: the name of the base as it was given: `builtin:...`, a hub id or a folder.
        base_revision: the commit on the hub, if `base` is a hub id.
        base_sha256: the hash of the base's checkpoint.
        base_sketch: a sketch of the checkpoint that stays comparable after rounding (`base/fingerprint.py`).
        tokenizer_sha256: the hash of the vocabulary and of how the tokenizer splits a sample text.
        eos_token: the token that ends an answer.
        init: what the prompt started from: text, answers, vocab, random or file.
        init_text: the text, if `init` is text.
        init_ids: the token ids, if `init` is answers.
        bos_token: the token that begins every text behind the prompt; empty if there is none.
        end_ids: the ids that end an answer, besides eos: those that close an assistant turn.
        template: the name of the template that wrote the questions: tutorial, chat, plain, file or text.
        template_text: the Jinja text of the template, unless its name says all.
        template_date: the day, as YYYY-MM-DD, that a template which asks for the date was given.
        system: the system text of rows that have none.
        learnt_turns: which answers of a conversation were learnt: `all`, or the `last` alone.
        placement: where the prompt stands: `front` of everything, or within the `system` turn.
        before_ids: the token ids in front of the prompt, which all rows share.
        after_ids: the token ids that follow the prompt in all rows.
        data: the last component of the data's name.
        data_sha256: the hash of all encoded rows.
        rows_sketch: hashes of a few of the rows that trained the prompt (`train`) and that chose it (`held_out`).
        training: steps, rows, learning rate, losses and the curve, as parsed from JSON.
    """

    base: str = ""
    base_revision: str = ""
    base_sha256: str = ""
    base_sketch: str = ""
    tokenizer_sha256: str = ""
    eos_token: str = ""
    init: str = ""
    init_text: str = ""
    init_ids: list[int] = field(default_factory=list)
    bos_token: str = ""
    end_ids: list[int] = field(default_factory=list)
    template: str = ""
    template_text: str = ""
    template_date: str = ""
    system: str = ""
    learnt_turns: str = ""
    placement: str = ""
    before_ids: list[int] = field(default_factory=list)
    after_ids: list[int] = field(default_factory=list)
    data: str = ""
    data_sha256: str = ""
    rows_sketch: dict[str, list[str]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def to_strings(self) -> dict[str, str]:
        """Return every key as a string: text unchanged, every other value as JSON, and an empty value as ""."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value if isinstance(value, str) else _as_json(value) for name, value in values.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Self:
        """Read the strings of a file, which may be a stranger's.

        Raises:
            UserError: a value is too long, no text, or does not have its key's type; the message begins with the key.
        """
        return cls(**{each.name: _value_of(each, strings.get(each.name, "")) for each in dataclasses.fields(cls)})


def _value_of(each: dataclasses.Field, text: str) -> Any:
    """The value of one key, with its type."""
    limit = LIMITS.get(each.name, MAX_TEXT)
    if len(text) > limit:
        raise UserError(f"{each.name} has {len(text):,} characters, of which {limit:,} are allowed")
    if each.name == "base_sketch" and text:
        parse_sketch(text)
    if each.type is str:
        return _plain(each.name, text)
    assert each.default_factory is not dataclasses.MISSING  # every key that is not a string has one
    empty = each.default_factory()
    if not text:
        return empty
    value = parse_json(text, each.name)
    if not CHECKS[each.name](value):
        raise UserError(f"{each.name} is not {WANTED[each.name]}")
    return value


def _plain(name: str, text: str) -> str:
    """Return `text` if it can be written as UTF-8, which halves of surrogate pairs cannot."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{name} is not Unicode text")
    return text


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value from JSON is an integer from 0 to 2^63 - 1."""
    # a bool is an int for Python
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_figure(value: object) -> bool:
    """Whether a value from JSON is a number that a float can hold, or null."""
    if value is None or isinstance(value, bool):
        return value is None
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def _are_sketches(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, list) and all(isinstance(text, str) for text in each) for each in value.values()
    )


def _is_summary(value: object) -> bool:
    """Whether a value is what `training` may be: names of figures and texts, losses by name, and the curve."""
    if not isinstance(value, dict):
        return False
    curve = value.get("curve", [])
    if not isinstance(curve, list) or not all(map(_is_point, curve)):
        return False
    losses = [value.get(name) or {} for name in ("held_out_loss", "test_loss")]
    if not all(isinstance(each, dict) and all(map(is_figure, each.values())) for each in losses):
        return False
    return all(is_count(value[name]) for name in ("steps", "rows", "rows_per_step", "seed") if name in value)


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_count(value[0]) and is_figure(value[1])


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


# how the value of each key that holds JSON is checked, and what it is called in a message
CHECKS: dict[str, Callable[[object], bool]] = {
    "init_ids": _are_counts,
    "end_ids": _are_counts,
    "before_ids": _are_counts,
    "after_ids": _are_counts,
    "rows_sketch": _are_sketches,
    "training": _is_summary,
}
WANTED = dict.fromkeys(CHECKS, "a list of token ids") | {
    "rows_sketch": "an object of lists of texts",
    "training": "an object of figures with a curve of [step, loss]",
}
