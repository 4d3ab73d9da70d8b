"""Which rows train a prompt, which choose among its versions, and which only report how good it is.

The rows are split as text and then encoded as token ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from softprompt.data.encoding import EncodedRow, encode_every_row, is_usable, without_copies
from softprompt.data.reading import QUESTION_COLUMNS, Data, Row, open_data
from softprompt.data.template import TUTORIAL, Template
from softprompt.errors import UserError

HELD_OUT_SPLITS = ("validation", "test")
SCORED_SPLITS = ("test", "validation", "train")  # test first, since validation chose the prompt
DEFAULT_EVAL_FRACTION = 0.1
MAX_DEFAULT_EVAL_ROWS = 200
MIN_DEFAULT_EVAL_ROWS = 8  # fewer rows would choose by chance
KEPT_WHOLE = 0.99  # the share of rows for which a length is proposed


@dataclass(frozen=True)
class Splits:
    """Rows to train on, held-out rows that choose the prompt, and rows for a final score; the last two may be empty.

    Attributes:
        notes: what is worth telling about the data, a line each.
    """

    train_rows: list[Row]
    eval_rows: list[Row]
    test_rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list, compare=False)


class NamedRows(NamedTuple):
    """Rows of one split, what to call them in messages, and what is worth telling about them."""

    rows: list[Row]
    name: str
    notes: list[str]


@dataclass(frozen=True)
class Cut:
    """How many of `rows` rows lose their end to `max_length`, and the length that would keep 99 % of them whole."""

    rows: int = 0
    without_end: int = 0
    enough: int = 0


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split as token ids, and which rows were left out.

    Attributes:
        skipped: the numbers of the rows left out because they have no question, or because their response is blank or
            `max_length` cuts all of it off.
        copies: how many rows were left out because another split already has the same input_ids.
        cut: how the cut met the rows, those in `skipped` too if it left them no response.
    """

    rows: list[EncodedRow] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    copies: int = 0
    cut: Cut = Cut()


@dataclass(frozen=True)
class EncodedSplits:
    """Rows to train on, to choose by and to report on; no row is in two of these splits."""

    train: EncodedSplit
    held_out: EncodedSplit = EncodedSplit()
    test: EncodedSplit = EncodedSplit()
    notes: list[str] = field(default_factory=list, compare=False)

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
    with open_data(data, "data") as source:
        train = source.choose(("train",))
        train_rows = source.rows(train)
        own = [split for split in HELD_OUT_SPLITS if split in source.splits and "train" in source.splits]
        chooses = own[0] if own and eval_data is None and eval_fraction is None else None
        test_rows, eval_rows = list[Row](), list[Row]()
        if test_data is None and "test" in own and chooses != "test":
            test_rows = source.rows("test", label=f"{source.name} (test)")
        if chooses is not None:
            eval_rows = source.rows(chooses, label=f"{source.name} ({chooses})")
        source.note_unused_splits([train])
        notes = source.notes
    if test_data is not None:
        test_rows = _rows_of(test_data, "test_data", ("test", *HELD_OUT_SPLITS, "train"), notes)
    if eval_data is not None:
        eval_rows = _rows_of(eval_data, "eval_data", (*HELD_OUT_SPLITS, "train"), notes)
    elif chooses is None:
        train_rows, eval_rows = _hold_out(train_rows, eval_fraction, seed)
    return Splits(train_rows, eval_rows, test_rows, list(dict.fromkeys(notes)))


def encode_splits(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> EncodedSplits:
    """Encode all rows, and leave out copies, so that no row both trains a prompt and judges it.

    A held-out row is left out if it is also a training row, and a test row if it is also one of either.
    """

    def apart(rows: list[Row], others: list[EncodedRow]) -> EncodedSplit:
        encoded = encode_every_row(rows, tokenizer, max_length=max_length, template=template)
        usable = [each for row, each in zip(rows, encoded, strict=True) if is_usable(row, each)]
        skipped = [row.number for row, each in zip(rows, encoded, strict=True) if not is_usable(row, each)]
        kept = without_copies(usable, others)
        asked = [each for row, each in zip(rows, encoded, strict=True) if row.has_question and row.output.strip()]
        return EncodedSplit(kept, skipped, len(usable) - len(kept), cut_of(asked))

    train = apart(splits.train_rows, [])
    held_out = apart(splits.eval_rows, train.rows)
    return EncodedSplits(train, held_out, apart(splits.test_rows, train.rows + held_out.rows), splits.notes)


def cut_of(rows: Sequence[EncodedRow]) -> Cut:
    """What `max_length` did to rows."""
    if not rows:
        return Cut()
    lengths = sorted(len(row.input_ids) + row.num_cut for row in rows)
    return Cut(len(rows), sum(row.num_cut > 0 for row in rows), lengths[math.ceil(KEPT_WHOLE * len(rows)) - 1])


def load_split(data: Data, split: str | None = None) -> NamedRows:
    """Load the rows of one split; returns them and what messages call them.

    Without `split`, it is the first of `test`, `validation` and `train` that the data has, or else its only split.

    Raises:
        UserError: as `load_splits`; or there is no such split.
    """
    with open_data(data, "data") as source:
        if split is None:
            chosen = source.choose(SCORED_SPLITS)
        elif split in source.given or split in source.splits:
            chosen = source.given.get(split, split)
        else:
            raise UserError(f"`split` {split}: `data` {source.name} has only {', '.join(source.given)}")
        name = source.name if len(source.splits) == 1 else f"{source.name} ({chosen})"
        return NamedRows(source.rows(chosen, label=name), name, source.notes)


def load_questions(data: Data) -> NamedRows:
    """Load rows to answer; returns them and what messages call them.

    Of several splits it takes the one that `eval_data` would: the first of `validation`, `test` and `train`. It ignores
    an `output` column, and the outputs of the rows are "". All further columns stay with their row. A row without a
    question is left out, and a note has its number.

    Raises:
        UserError: as `load_splits`.
    """
    with open_data(data, "instructions", QUESTION_COLUMNS) as source:
        split = source.choose((*HELD_OUT_SPLITS, "train"))
        name = source.name if len(source.splits) == 1 else f"{source.name} ({split})"
        rows = source.rows(split, label=name, columns=QUESTION_COLUMNS, carry=True)
        source.note_unused_splits([split])
        blank = [row.number for row in rows if not row.has_question]
        if len(blank) == len(rows):
            raise UserError(f"{name}, row 1: no instruction; every row needs an instruction")
        if any("answer" in row.others for row in rows):
            source.note([f"{name}: the column answer is left out of the output, where the answers have that name"])
        if blank:
            source.note([f"{name}: {len(blank)} without a question skipped: row {numbers_shown(blank)}"])
        return NamedRows([row for row in rows if row.has_question], name, source.notes)


def numbers_shown(numbers: Sequence[int]) -> str:
    """The first few of some row numbers."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _rows_of(data: Data, option: str, wanted: Sequence[str], notes: list[str]) -> list[Row]:
    """Load the rows of the first wanted split that `data` has, and add to the notes what is worth telling of them."""
    with open_data(data, option) as source:
        rows = source.rows(source.choose(wanted))
        notes += source.notes
        return rows


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
