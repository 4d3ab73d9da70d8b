"""`python -m softprompt COMMAND`: what is done with prompts besides training and answering."""

import importlib
import sys
from collections.abc import Sequence

from softprompt.cli.program import run
from softprompt.errors import UserError

# each module has a `main(argv)` and says in its first line what it does
COMMANDS = {"evaluate": "softprompt.cli.evaluate", "inspect": "softprompt.cli.inspect", "sweep": "softprompt.cli.sweep"}


def main(argv: Sequence[str]) -> None:
    """Hand the words behind the command's name to its module.

    Raises:
        UserError: no command, or one that is not there.
    """
    name, *words = argv or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m softprompt {{{','.join(COMMANDS)}}} ...  (each with --help)")
    elif name not in COMMANDS:
        raise UserError(f"{name}: no such command; there are {', '.join(COMMANDS)}")
    else:
        importlib.import_module(COMMANDS[name]).main(words)


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:]), prog="softprompt"))
