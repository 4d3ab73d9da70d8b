"""Which rows train a prompt, which choose among its versions, and which only report how good it is."""

import functools
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from softprompt.data.formats import choices_of
from softprompt.data.reading import Data, DataOptions, Source, numbers_shown, open_data, with_article
from softprompt.data.row import Row, RowKinds
from softprompt.data.rows import chosen_rows
from softprompt.errors import UserError

HELD_OUT_SPLITS = ("validation", "test")
SCORED_SPLITS = ("test", "validation", "train")  # test first, since validation chose the prompt
DEFAULT_EVAL_FRACTION = 0.1
MAX_DEFAULT_EVAL_ROWS = 200
MIN_DEFAULT_EVAL_ROWS = 8  # fewer rows would choose by chance


@dataclass(frozen=True)
class Splits:
    """Rows to train on, held-out rows that choose the prompt, and rows for a final score; the last two may be empty.

    Attributes:
        notes: what is worth telling about the data, a line each.
        choices: the labels, if the rows are those of a classification with names for its classes; else empty.
        kinds: what decides how the rows are written.
    """

    train_rows: Sequence[Row]
    eval_rows: Sequence[Row]
    test_rows: Sequence[Row] = ()
    notes: list[str] = field(default_factory=list, compare=False)
    choices: tuple[str, ...] = ()
    kinds: RowKinds = RowKinds()


class NamedRows(NamedTuple):
    """Rows of one split, what to call them in messages, what is worth telling about them, and the labels if any."""

    rows: Sequence[Row]
    name: str
    notes: list[str]
    choices: tuple[str, ...] = ()


def load_splits(
    data: Data,
    *,
    eval_data: Data | None = None,
    eval_fraction: float | None = None,
    seed: int,
    test_data: Data | None = None,
    columns: str | None = None,
    max_train_rows: int | None = None,
    data_config: str | None = None,
    data_split: str | None = None,
    asks: bool = False,
) -> Splits:
    """Load `data` and choose the held-out rows and the test rows.

    The held-out rows are the first of these that exists: `eval_data`; a random `eval_fraction` of the rows; the data's
    own `validation` split, or else its `test` split; a random tenth of the rows, at most 200, or none if a tenth is
    fewer than 8. The test rows are `test_data`, or else the data's own `test` split, unless that is held out.

    Args:
        columns: the option, which is for `data`, `eval_data` and `test_data`.
        max_train_rows: keep the first so many training rows, once the held-out rows are drawn.
        data_config: the configuration, and `data_split` the split, of a hub id in `data`.
        asks: only questions are read, with the further columns of their rows.

    Raises:
        UserError: data is missing or unreadable, or has rows in no format that is known.
    """
    opened: list[Source] = []

    def rows_of(data: Data, option: str, wanted: Sequence[str]) -> Sequence[Row]:
        with open_data(data, option, DataOptions(columns)) as source:
            opened.append(source)
            return source.rows(source.choose(wanted), asks=asks)[0]

    with open_data(data, "data", DataOptions(columns, data_config, data_split)) as source:
        opened.append(source)
        train = source.choose(("train",))
        train_rows, _ = source.rows(train, asks=asks)
        own = [split for split in HELD_OUT_SPLITS if split in source.splits and "train" in source.splits]
        chooses = own[0] if own and eval_data is None and eval_fraction is None else None
        test_rows: Sequence[Row] = ()
        eval_rows: Sequence[Row] = ()
        if test_data is None and "test" in own and chooses != "test":
            test_rows, _ = source.rows("test", label=f"{source.name} (test)", asks=asks)
        if chooses is not None:
            eval_rows, _ = source.rows(chooses, label=f"{source.name} ({chooses})", asks=asks)
        source.note_unused_splits([train])
    if test_data is not None:
        test_rows = rows_of(test_data, "test_data", ("test", *HELD_OUT_SPLITS, "train"))
    if eval_data is not None:
        eval_rows = rows_of(eval_data, "eval_data", (*HELD_OUT_SPLITS, "train"))
    elif chooses is None:
        train_rows, eval_rows = _hold_out(train_rows, eval_fraction, seed)
    notes = [note for source in opened for note in source.notes]
    kinds = functools.reduce(operator.or_, (source.kinds for source in opened))
    notes = list(dict.fromkeys(notes))
    return Splits(train_rows[:max_train_rows], eval_rows, test_rows, notes, _choices_of(opened), kinds)


def load_split(
    data: Data,
    split: str | None = None,
    *,
    columns: str | None = None,
    data_config: str | None = None,
    asks: bool = False,
) -> NamedRows:
    """Load the rows of one split; returns them, what messages call them, and their labels if they are classified.

    Without `split`, it is the first of `test`, `validation` and `train` that the data has, or else its only split. With
    `asks`, only questions are read.

    Raises:
        UserError: as `load_splits`; or there is no such split.
    """
    with open_data(data, "data", DataOptions(columns, data_config)) as source:
        if split is None:
            chosen = source.choose(SCORED_SPLITS)
        elif split in source.given or split in source.splits:
            chosen = source.given.get(split, split)
        else:
            raise UserError(f"`split` {split}: `data` {source.name} has only {', '.join(source.given)}")
        name = source.name if len(source.splits) == 1 else f"{source.name} ({chosen})"
        rows, _ = source.rows(chosen, label=name, asks=asks)
        return NamedRows(rows, name, source.notes, _choices_of([source]))


def load_questions(
    data: Data, *, columns: str | None = None, data_config: str | None = None, data_split: str | None = None
) -> NamedRows:
    """Load rows to answer; returns them and what messages call them.

    Of several splits it takes the one that `eval_data` would: the first of `validation`, `test` and `train`. Answers in
    the data are left aside, and the outputs of the rows are "". All further columns stay with their row. A row without
    a question is left out, and a note has its number.

    Raises:
        UserError: as `load_splits`.
    """
    with open_data(data, "instructions", DataOptions(columns, data_config, data_split)) as source:
        split = source.choose((*HELD_OUT_SPLITS, "train"))
        name = source.name if len(source.splits) == 1 else f"{source.name} ({split})"
        rows, seen = source.rows(split, label=name, asks=True)
        source.note_unused_splits([split])
        blank = seen.without_question
        if len(blank) == len(rows):
            column = next(iter(rows[0].columns), "question")
            raise UserError(f"{name}, row 1: no {column}; every row needs {with_article(column)}")
        if "answer" in seen.others:
            source.note([f"{name}: the column answer is left out of the output, where the answers have that name"])
        if blank:
            source.note([f"{name}: {len(blank)} without a question skipped: row {numbers_shown(blank)}"])
            asking = torch.ones(len(rows), dtype=torch.bool)
            asking[torch.tensor(blank) - 1] = False
            rows = chosen_rows(rows, asking.nonzero().flatten())
        return NamedRows(rows, name, source.notes)


def _choices_of(sources: Sequence[Source]) -> tuple[str, ...]:
    """The labels of all rows that were read."""
    names = [name for source in sources for name in source.class_names]
    return choices_of(names, sum((source.labels for source in sources), Counter[str]()))


def _hold_out(rows: Sequence[Row], fraction: float | None, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Split rows at random by `seed` into training and held-out rows; both keep the order that they had."""
    if fraction is None:
        count = min(int(len(rows) * DEFAULT_EVAL_FRACTION), MAX_DEFAULT_EVAL_ROWS)
        count = 0 if count < MIN_DEFAULT_EVAL_ROWS else count
    else:
        count = min(round(len(rows) * fraction), len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros(len(rows), dtype=torch.bool)
    held_out[order[:count]] = True
    return chosen_rows(rows, (~held_out).nonzero().flatten()), chosen_rows(rows, held_out.nonzero().flatten())
