"""The entry point of `softprompt COMMAND` and `python -m softprompt COMMAND`."""

import importlib
import sys
from collections.abc import Sequence

from softprompt import __version__
from softprompt.cli.program import leave, run
from softprompt.errors import UserError

# each is a module of `cli` with a function `main(argv, prog)`; `--help` shows the docstring of the module
COMMANDS = ("train", "generate", "chat", "evaluate", "inspect", "sweep")


def main(argv: Sequence[str]) -> None:
    """Call the command that `argv` begins with, and give it the other words; without a command, print the usage.

    Raises:
        UserError: there is no such command.
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
    """Run the console script and return its exit status."""
    return leave(run(lambda: main(sys.argv[1:]), prog="softprompt"))


if __name__ == "__main__":
    sys.exit(entry())
