"""From a config dataclass to a command line, and from exceptions to exit statuses."""

import argparse
import contextlib
import dataclasses
import gc
import logging
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

from softprompt.config.options import flag
from softprompt.errors import Interrupted, UserError

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


def run(main: Callable[[], None], *, prog: str) -> int:
    """Call `main` and return the exit status: 0, 1 (our bug), 2 (input or machine), or 128 + the signal."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _raise_interrupted)
    gc.disable()  # until `quiet_libraries`: walking over what the imports make, all of it alive, took 0.4 of 3.4 s
    try:
        main()
        sys.stdout.flush()
        return 0
    except Interrupted as stop:
        return _say(prog, stop.message, stop.exit_status)
    except BrokenPipeError:
        drop_output()
        return 128 + signal.SIGPIPE
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _say(prog, f"error: out of memory; {MEMORY_ADVICE}", 2)
        if isinstance(error, RuntimeError):
            raise
        return _say(prog, f"error: {_one_line(error)}", 2)
    finally:
        gc.enable()


@contextlib.contextmanager
def deferred_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM only call `note` with their number."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.signal(signum, lambda number, frame: note(number)) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or, in the words of its own errors, PyTorch found no memory."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def quiet_libraries() -> None:
    """Leave the screen to softprompt: no bars, warnings or log lines of the libraries that a command uses.

    They are imported by now, and are left out of garbage collection from here on.
    """
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    gc.freeze()
    gc.enable()


def drop_output() -> None:
    """Send stdout nowhere once its reader has gone (`| head`), so that nothing fails on it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


MEMORY_ADVICE = "try --gradient-checkpointing, a smaller --per-device-train-batch-size or --max-length"


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


def _raise_interrupted(signum: int, frame: object) -> NoReturn:
    raise Interrupted(signum)


def _one_line(error: BaseException) -> str:
    """The message with the file of an `OSError` in front and no line breaks."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def _say(prog: str, message: str, status: int) -> int:
    """Print one line to stderr and hand the status back."""
    print(f"{prog}: {message}", file=sys.stderr, flush=True)
    return status
