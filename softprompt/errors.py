"""The exceptions that the command line prints as one line: wrong input, and a stop that was asked for."""

import signal


class UserError(ValueError):
    """The input is wrong, or the machine fails; the message names the file, row or option and says what to do."""


class Diverged(UserError):
    """A run cannot go on because its loss, gradient or prompt is no longer finite.

    Attributes:
        cause: the message without the place of the best prompt.
    """

    def __init__(self, cause: str, place: str = "") -> None:
        super().__init__(cause + place)
        self.cause = cause


class NotFiniteLogits(UserError):
    """A base behind a prompt gives logits from which no token can be chosen.

    Attributes:
        row: the place in the batch, from 0, of the first such row.
    """

    def __init__(self, row: int) -> None:
        super().__init__(
            "the logits are not finite: the base overflows or is damaged, or the prompt is too large for it; try"
            " `precision` fp32"
        )
        self.row = row


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP stopped the work.

    Attributes:
        signum: number of the signal.
        message: name of the signal and what was saved.
        exit_status: 128 + `signum`, with which a command ends.
    """

    def __init__(self, signum: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signum = signum
        self.message = f"{signal.Signals(signum).name}: {message}"
        self.exit_status = 128 + signum
