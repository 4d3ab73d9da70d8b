"""The rows of a table: each is made from its record when it is asked for, so a large table takes no memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

import torch
from torch import Tensor

from softprompt.data.formats import Format, Tally
from softprompt.data.row import Row, RowKinds
from softprompt.data.tables import Table
from softprompt.data.values import is_missing
from softprompt.errors import UserError

T = TypeVar("T")
MOST_KEPT = 10_000  # rows of a table that are kept in memory once they are made
MOST_DIFFERENT = 10_000  # outputs that are told apart


class StoredRows(Sequence[T]):
    """Rows that stay on the disk; they are equal to a list of equal rows."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list


class Rows(StoredRows[Row]):
    """Rows of a table in their order, or some of them. Each is made anew whenever it is asked for."""

    def __init__(
        self,
        table: Table,
        form: Format,
        *,
        label: str,
        carried: Sequence[str] = (),
        asks: bool = False,
        places: Tensor | None = None,
    ) -> None:
        """Take a table; nothing is read yet.

        Args:
            label: what messages call the table.
            carried: further columns, whose values stay with each row.
            asks: only the questions are wanted.
            places: which rows, as ascending places from 0; None takes all.
        """
        self._table, self._form, self._label = table, form, label
        self._carried, self._asks, self._places = carried, asks, places

    def __len__(self) -> int:
        return len(self._table) if self._places is None else len(self._places)

    def __iter__(self) -> Iterator[Row]:
        return self.read(Tally())

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> "Rows": ...
    def __getitem__(self, place: int | slice) -> "Row | Rows":
        places = torch.arange(len(self._table)) if self._places is None else self._places
        if isinstance(place, slice):
            return self._only(places[place])
        return next(iter(self._only(places[place].reshape(1))))

    def select(self, places: Tensor) -> "Rows":
        """Those of the rows that have certain places, which are ascending and counted from 0."""
        return self._only(places if self._places is None else self._places[places])

    def _only(self, places: Tensor) -> "Rows":
        return Rows(self._table, self._form, label=self._label, carried=self._carried, asks=self._asks, places=places)

    def read(self, tally: Tally) -> Iterator[Row]:
        """Go through the rows; `tally` is told what is left out of them.

        Raises:
            UserError: a value is of another kind than its column holds; the message names the row.
        """
        columns = [*self._form.columns.values(), *self._carried]
        for place, record in self._table.rows(columns, self._places):
            try:
                row = self._form.row(record, place + 1, tally, asks=self._asks)
            except (UserError, RecursionError) as error:
                file, number = self._table.where(place + 1)
                cause = "is nested too deeply; write it flatter" if isinstance(error, RecursionError) else error
                raise UserError(f"{file or self._label}, row {number}: {cause}") from None
            kept = {name: record[name] for name in self._carried if not is_missing(record.get(name))}
            yield row.with_others(kept) if kept else row


@dataclass
class Survey:
    """What a walk through rows finds out about them.

    Attributes:
        tally: what was left out of rows.
        outputs: how often every output occurs; beyond 10,000 different ones no further are told apart.
        kinds: what decides how rows are written.
        without_question: the numbers of the rows that ask nothing.
        others: the columns that rows carry besides their format's.
    """

    tally: Tally = field(default_factory=Tally)
    outputs: Counter[str] = field(default_factory=Counter)
    kinds: RowKinds = RowKinds()
    without_question: list[int] = field(default_factory=list)
    others: set[str] = field(default_factory=set)

    def of(self, rows: Rows) -> Sequence[Row]:
        """Go through all rows once, which checks them, and return them: those of a small table as a list."""
        kept: list[Row] | None = [] if len(rows) <= MOST_KEPT else None
        for row in rows.read(self.tally):
            if row.output in self.outputs or len(self.outputs) < MOST_DIFFERENT:
                self.outputs[row.output] += 1
            self.kinds |= RowKinds.of(row)
            if not row.has_question:
                self.without_question.append(row.number)
            self.others.update(row.others)
            if kept is not None:
                kept.append(row)
        return rows if kept is None else kept


def chosen_rows(rows: Sequence[Row], places: Tensor) -> Sequence[Row]:
    """The rows at some places, which are ascending and counted from 0."""
    return rows.select(places) if isinstance(rows, Rows) else [rows[place] for place in places.tolist()]
