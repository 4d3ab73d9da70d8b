"""What an option is: a dataclass field that is also a flag, the group it belongs to, and the checks that options share.

A message names an option as `max_length`, in backticks, which is its name in Python. The commands print it as the flag
`--max-length` (`flags_in`), so a notebook and a terminal each read the words that they can type.
"""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from softprompt.errors import UserError


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None, decides: bool = True) -> Any:
    """A dataclass field that is also a command-line flag; a tuple takes one or more values.

    Args:
        choices: the only values that are allowed.
        decides: whether the option decides what a run gives. One that does not may change when the run goes on.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "decides": decides})


class Group:
    """Options that belong together: a mix-in of the commands' dataclasses, and a heading of their `--help`."""

    heading: ClassVar[str]
    all_names: ClassVar[set[str]] = set()  # of the options of every group

    def __init_subclass__(cls) -> None:
        Group.all_names |= {name for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}

    def __post_init__(self) -> None:
        """Check every group of a command, in the order of its bases, and at last the command as a whole."""
        for group in reversed(type(self).__mro__):
            if issubclass(group, Group) and "check" in vars(group):
                group.check(self)

    def check(self) -> None:
        """Raise `UserError` for values that cannot be."""


def groups_of(config_class: type) -> dict[str, list[dataclasses.Field]]:
    """The headings of a command's `--help` and the options below each, in the order of the class's bases.

    An option that a command declares anew, with another default, stays in the group that declared it first.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    groups: dict[str, list[dataclasses.Field]] = {}
    for group in [*config_class.__mro__[1:], config_class]:
        own = [fields.pop(name) for name in vars(group).get("__annotations__", {}) if name in fields]
        if own:
            assert issubclass(group, Group)  # nothing else has options
            groups.setdefault(group.heading, []).extend(own)
    return groups


def decisive(config: object) -> dict[str, Any]:
    """The options that decide what a run gives, by name."""
    assert dataclasses.is_dataclass(config)  # as every command's options are
    return {each.name: getattr(config, each.name) for each in dataclasses.fields(config) if each.metadata["decides"]}


def plain_type(hint: object) -> Any:
    """`int` for `int`, `int | None` and `tuple[int, ...]`."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def require_types(config_class: type, given: Mapping[str, Any]) -> None:
    """Raise `UserError` that names an option whose value, given in Python, is not of its type.

    A command line has the right types already. Whole numbers are taken for `float`, and None where it is the default.
    """
    hints = typing.get_type_hints(config_class)
    for name, value in given.items():
        kind, several = plain_type(hints[name]), typing.get_origin(hints[name]) is tuple
        if value is None and isinstance(hints[name], types.UnionType):
            continue
        values = value if several and isinstance(value, tuple | list) else [value]
        allowed = (int, float) if kind is float else kind
        for each in values:
            if not isinstance(each, allowed) or (isinstance(each, bool) and kind is not bool):
                raise UserError(f"`{name}` {each!r}: must be {kind.__name__}, not {type(each).__name__}")


def flag(name: str) -> str:
    """The command-line spelling of an option: `max_length` -> `--max-length`."""
    return "--" + name.replace("_", "-")


def flags_in(message: str) -> str:
    """`message` with every option in backticks spelled as its flag; what else stands in backticks stays."""
    return re.sub(
        r"`([a-z][a-z0-9_]*)`", lambda name: flag(name[1]) if name[1] in Group.all_names else name[0], message
    )


def is_unicode(text: str | None) -> bool:
    """Whether `text` came as UTF-8; Python keeps other bytes of a command line as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text or "")


def expand_home(config: object, *names: str) -> None:
    """Replace a leading `~`, which shells leave alone in `--flag=~/file`."""
    for name in names:
        if getattr(config, name) is not None:
            setattr(config, name, os.path.expanduser(getattr(config, name)))


def require(condition: bool, config: object, name: str, message: str) -> None:
    """Raise `UserError` with the option, the value received and what is allowed."""
    if not condition:
        raise UserError(f"`{name}` {getattr(config, name)}: {message}")


def require_counts(config: object, *names: str) -> None:
    """Raise `UserError` unless each option is at least 1 or not given."""
    for name in names:
        require(getattr(config, name) is None or getattr(config, name) >= 1, config, name, "must be at least 1")
