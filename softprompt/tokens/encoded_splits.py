"""The splits of a run as token ids: which rows are left out, and how many lose their end to `max_length`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from softprompt.data.row import Row
from softprompt.data.splits import Splits
from softprompt.tokens.encoding import EncodedRow, encode_every_row, is_usable, without_copies
from softprompt.tokens.template import TUTORIAL, Template

KEPT_WHOLE = 0.99  # the share of rows for which a length is proposed


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
        asked = [each for row, each in zip(rows, encoded, strict=True) if row.has_question and row.has_answer]
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
