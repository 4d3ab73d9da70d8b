"""Keys and values of rows, each in slots of its own, and what a score changes by with the distance of two positions.

A row has its slots for itself, one for each of its positions and without pads:

    slot = position   0 .. F-1   F .. F+T-1   F+T ..
    holds             front      text         new tokens

A query sees the slots up to its own position, so what lies in the slots behind it, from a row that has left, is hidden.
Letters in shapes: the cache has room for R rows of S slots each; there are Q query heads and G key heads, each D wide.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.packs.attention import Rules


class Cache:
    """Keys and values `[R, G, S, D]` of every layer; only the first rows are in use.

    Attributes:
        lengths: how many slots are filled, for every row in use.
        fronts: what the row has joined behind, for every row in use; None if it has not joined.
    """

    def __init__(self, rows: int = 0) -> None:
        """Begin with so many rows, of which no slot is filled."""
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.lengths = [0] * rows
        self.fronts: list[Cache | None] = [None] * rows
        self.room = (0, 0)  # R and S
        self._distances: dict[tuple[object, ...], Tensor] = {}

    @property
    def rows(self) -> int:
        """How many rows are in use."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values."""
        return sum(each.nbytes for kept in (self.keys, self.values) for each in kept.values())

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for at least so many rows and slots."""
        before = self.room
        self.room = (max(rows, before[0]), max(slots, before[1]))
        if self.room == before:
            return
        self._distances = {}
        for tensors in (self.keys, self.values):
            for layer, tensor in tensors.items():
                larger = self._zeros(tensor)
                larger[: self.rows, :, : before[1]] = tensor[: self.rows]
                tensors[layer] = larger

    def join(self, fronts: Sequence["Cache"]) -> None:
        """Add a row behind each of these fronts, which are caches of one row."""
        first, rows, room = self.rows, self.rows + len(fronts), self.room[0]
        self.reserve(rows if rows <= room else max(rows, 2 * room), max(front.lengths[0] for front in fronts))
        self.lengths += [front.lengths[0] for front in fronts]
        self.fronts += fronts
        for front in dict.fromkeys(fronts):
            own = indices([first + place for place, each in enumerate(fronts) if each is front])
            for mine, given in ((self.keys, front.keys), (self.values, front.values)):
                for layer, tensor in given.items():
                    if layer not in mine:
                        mine[layer] = self._zeros(tensor)
                    mine[layer][own, :, : tensor.shape[2]] = tensor

    def leave(self, row: int, *, clean: bool = False) -> None:
        """Let the last row take the place of a row; `clean` where its values may not be finite, since 0 x NaN is NaN.

        Without rows, the memory is given back.
        """
        last = self.rows - 1
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                if row != last:
                    tensor[row] = tensor[last]
                if clean:
                    tensor[last] = 0
        self.lengths[row], self.fronts[row] = self.lengths[last], self.fronts[last]
        del self.lengths[last], self.fronts[last]
        if not self.lengths:
            self.keys, self.values, self.room, self._distances = {}, {}, (0, 0), {}

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer, each `[R, G, S, D]`, for keys like `[G, N, D]`."""
        if number not in self.keys:
            self.keys[number], self.values[number] = self._zeros(like[None]), self._zeros(like[None])
        return self.keys[number], self.values[number]

    def by_distance(self, rules: Rules, like: Tensor) -> Tensor:
        """What is added to a score, for every distance from S - 1 down to 1 - S: `[1 or Q, 2 S - 1]` in `like`'s dtype.

        So a query at position p finds the S keys' numbers in one piece, from place S - 1 - p on.
        """
        key = (rules.slopes is None, rules.window, like.dtype)
        if key not in self._distances:
            distances = torch.arange(self.room[1] - 1, -self.room[1], -1, device=like.device)
            self._distances[key] = bias(distances, rules).to(like.dtype)
        return self._distances[key]

    def _zeros(self, like: Tensor) -> Tensor:
        """Room for the keys or values of a layer; empty memory would not do, since 0 x NaN is NaN."""
        return like.new_zeros(self.room[0], like.shape[1], self.room[1], like.shape[3])


def bias(distances: Tensor, rules: Rules) -> Tensor:
    """What is added to the score of a query and a key that is so many positions before it, `[*]` -> fp32 `[1 or Q, *]`.

    It holds ALiBi, and -inf where the key is hidden. ALiBi counts from the query, as `Layout._bias` in `attention.py`
    explains.
    """
    hidden = distances < 0
    if rules.window is not None:
        hidden |= distances >= rules.window
    slopes = torch.zeros(1, device=distances.device) if rules.slopes is None else rules.slopes
    return (slopes.view(-1, *[1] * distances.dim()) * -distances).masked_fill(hidden, -math.inf)


def indices(rows: list[int]) -> slice | list[int]:
    """Return ascending rows as a slice if they stand side by side, which is copied faster."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
