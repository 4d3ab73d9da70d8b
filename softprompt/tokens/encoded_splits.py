"""The splits of a run as token ids: which rows are left out, and how many lose their end to `max_length`."""

import functools
import math
import sys
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from softprompt.data.reading import counted
from softprompt.data.row import Row
from softprompt.data.rows import MOST_KEPT
from softprompt.data.splits import Splits
from softprompt.tokens.encoded_rows import ROWS_TOGETHER, EncodedWriter, KnownRows, RowFacts
from softprompt.tokens.encoding import LONGEST_COUNTED, EncodedRow, Encoder, is_usable

KEPT_WHOLE = 0.99  # the share of rows for which a length is proposed
MOST_SOURCES = 200  # rows of a split whose source is kept


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
        sources: what the first 200 rows were encoded from, if they judge a prompt.
        known_facts: what is known of the rows without a walk through them.
    """

    rows: Sequence[EncodedRow] = ()
    skipped: Sequence[int] = ()
    copies: int = 0
    cut: Cut = Cut()
    without_prompt: Sequence[EncodedRow] = ()
    sources: Sequence[Row] = field(default=(), compare=False, repr=False)
    known_facts: RowFacts | None = field(default=None, compare=False, repr=False)

    @property
    def for_base(self) -> Sequence[EncodedRow]:
        """The rows as the base alone is to be scored on them."""
        return self.without_prompt or self.rows

    @functools.cached_property
    def facts(self) -> RowFacts:
        """What a run asks of all rows."""
        return self.known_facts or RowFacts.of(self.rows)


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
    def train_rows(self) -> Sequence[EncodedRow]:
        """Rows to train on."""
        return self.train.rows

    @property
    def eval_rows(self) -> Sequence[EncodedRow]:
        """Held-out rows, which choose the prompt."""
        return self.held_out.rows

    @property
    def test_rows(self) -> Sequence[EncodedRow]:
        """Rows that only report: they neither train nor choose the prompt."""
        return self.test.rows

    @property
    def splits(self) -> tuple[EncodedSplit, ...]:
        """All three splits."""
        return self.train, self.held_out, self.test

    @property
    def longest(self) -> int:
        """The number of tokens in the longest row."""
        return max(split.facts.longest for split in self.splits)

    @property
    def largest_id(self) -> int:
        """The largest id in any row."""
        return max(split.facts.largest_id for split in self.splits)


def encode_splits(
    splits: Splits, encoder: Encoder, *, max_length: int, folder: Path | None = None, most_kept: int = MOST_KEPT
) -> EncodedSplits:
    """Encode all rows, and leave out copies, so that no row both trains a prompt and judges it.

    A held-out row is left out if it is also a training row, and a test row if it is also one of either.

    Args:
        folder: where the rows of a split go that has more than `most_kept` of them; None takes temporary files, which
            are gone with the rows.

    Raises:
        UserError: the template refuses a row.
    """
    if folder is None:
        # a file that is mapped stays readable once it is deleted; where it does not, it cannot be deleted
        with tempfile.TemporaryDirectory(prefix="softprompt-", ignore_cleanup_errors=True) as temporary:
            return encode_splits(splits, encoder, max_length=max_length, folder=Path(temporary), most_kept=most_kept)
    encode = functools.partial(
        _encode_split, encoder=encoder, max_length=max_length, folder=folder, most_kept=most_kept
    )
    trained, chose = KnownRows(), KnownRows()
    train = encode(splits.train_rows, "train", marks=trained)
    held_out = encode(splits.eval_rows, "held_out", others=(trained,), marks=chose)
    test = encode(splits.test_rows, "test", others=(trained, chose))
    notes = list(splits.notes)
    if encoder.lost_turns:
        notes.append(
            f"{counted(encoder.lost_turns, 'answer')} of earlier turns {'is' if encoder.lost_turns == 1 else 'are'} not"
            " learnt, since the chat template writes such a turn in another way once the conversation goes on"
        )
    return EncodedSplits(encoder, train, held_out, test, notes, splits.choices)


def _encode_split(
    rows: Sequence[Row],
    name: str,
    *,
    encoder: Encoder,
    max_length: int,
    folder: Path,
    most_kept: int,
    others: Sequence[KnownRows] = (),
    marks: KnownRows | None = None,
) -> EncodedSplit:
    """Encode one split, some rows at a time, without the rows that `others` have.

    Args:
        others: the rows of other splits, empty for the training rows; the base alone is scored on all others as well.
        marks: is told every row that stays.
    """
    baseline, judges = encoder.baseline, bool(others)
    kept = EncodedWriter(folder / f"{name}.arrow", most_kept)
    alone = EncodedWriter(folder / f"{name}-base.arrow", most_kept)
    skipped, sources, lengths, num_kept, num_usable = array("q"), list[Row](), array("q"), 0, 0
    for some in _together(rows):
        encoded = encoder.encode(some, max_length=max_length)
        pairs = list(zip(some, encoded, strict=True))
        usable = [pair for pair in pairs if is_usable(*pair)]
        skipped.extend(row.number for row, each in pairs if not is_usable(row, each))
        lengths.extend(_length(each) for row, each in pairs if row.has_question and row.has_answer)
        copied = [known.holds([each for _, each in usable]) for known in others]
        fresh = [pair for pair, *found in zip(usable, *copied, strict=True) if not any(found)]
        num_usable, num_kept = num_usable + len(usable), num_kept + len(fresh)
        kept.add(each for _, each in fresh)
        for _, each in fresh:
            if marks is not None:
                marks.add(each)
        if judges and baseline is not encoder:
            written = baseline.encode([row for row, _ in fresh], max_length=sys.maxsize)
            alone.add(one.until(each.num_supervised) for one, (_, each) in zip(written, fresh, strict=True))
        if judges and len(sources) < MOST_SOURCES:
            sources += [row for row, _ in fresh][: MOST_SOURCES - len(sources)]
    facts = kept.facts.facts()
    return EncodedSplit(
        kept.finish(), skipped, num_usable - num_kept, _cut(lengths, max_length), alone.finish(), sources, facts
    )


def _together(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in lists, which the tokenizer takes at once."""
    some = list[Row]()
    for row in rows:
        some.append(row)
        if len(some) == ROWS_TOGETHER:
            yield some
            some = []
    if some:
        yield some


def cut_of(rows: Sequence[EncodedRow], max_length: int) -> Cut:
    """What `max_length` did to rows."""
    return _cut(array("q", map(_length, rows)), max_length)


def _length(row: EncodedRow) -> int:
    """The number of tokens that a row had before it was cut."""
    return len(row.input_ids) + row.num_cut


def _cut(lengths: "array[int]", max_length: int) -> Cut:
    """What `max_length` did to rows of some lengths; one beyond 32 times it counts as that."""
    if not lengths:
        return Cut()
    counted = torch.tensor(lengths).clamp(max=LONGEST_COUNTED * max_length).sort().values
    enough = int(counted[math.ceil(KEPT_WHOLE * len(counted)) - 1])
    return Cut(len(counted), int((counted > max_length).sum()), enough)
