"""Packs against plain loops: every prediction of every row is there once, at the place that sees what it should."""

import random

import pytest

from softprompt.packs.batches import cut_passes, needed_ids, pack_rows
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow


def make_rows(seed, count=6, opening=(7, 8)):
    """Rows of very different length; some without labels, some labelled from the first id on, some of one id."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.choice([1, 2, 3, 9, 30])
        ids = [*opening, *(draw.randrange(20, 30) for _ in range(length))][:length]
        labels = [id if draw.random() < 0.5 else IGNORE_INDEX for id in ids]
        rows.append(EncodedRow(ids, labels))
    return rows


def what_is_seen(pack, place):
    """The ids behind the prompt that a place sees, by position: the shared ones and its own row's up to itself."""
    ids = {pack.front_length + i: id for i, id in enumerate(pack.input_ids)}
    starts = [start for start in (0, *pack.bounds) if start <= place]
    own = range(starts[-1], place + 1)
    seen = {pack.position_ids[i]: ids.get(i, "virtual") for i in [*range(pack.num_shared), *own] if i <= place}
    assert sorted(seen) == list(range(len(seen)))  # positions without a gap
    return [seen[position] for position in sorted(seen)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("opening", [(), (7, 8)])
def test_every_prediction_sees_the_prompt_and_its_own_row(seed, count, opening):
    rows = make_rows(seed, opening=opening)
    pack = pack_rows(rows, front_length=count)
    expected = []
    for row in rows:
        for token, label in enumerate(row.labels):
            if label != IGNORE_INDEX and count + token > 0:
                expected.append((["virtual"] * count + row.input_ids[:token], label))
    found = [(what_is_seen(pack, place), target) for place, target in zip(pack.places, pack.targets, strict=True)]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_what_all_rows_begin_with_stands_there_once():
    rows = [EncodedRow([5, 6, 7, 8], [-100, -100, -100, 8]), EncodedRow([5, 6, 9], [-100, -100, 9])]
    pack = pack_rows(rows, front_length=3)
    # the ids 8 and 9 are predicted and never read; behind the opening only row 1 has a place of its own
    assert (pack.input_ids, pack.bounds) == ([5, 6, 7], [5, 6])
    assert (pack.places, pack.targets) == ([5, 4], [8, 9])


def test_a_row_alone_is_all_opening():
    pack = pack_rows([EncodedRow([5, 6, 7], [-100, 6, 7])], front_length=2)
    assert (pack.bounds, pack.places, pack.position_ids) == ([4], [2, 3], [0, 1, 2, 3])


def test_rows_without_labels_leave_nothing():
    pack = pack_rows([EncodedRow([5, 6], [-100, -100])] * 2, front_length=2)
    assert (pack.input_ids, pack.targets, pack.bounds) == ([], [], [2])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("limit", [1, 12, 35, 10_000])
def test_passes_hold_every_row_once_and_keep_to_the_budget(seed, limit):
    rows = make_rows(seed, count=12)
    passes = cut_passes(rows, front_length=5, max_tokens=limit)
    assert sorted(map(id, rows)) == sorted(id(row) for members in passes for row in members)
    for members in passes:
        assert len(members) == 1 or 5 + sum(len(needed_ids(row)) for row in members) <= limit
    if limit == 10_000:
        assert len(passes) == 1


def test_passes_are_even_and_no_more_than_are_needed():
    """First fit alone would make passes of 20, 20 and 2."""
    rows = [EncodedRow([5] * (length + 1), [IGNORE_INDEX] * length + [5]) for length in (9, 8, 8, 7, 3, 3, 2, 2)]
    passes = cut_passes(rows, front_length=4, max_tokens=24)
    assert sorted(sum(len(needed_ids(row)) for row in members) for members in passes) == [13, 14, 15]
    assert cut_passes([], front_length=4, max_tokens=24) == []
