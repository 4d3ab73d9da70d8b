"""Which rows train a prompt, which choose among its versions, and which only report how good it is.

The rows are split as text and then encoded as token ids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from softprompt.data.encoding import EncodedRow, encode_rows, without_copies
from softprompt.data.reading import QUESTION_COLUMNS, Data, Row, check_rows, load_tables, name_of
from softprompt.data.template import TUTORIAL, Template
from softprompt.errors import UserError

HELD_OUT_SPLITS = ("validation", "test")
SCORED_SPLITS = ("test", "validation", "train")  # test first, since validation chose the prompt
DEFAULT_EVAL_FRACTION = 0.1
MAX_DEFAULT_EVAL_ROWS = 200
MIN_DEFAULT_EVAL_ROWS = 8  # fewer rows would choose by chance


@dataclass(frozen=True)
class Splits:
    """Rows to train on, held-out rows that choose the prompt, and rows for a final score; the last two may be empty."""

    train_rows: list[Row]
    eval_rows: list[Row]
    test_rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split as token ids, and which rows were left out.

    Attributes:
        skipped: the numbers of the rows left out because their response is blank or `max_length` cuts all of it off.
        copies: how many rows were left out because another split already has the same input_ids.
    """

    rows: list[EncodedRow] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    copies: int = 0


@dataclass(frozen=True)
class EncodedSplits:
    """Rows to train on, to choose by and to report on; no row is in two of these splits."""

    train: EncodedSplit
    held_out: EncodedSplit = EncodedSplit()
    test: EncodedSplit = EncodedSplit()

    @property
    def train_rows(self) -> list[EncodedRow]:
        """Rows to train on."""
        return self.train.rows

    @property
    def eval_rows(self) -> list[EncodedRow]:
        """Held-out rows, which choose the prompt."""
        return self.held_out.rows

    @property
    def test_rows(self) -> list[EncodedRow]:
        """Rows that only report: they neither train nor choose the prompt."""
        return self.test.rows

    @property
    def all_rows(self) -> list[EncodedRow]:
        """The rows of all three splits."""
        return self.train_rows + self.eval_rows + self.test_rows

    @property
    def longest(self) -> int:
        """The number of tokens in the longest row."""
        return max(len(row.input_ids) for row in self.all_rows)


def load_splits(
    data: Data,
    *,
    eval_data: Data | None = None,
    eval_fraction: float | None = None,
    seed: int,
    test_data: Data | None = None,
) -> Splits:
    """Load `data` and choose the held-out rows and the test rows.

    The held-out rows are the first of these that exists: `eval_data`; a random `eval_fraction` of the rows; the data's
    own `validation` split, or else its `test` split; a random tenth of the rows, at most 200, or none if a tenth is
    fewer than 8. The test rows are `test_data`, or else the data's own `test` split, unless that is held out.

    Raises:
        UserError: data is missing or unreadable, or has rows that are not Alpaca rows.
    """
    tables, name = load_tables(data, "data"), name_of(data)
    train_rows = check_rows(tables[_choose(tables, ("train",), name, "data")], name)
    test_rows = _rows_of(test_data, "test_data", ("test", *HELD_OUT_SPLITS, "train"))
    own = [split for split in HELD_OUT_SPLITS if split in tables and "train" in tables]
    chooses = own[0] if own and eval_data is None and eval_fraction is None else None
    if test_data is None and "test" in own and chooses != "test":
        test_rows = check_rows(tables["test"], f"{name} (test)")
    if eval_data is not None:
        return Splits(train_rows, _rows_of(eval_data, "eval_data", (*HELD_OUT_SPLITS, "train")), test_rows)
    if chooses is not None:
        return Splits(train_rows, check_rows(tables[chooses], f"{name} ({chooses})"), test_rows)
    return Splits(*_hold_out(train_rows, eval_fraction, seed), test_rows)


def encode_splits(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> EncodedSplits:
    """Encode all rows, and leave out copies, so that no row both trains a prompt and judges it.

    A held-out row is left out if it is also a training row, and a test row if it is also one of either.
    """

    def apart(rows: list[Row], others: list[EncodedRow]) -> EncodedSplit:
        encoded, skipped = encode_rows(rows, tokenizer, max_length=max_length, template=template)
        kept = without_copies(encoded, others)
        return EncodedSplit(kept, skipped, len(encoded) - len(kept))

    train = apart(splits.train_rows, [])
    held_out = apart(splits.eval_rows, train.rows)
    return EncodedSplits(train, held_out, apart(splits.test_rows, train.rows + held_out.rows))


def load_split(data: Data, split: str | None = None) -> tuple[list[Row], str]:
    """Load the rows of one split; returns them and what messages call them.

    Without `split`, it is the first of `test`, `validation` and `train` that the data has, or else its only split.

    Raises:
        UserError: as `load_splits`; or there is no such split.
    """
    tables, name = load_tables(data, "data"), name_of(data)
    if split is not None and split not in tables:
        raise UserError(f"`split` {split}: `data` {name} has only {', '.join(tables)}")
    chosen = _choose(tables, SCORED_SPLITS, name, "data") if split is None else split
    name = name if len(tables) == 1 else f"{name} ({chosen})"
    return check_rows(tables[chosen], name), name


def load_questions(data: Data) -> tuple[list[Row], str]:
    """Load rows to answer; returns them and what messages call them.

    Of several splits it takes the one that `eval_data` would: the first of `validation`, `test` and `train`. It ignores
    an `output` column, and the outputs of the rows are "".

    Raises:
        UserError: as `load_splits`.
    """
    tables, name = load_tables(data, "instructions", QUESTION_COLUMNS), name_of(data)
    split = _choose(tables, (*HELD_OUT_SPLITS, "train"), name, "instructions")
    name = name if len(tables) == 1 else f"{name} ({split})"
    return check_rows(tables[split], name, QUESTION_COLUMNS), name


def _rows_of(data: Data | None, option: str, wanted: Sequence[str]) -> list[Row]:
    """Load the rows of the first wanted split that `data` has; no rows if `data` is None."""
    if data is None:
        return []
    tables, name = load_tables(data, option), name_of(data)
    return check_rows(tables[_choose(tables, wanted, name, option)], name)


def _hold_out(rows: list[Row], fraction: float | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows at random by `seed` into training and held-out rows; both keep the order that they had."""
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


def _choose(tables: dict[str, list], wanted: Iterable[str], name: str, option: str) -> str:
    """The name of the first wanted split that the data has, or of its only split; raises `UserError` if neither."""
    for split in wanted:
        if split in tables:
            return split
    if len(tables) == 1:
        return next(iter(tables))
    raise UserError(f"`{option}` {name}: has the splits {', '.join(tables)} but no train; name one file")
