"""The exceptions that the command line prints as one line: wrong input, and a stop that was asked for."""

import signal


class UserError(ValueError):
    """Wrong input or a machine that fails: the message names the file, row or flag and what to do."""


class Diverged(UserError):
    """A run cannot go on, since its numbers are no longer finite."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; `message` says what was saved."""

    def __init__(self, signum: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signum = signum
        self.message = f"{signal.Signals(signum).name}: {message}"
        self.exit_status = 128 + signum
