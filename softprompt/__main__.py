"""The entry point of `softprompt COMMAND` and `python -m softprompt COMMAND`."""

import importlib
import sys
from collections.abc import Sequence

from softprompt import __version__
from softprompt.cli.program import leave, run
from softprompt.errors import UserError

# the module of `cli` that has a command's `main(argv, prog)`, and whose docstring `--help` shows
COMMANDS = {name: name for name in ("train", "generate", "chat", "evaluate", "inspect", "sweep", "export")}
COMMANDS["import"] = "import_adapter"  # no module that Python code imports can be called `import`


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
        importlib.import_module(f"softprompt.cli.{COMMANDS[name]}").main(words, prog=f"softprompt {name}")


def entry() -> int:
    """Run the console script and return its exit status."""
    return leave(run(lambda: main(sys.argv[1:]), prog="softprompt"))


if __name__ == "__main__":
    sys.exit(entry())
