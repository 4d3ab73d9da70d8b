"""The rows of a run, encoded, told apart and checked against the base; every step of it is said."""

from dataclasses import dataclass

from softprompt.base.loading import Base, require_known_ids
from softprompt.cli.text import describe_row, describe_split
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.config.options import flag
from softprompt.data.encoding import EncodedRow, encode_rows, without_copies
from softprompt.data.reading import Row
from softprompt.data.splits import Splits, load_splits
from softprompt.errors import UserError


@dataclass(frozen=True)
class EncodedSplits:
    """Rows to train on, to choose by and to report on, none of them in two lists."""

    train_rows: list[EncodedRow]
    eval_rows: list[EncodedRow]
    test_rows: list[EncodedRow]

    @property
    def all_rows(self) -> list[EncodedRow]:
        """The rows of all lists."""
        return self.train_rows + self.eval_rows + self.test_rows

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in self.all_rows)


def load_rows(config: TrainConfig | SweepConfig) -> Splits:
    """The rows that the options name.

    Raises:
        UserError: as `load_splits`.
    """
    held_out = {"eval_data": config.eval_data, "eval_fraction": config.eval_fraction, "test_data": config.test_data}
    return load_splits(config.data, **held_out, seed=config.seed)


def encode_splits(splits: Splits, base: Base, config: TrainConfig | SweepConfig) -> EncodedSplits:
    """Encode all rows, print how many there are and what the first one looks like, and leave out copies.

    Raises:
        UserError: nothing to train on, or an id that the base does not know.
    """
    train_rows, skipped = encode_rows(splits.train_rows, base.tokenizer, max_length=config.max_length)
    print(describe_split(f"--data {config.data}", train_rows, skipped))
    if not train_rows:
        raise UserError(f"--data {config.data}: no row has a response within --max-length {config.max_length}")
    eval_rows = _apart("held out", splits.eval_rows, train_rows, base, config.max_length)
    test_rows = splits.test_rows and _apart("test", splits.test_rows, train_rows + eval_rows, base, config.max_length)
    print(describe_row(train_rows[0], base.tokenizer))
    for name, rows in (("eval_data", eval_rows), ("test_data", test_rows)):
        if getattr(config, name) is not None and not rows:
            raise UserError(f"{flag(name)} {getattr(config, name)}: no row is left to score; see the line above")
    encoded = EncodedSplits(train_rows, eval_rows, test_rows)
    require_known_ids(base, (id for row in encoded.all_rows for id in row.input_ids))
    return encoded


def require_scored_rows(config: TrainConfig, rows: EncodedSplits) -> None:
    """Raise `UserError` for an option that would do nothing without held-out or test rows."""
    for name in ("early_stopping_patience", "eval_steps", "save_last", "eval_generate"):
        scored = rows.eval_rows or (name == "eval_generate" and rows.test_rows)
        if getattr(config, name) and not scored:
            raise UserError(f"{flag(name)}: there are no held-out rows to look at; give --eval-data")


def _apart(name: str, rows: list[Row], others: list[EncodedRow], base: Base, max_length: int) -> list[EncodedRow]:
    """Encode rows that must not be among `others`."""
    encoded, skipped = encode_rows(rows, base.tokenizer, max_length=max_length)
    kept = without_copies(encoded, others)
    print(describe_split(name, kept, skipped, copies=len(encoded) - len(kept)))
    return kept
