#!/usr/bin/env python
"""Answer questions with a frozen causal language model and a tuned soft prompt; `softprompt generate` is the same."""

import sys
from functools import partial

from softprompt.cli.generate import main
from softprompt.cli.program import leave, run

if __name__ == "__main__":
    sys.exit(leave(run(partial(main, prog="generate.py"), prog="generate.py")))
