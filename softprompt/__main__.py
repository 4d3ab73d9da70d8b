"""`softprompt COMMAND` and `python -m softprompt COMMAND`: every command by its name."""

import importlib
import sys
from collections.abc import Sequence

from softprompt import __version__
from softprompt.cli.program import run
from softprompt.errors import UserError

# each is a module of `cli` that has a `main(argv, prog)` and says in its first line what it does
COMMANDS = ("train", "generate", "chat", "evaluate", "inspect", "sweep")


def main(argv: Sequence[str]) -> None:
    """Hand the words behind the command's name to its module.

    Raises:
        UserError: no command, or one that is not there.
    """
    name, *words = argv or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: softprompt {{{','.join(COMMANDS)}}} ...  (each with --help), or softprompt --version")
    elif name == "--version":
        print(f"softprompt {__version__}")
    elif name not in COMMANDS:
        raise UserError(f"{name}: no such command; there are {', '.join(COMMANDS)}")
    else:
        importlib.import_module(f"softprompt.cli.{name}").main(words, prog=f"softprompt {name}")


def entry() -> int:
    """The console script."""
    return run(lambda: main(sys.argv[1:]), prog="softprompt")


if __name__ == "__main__":
    sys.exit(entry())
