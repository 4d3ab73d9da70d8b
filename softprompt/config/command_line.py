"""From a config dataclass to a command line, and from exceptions to exit statuses."""

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from softprompt.config.options import flag
from softprompt.errors import UserError

Config = TypeVar("Config")


def parse(config_class: type[Config], argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Read `argv` into a `config_class`; both `--a-b` and `--a_b` are understood.

    Raises:
        UserError: an unknown flag, a value of the wrong type, or one that the config refuses.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        _add_flag(parser, field, _plain_type(hints[field.name]))
    argv = sys.argv[1:] if argv is None else argv
    dashed = [re.sub(r"^--[\w-]+(?==|$)", lambda name: name[0].replace("_", "-"), word) for word in argv]
    values = vars(parser.parse_args(dashed))
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, raised like every other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the flags")


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: type) -> None:
    """Add one field; the default stands in the help."""
    help_text = field.metadata["help"].replace("%", "%%")
    if "(default:" not in help_text and kind is not bool:
        help_text += f" (default: {field.default!r})".replace("%", "%%")
    if kind is bool:
        help_text += f" (default: {'on' if field.default else 'off'})"
        action = argparse.BooleanOptionalAction if field.default else "store_true"
        parser.add_argument(flag(field.name), action=action, default=field.default, help=help_text)
    else:
        parser.add_argument(
            flag(field.name),
            type=kind,
            nargs="+" if isinstance(field.default, tuple) else None,
            default=field.default,
            choices=field.metadata["choices"],
            metavar=None if field.metadata["choices"] else kind.__name__.upper(),
            help=help_text,
        )


def _plain_type(hint: object) -> type:
    """`int` for `int`, `int | None` and `tuple[int, ...]`."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint
