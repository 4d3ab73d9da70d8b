"""The splits of a run as token ids: which rows are left out, and how many lose their end to `max_length`."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from softprompt.data.reading import counted
from softprompt.data.row import Row
from softprompt.data.splits import Splits
from softprompt.tokens.encoding import EncodedRow, Encoder, is_usable, without_copies

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
        without_prompt: the same rows for the base alone, where they differ: a prompt in the system turn takes the place
            of the template's own.
        sources: what the rows were encoded from, if they judge a prompt.
    """

    rows: list[EncodedRow] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    copies: int = 0
    cut: Cut = Cut()
    without_prompt: list[EncodedRow] = field(default_factory=list)
    sources: list[Row] = field(default_factory=list, compare=False, repr=False)

    @property
    def for_base(self) -> list[EncodedRow]:
        """The rows as the base alone is to be scored on them."""
        return self.without_prompt or self.rows


@dataclass(frozen=True)
class EncodedSplits:
    """Rows to train on, to choose by and to report on; no row is in two of these splits.

    Attributes:
        encoder: what encoded them.
        notes: what is worth telling about the rows, a line each.
        choices: the labels, if the rows are those of a classification; else empty.
    """

    encoder: Encoder
    train: EncodedSplit
    held_out: EncodedSplit = EncodedSplit()
    test: EncodedSplit = EncodedSplit()
    notes: list[str] = field(default_factory=list, compare=False)
    choices: tuple[str, ...] = ()

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


def encode_splits(splits: Splits, encoder: Encoder, *, max_length: int) -> EncodedSplits:
    """Encode all rows, and leave out copies, so that no row both trains a prompt and judges it.

    A held-out row is left out if it is also a training row, and a test row if it is also one of either.
    """
    train = _encode_split(splits.train_rows, [], encoder, max_length)
    held_out = _encode_split(splits.eval_rows, train.rows, encoder, max_length, judges=True)
    test = _encode_split(splits.test_rows, train.rows + held_out.rows, encoder, max_length, judges=True)
    notes = list(splits.notes)
    if encoder.lost_turns:
        notes.append(
            f"{counted(encoder.lost_turns, 'answer')} of earlier turns {'is' if encoder.lost_turns == 1 else 'are'} not"
            " learnt, since the chat template writes such a turn in another way once the conversation goes on"
        )
    return EncodedSplits(encoder, train, held_out, test, notes, splits.choices)


def _encode_split(
    rows: list[Row], others: list[EncodedRow], encoder: Encoder, max_length: int, *, judges: bool = False
) -> EncodedSplit:
    """Encode one split without the rows that `others` have; `judges` if the base alone is scored on it as well."""
    encoded = encoder.encode(rows, max_length=max_length)
    pairs = list(zip(rows, encoded, strict=True))
    usable = [pair for pair in pairs if is_usable(*pair)]
    skipped = [row.number for row, each in pairs if not is_usable(row, each)]
    fresh = without_copies([each for _, each in usable], others)
    asked = [each for row, each in pairs if row.has_question and row.has_answer]
    baseline = encoder.baseline
    without_prompt, kept = list[EncodedRow](), {id(each) for each in fresh}
    sources = [row for row, each in usable if id(each) in kept] if judges else []
    if judges and baseline is not encoder:
        alone = baseline.encode(sources, max_length=sys.maxsize)
        without_prompt = [one.until(other.num_supervised) for one, other in zip(alone, fresh, strict=True)]
    return EncodedSplit(fresh, skipped, len(usable) - len(fresh), cut_of(asked), without_prompt, sources)


def cut_of(rows: Sequence[EncodedRow]) -> Cut:
    """What `max_length` did to rows."""
    if not rows:
        return Cut()
    lengths = sorted(len(row.input_ids) + row.num_cut for row in rows)
    return Cut(len(rows), sum(row.num_cut > 0 for row in rows), lengths[math.ceil(KEPT_WHOLE * len(rows)) - 1])
