"""One forward pass over a cache: which tokens it has, and what each of them sees.

A pass is a list of tokens, as a pack is. The first rows of the cache take one new token each, and the rows behind them,
which have just joined, their whole texts. What several texts begin with is computed once and written into the slots of
all of them. Letters in shapes: a pass has N tokens; the cache has room for rows of S slots; there are Q query heads and
G key heads, each D wide.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompt.engine.cache import Cache, indices
from softprompt.packs.attention import MAX_KEPT_SCORES, Rules
from softprompt.packs.cpu_kernels import cpu_uses_amx

SHARED = 4  # fewest ids in common that are worth a segment of their own
MOST_SCORES = 1 << 21  # most scores a head that are computed together


@dataclass(frozen=True)
class Segment:
    """Ids that stand at the same positions of some rows behind the same ids, so that they are computed once.

    Attributes:
        rows: the rows of the cache that hold them, in ascending order.
        start: the position of the first.
    """

    rows: list[int]
    start: int
    ids: Sequence[int]

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.start + len(self.ids)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Start and end of pieces with at most `MOST_SCORES` scores a head, so that no memory grows with the square."""
        most = max(1, MOST_SCORES // self.end)
        return [(start, min(start + most, self.end)) for start in range(self.start, self.end, most)]


class Pass:
    """One forward pass: which tokens it has, at which positions, and the attention of its layers.

    Attributes:
        ids: the ids of the segments, one segment behind the other.
        position_ids: int64 `[N]`, first those of the rows that take one token each.
        last: the places of the last token of every row, int64 `[rows]`; None if these are all the tokens.
    """

    def __init__(
        self, cache: Cache, steps: Sequence[int] | Tensor, segments: Sequence[Segment] = (), *, device: torch.device
    ) -> None:
        """Plan the pass.

        Args:
            steps: the positions of the tokens of the first rows, one each. As a tensor they may change until the pass
                runs, which a CUDA graph makes use of.
            segments: the texts of the other rows, a segment behind those that it continues.
        """
        self.cache, self.segments, self.count = cache, segments, len(steps)
        self.ids = [id for segment in segments for id in segment.ids]
        self._same = not isinstance(steps, Tensor) and len({*steps}) == 1  # all rows write into the same slot
        self._first = 0 if isinstance(steps, Tensor) or not self._same else steps[0]
        self._slots = steps if isinstance(steps, Tensor) else torch.tensor(steps, dtype=torch.long, device=device)
        self._rows = torch.arange(self.count, device=device)
        positions = [torch.arange(each.start, each.end, device=device) for each in segments]
        self.position_ids = torch.cat([self._slots, *positions]) if positions else self._slots
        self.last = torch.tensor(self._last_places(), device=device) if segments else None
        self._biases: dict[tuple[object, ...], Tensor] = {}

    def _last_places(self) -> list[int]:
        """The place of the last token of every row."""
        last, place = {row: row for row in range(self.count)}, self.count
        for segment in self.segments:
            place += len(segment.ids)
            last |= dict.fromkeys(segment.rows, place - 1)  # a row's segments follow each other
        return [last[row] for row in range(self.cache.rows)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Write `key` and `value` `[G, N, D]` of a layer into the slots, then attend to what is there.

        `query` is `[Q, N, D]`; the result is `[N, Q, D]`.
        """
        keys, values = self.cache.layer(layer, key)
        if not self.segments:
            return self._attend_steps(query, key, value, keys, values, rules)
        output, place = query.new_empty(query.shape[1], query.shape[0], query.shape[2]), self.count
        if place:
            new = slice(place)
            output[new] = self._attend_steps(query[:, new], key[:, new], value[:, new], keys, values, rules)
        for segment in self.segments:
            new, rows = slice(place, place + len(segment.ids)), indices(segment.rows)
            keys[rows, :, segment.start : segment.end] = key[:, new]
            values[rows, :, segment.start : segment.end] = value[:, new]
            one, parts = slice(segment.rows[0], segment.rows[0] + 1), segment.parts
            for start, end in parts:
                own = slice(place, place + end - start)
                added = self._part_bias(start, end, rules, query, keep=len(parts) == 1)
                found = attention(query[None, :, own], keys[one, :, :end], values[one, :, :end], added, rules)
                output[own] = found[0].transpose(0, 1)
                place = own.stop
        return output

    def _attend_steps(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, rules: Rules
    ) -> Tensor:
        """Attend for the rows that take one token each; they look at all slots, so that no tensor has gaps."""
        count, (query, key, value) = self.count, (each.transpose(0, 1) for each in (query, key, value))
        keys, values = keys[:count], values[:count]
        if self._same:
            keys[:, :, self._first], values[:, :, self._first] = key, value
        else:
            keys[self._rows, :, self._slots], values[self._rows, :, self._slots] = key, value
        return attention(query[:, :, None], keys, values, self._step_bias(rules, query), rules).squeeze(2)

    def _step_bias(self, rules: Rules, query: Tensor) -> Tensor:
        """What is added to the scores of the rows with one token each, `[1 or B, 1 or Q, 1, S]`."""
        key = (rules.slopes is None, rules.window)
        if key not in self._biases:
            numbers, slots = self.cache.by_distance(rules, query), self.cache.room[1]
            if self._same:
                found = numbers[None, :, slots - 1 - self._first :][..., :slots]
            else:
                found = numbers.unfold(1, slots, 1).index_select(1, slots - 1 - self._slots).transpose(0, 1)
            self._biases[key] = found[:, :, None]
        return self._biases[key]

    def _part_bias(self, start: int, end: int, rules: Rules, query: Tensor, *, keep: bool) -> Tensor:
        """What is added to the scores of the queries from `start` to `end`, `[1, 1 or Q, end - start, end]`.

        Args:
            keep: whether it is kept for the other layers.
        """
        key = (rules.slopes is None, rules.window, start, end)
        found = self._biases.get(key)
        if found is None:
            numbers, slots = self.cache.by_distance(rules, query), self.cache.room[1]
            # one line for each query, the last query's first
            found = numbers.unfold(1, end, 1)[:, slots - end : slots - start].flip(1)[None]
        if keep:
            self._biases[key] = found
        return found


def segments_of(cache: Cache, texts: Sequence[Sequence[int]], first_row: int) -> list[Segment]:
    """Cut the texts of the last rows of a cache, so that what rows behind one front have in common is computed once.

    Args:
        first_row: the row that has the first text.
    """
    segments: list[Segment] = []
    fronts = cache.fronts[first_row:]
    for front in dict.fromkeys(fronts):
        rows = sorted((list(texts[place]), first_row + place) for place, each in enumerate(fronts) if each is front)
        for members, start, end in _shared(rows, 0):
            text, row = members[0]
            held_by = sorted(row for _, row in members)
            segments.append(Segment(held_by, cache.lengths[row] + start, text[start:end]))
    return segments


def _shared(rows: list[tuple[list[int], int]], done: int) -> Iterator[tuple[list[tuple[list[int], int]], int, int]]:
    """Cut sorted rows of which `done` ids are cut already: the rows that share a piece, its start and its end."""
    (first, _), (last, _) = rows[0], rows[-1]  # of sorted rows, these two differ earliest
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    if len(rows) > 1 and same - done >= SHARED:
        yield rows, done, same
        done = same
    for _, members in itertools.groupby(rows, key=lambda row: row[0][same : same + 1]):
        group = list(members)
        length = len(group[0][0])
        if len(group) > 1 and length > same:
            yield from _shared(group, done)
        elif length > done:
            yield group, done, length  # one row, or rows that are the same


def attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, rules: Rules) -> Tensor:
    """Compute the attention of query `[B, Q, L, D]` to keys and values `[B, G, K, D]`: `[B, Q, L, D]`."""
    if rules.softcap is not None or _products_are_faster(query, keys):
        return _by_products(query, keys, values, bias, rules)
    heads, groups = query.shape[1], query.shape[1] // keys.shape[1]
    # with one query per row, the query heads that share a key head can be passed as several queries of that head
    folded = groups > 1 and query.shape[2] == 1 and bias.shape[1] == 1
    query = query.reshape(len(query), -1, groups, query.shape[3]) if folded else query
    gqa = groups > 1 and not folded
    output = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=rules.scale, enable_gqa=gqa)
    return output.reshape(len(query), heads, -1, output.shape[3])


def _products_are_faster(query: Tensor, keys: Tensor) -> bool:
    """Whether torch's fused kernel is the slower way: in bf16 on a CPU without AMX (docs/experiments.md).

    Long texts take it all the same, since it keeps no scores.
    """
    plain = query.dtype == torch.bfloat16 and query.device.type == "cpu" and not cpu_uses_amx()
    return plain and query.shape[2] * keys.shape[2] <= MAX_KEPT_SCORES


def _by_products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, rules: Rules) -> Tensor:
    """Compute `attention` as two products with a softmax between them, where scores may be capped."""
    heads = query.reshape(len(query) * keys.shape[1], -1, query.shape[3])  # [B * G, Q / G * L, D]
    scores = torch.bmm(heads, keys.flatten(0, 1).transpose(1, 2)).view(*query.shape[:3], -1)  # [B, Q, L, K]
    if rules.softcap is None:
        scores = torch.add(bias, scores, alpha=rules.scale)
    else:
        scores = rules.softcap * torch.tanh(scores * (rules.scale / rules.softcap)) + bias
    probabilities = scores.softmax(-1)  # in fp32 inside, for half precisions
    return torch.bmm(probabilities.view(*heads.shape[:2], -1), values.flatten(0, 1)).view(query.shape)
