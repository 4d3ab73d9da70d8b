"""What an option is: a dataclass field that is also a flag, the group it belongs to, and the checks that options share.

A message names an option as `max_length`, in backticks, which is its name in Python. The commands print it as the flag
`--max-length` (`flags_in`), so users of Python and of a terminal each read what they can type.
"""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from softprompt.errors import UserError

MOST = 2**31 - 1  # of whatever an option counts
# options that may name a file or a folder
PATHS = {
    "prompt_file", "run_dir", "sweep_dir", "data", "eval_data", "test_data", "model", "init_from", "instructions",
    "output_file", "plot", "adapter", "to", "distill_text",
    "distill_replay",
}  # fmt: skip


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None, decides: bool = True) -> Any:
    """Make a dataclass field that is also a command-line flag. If the default is a tuple, it takes several values.

    Args:
        choices: the only values that are allowed.
        decides: whether the option determines the result of a run. One that does not may change when a run is resumed.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "decides": decides})


class Group:
    """Options that belong together. Commands' dataclasses inherit from groups, which are the headings of `--help`."""

    heading: ClassVar[str]
    all_names: ClassVar[set[str]] = set()  # the names of the options of every group

    def __init_subclass__(cls) -> None:
        Group.all_names |= {name for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}

    def __post_init__(self) -> None:
        """Check every group of a command, from the last base class to the first, and then the command as a whole."""
        for name, value in vars(self).items():
            for each in value if isinstance(value, tuple | list) else (value,):
                _require_bounds(name, each)
                if name in PATHS and isinstance(each, str):
                    _require_path(name, each)
        for group in reversed(type(self).__mro__):
            if issubclass(group, Group) and "check" in vars(group):
                group.check(self)

    def check(self) -> None:
        """Raise `UserError` if a value of the group is not allowed."""


def _require_bounds(name: str, value: object) -> None:
    """Raise `UserError` unless a number of an option is one to compute with; a seed has a bound of its own."""
    if isinstance(value, int) and abs(value) > MOST and name != "seed":
        digits = f"{len(str(value))} digits" if abs(value) < 10**4000 else "thousands of digits"
        raise UserError(f"`{name}`: must be at most {MOST:,}, and the number given has {digits}")


def _require_path(name: str, value: str) -> None:
    """Raise `UserError` if the machine cannot even look for a path: symbolic links in a loop, or a name too long."""
    try:
        os.stat(os.path.expanduser(value))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # whoever opens it knows what to say
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"`{name}` {value[:100]!r}: is no usable path ({reason})") from error


def groups_of(config_class: type) -> dict[str, list[dataclasses.Field]]:
    """Return the headings of a command's `--help` and the options below each, in the order of the base classes.

    An option that a command declares again, with another default, stays in the group that declared it first.
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
    """Return the options that determine the result of a run, by name."""
    assert dataclasses.is_dataclass(config)  # every command's options are one
    return {each.name: getattr(config, each.name) for each in dataclasses.fields(config) if each.metadata["decides"]}


def plain_type(hint: object) -> Any:
    """Return `int` for `int`, `int | None` and `tuple[int, ...]`, and likewise for other types."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def require_types(config_class: type, given: Mapping[str, Any]) -> None:
    """Raise a `UserError` that names an option whose value, given in Python, is not of its type.

    The values of a command line have the right types already. A `float` may be given as a whole number, and None is
    allowed where the option's type has it.
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
    """Return the command-line spelling of an option: `--max-length` for `max_length`."""
    return "--" + name.replace("_", "-")


def flags_in(message: str) -> str:
    """Return `message` with every option in backticks spelled as its flag; other words in backticks stay."""
    return re.sub(
        r"`([a-z][a-z0-9_]*)`", lambda name: flag(name[1]) if name[1] in Group.all_names else name[0], message
    )


def is_unicode(text: str | None) -> bool:
    """Whether `text` was UTF-8; Python turns other bytes of a command line into lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text or "")


def expand_home(config: object, *names: str) -> None:
    """Expand a leading `~` in the named options, since shells do not expand it in `--flag=~/file`."""
    for name in names:
        if getattr(config, name) is not None:
            setattr(config, name, os.path.expanduser(getattr(config, name)))


def require(condition: bool, config: object, name: str, message: str) -> None:
    """Raise a `UserError` with the option, its value and `message` unless `condition` holds."""
    if not condition:
        raise UserError(f"`{name}` {getattr(config, name)}: {message}")


def require_counts(config: object, *names: str) -> None:
    """Raise `UserError` unless each named option is at least 1 or None."""
    for name in names:
        require(getattr(config, name) is None or getattr(config, name) >= 1, config, name, "must be at least 1")
