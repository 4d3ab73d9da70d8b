"""Which rows train a prompt, which choose it, and which tell how good it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from softprompt.data.reading import QUESTION_COLUMNS, Row, check_rows, load_tables
from softprompt.errors import UserError

HELD_OUT_SPLITS = ("validation", "test")


SCORED_SPLITS = ("test", "validation", "train")  # a validation split chose the prompt, a test split beside it did not


DEFAULT_EVAL_FRACTION = 0.1


MAX_DEFAULT_EVAL_ROWS = 200


MIN_DEFAULT_EVAL_ROWS = 8  # fewer choose by chance


@dataclass(frozen=True)
class Splits:
    """Rows to train on, rows held out to choose by, and rows for a last figure; the latter two may be empty."""

    train_rows: list[Row]
    eval_rows: list[Row]
    test_rows: list[Row] = field(default_factory=list)


def load_splits(
    data: str, *, eval_data: str | None, eval_fraction: float | None, seed: int, test_data: str | None = None
) -> Splits:
    """Load `data` and choose the held-out rows.

    In this order: `eval_data`; a seeded `eval_fraction` of the rows; the data's own `validation`, else `test` split; a
    tenth of the rows. The test rows are `test_data`, or the data's own `test` split where that is not held out.

    Raises:
        UserError: missing or unreadable data, or rows that are not Alpaca rows.
    """
    tables = load_tables(data, "--data")
    train_rows = check_rows(tables[_choose(tables, ("train",), data, "--data")], data)
    test_rows = _named_rows(test_data, "--test-data", ("test", *HELD_OUT_SPLITS, "train"))
    own = [split for split in HELD_OUT_SPLITS if split in tables and "train" in tables]
    chooses = own[0] if own and eval_data is None and eval_fraction is None else None
    if test_data is None and "test" in own and chooses != "test":
        test_rows = check_rows(tables["test"], f"{data} (test)")
    if eval_data is not None:
        return Splits(train_rows, _named_rows(eval_data, "--eval-data", (*HELD_OUT_SPLITS, "train")), test_rows)
    if chooses is not None:
        return Splits(train_rows, check_rows(tables[chooses], f"{data} ({chooses})"), test_rows)
    return Splits(*_hold_out(train_rows, eval_fraction, seed), test_rows)


def _named_rows(name: str | None, flag: str, wanted: Sequence[str]) -> list[Row]:
    """The rows of data that a flag names; none without a name."""
    if name is None:
        return []
    tables = load_tables(name, flag)
    return check_rows(tables[_choose(tables, wanted, name, flag)], name)


def load_split(data: str, split: str | None = None) -> tuple[list[Row], str]:
    """The rows of one split and what to call them in messages: `split`, else the test, validation or only one.

    Raises:
        UserError: as `load_splits`, or there is no such split.
    """
    tables = load_tables(data, "--data")
    if split is not None and split not in tables:
        raise UserError(f"--split {split}: --data {data} has only {', '.join(tables)}")
    chosen = _choose(tables, SCORED_SPLITS, data, "--data") if split is None else split
    name = data if len(tables) == 1 else f"{data} ({chosen})"
    return check_rows(tables[chosen], name), name


def load_table(data: str, split: str) -> list[Row]:
    """The rows of one split, by its name.

    Raises:
        UserError: as `load_splits`, or there is no such split.
    """
    return load_split(data, split)[0]


def load_questions(data: str) -> tuple[list[Row], str]:
    """Rows to answer, and what to call them in messages; of several splits the one that `--eval-data` would take.

    An `output` column is not looked at, and the rows' outputs are empty.

    Raises:
        UserError: as `load_splits`.
    """
    tables = load_tables(data, "--instructions", QUESTION_COLUMNS)
    split = _choose(tables, (*HELD_OUT_SPLITS, "train"), data, "--instructions")
    name = data if len(tables) == 1 else f"{data} ({split})"
    return check_rows(tables[split], name, QUESTION_COLUMNS), name


def _hold_out(rows: list[Row], fraction: float | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows by a seeded draw; both parts keep the file's order."""
    if fraction is None:
        count = min(int(len(rows) * DEFAULT_EVAL_FRACTION), MAX_DEFAULT_EVAL_ROWS)
        count = 0 if count < MIN_DEFAULT_EVAL_ROWS else count
    else:
        count = min(round(len(rows) * fraction), len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[:count])
    return (
        [row for place, row in enumerate(rows) if place not in chosen],
        [row for place, row in enumerate(rows) if place in chosen],
    )


def _choose(tables: dict[str, list], wanted: Iterable[str], name: str, flag: str) -> str:
    """The name of the first wanted split that is there, or of the only one."""
    for split in wanted:
        if split in tables:
            return split
    if len(tables) == 1:
        return next(iter(tables))
    raise UserError(f"{flag} {name}: has the splits {', '.join(tables)} but no train; name one file")
