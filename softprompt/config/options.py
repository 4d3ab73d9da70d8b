"""What an option is: a dataclass field that is also a flag, its spelling, and the checks that options share."""

import dataclasses
import os
from typing import Any

from softprompt.errors import UserError


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag; a tuple takes one or more values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def flag(name: str) -> str:
    """The command-line spelling of an option: `max_length` -> `--max-length`."""
    return "--" + name.replace("_", "-")


def is_unicode(text: str | None) -> bool:
    """Whether `text` came as UTF-8; Python keeps other bytes of a command line as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text or "")


def expand_home(config: object, name: str) -> None:
    """Replace a leading `~`, which shells leave alone in `--flag=~/file`."""
    if getattr(config, name) is not None:
        setattr(config, name, os.path.expanduser(getattr(config, name)))


def require(condition: bool, config: object, name: str, message: str) -> None:
    """Raise `UserError` with the flag, the value received and what is allowed."""
    if not condition:
        raise UserError(f"{flag(name)} {getattr(config, name)}: {message}")


def require_counts(config: object, *names: str) -> None:
    """Raise `UserError` unless each option is at least 1 or not given."""
    for name in names:
        require(getattr(config, name) is None or getattr(config, name) >= 1, config, name, "must be at least 1")
