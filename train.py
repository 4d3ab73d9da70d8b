#!/usr/bin/env python
"""Tune a soft prompt on a frozen causal language model; `softprompt train` is the same command."""

import sys
from functools import partial

from softprompt.cli.program import leave, run
from softprompt.cli.train import main

if __name__ == "__main__":
    sys.exit(leave(run(partial(main, prog="train.py"), prog="train.py")))
