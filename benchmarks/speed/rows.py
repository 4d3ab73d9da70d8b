"""Rows to measure on: the first of a data set, or generated ones that are as long as Alpaca's.

The generated text is made of invented words, one token each with the tokenizer of `shapes.py`, so the lengths below
are met to the token. Lengths count tokens: a question with its template, an answer with its eos.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import home  # noqa: F401
from transformers import PreTrainedTokenizerBase

from softprompt.data.row import Row
from softprompt.data.splits import load_splits
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_row

MAX_LENGTH = 256  # train.py's default, and the tutorial's
# Alpaca's lengths at these percentiles: 1,000 rows of its Chinese and 999 of its English version, BPE of 16,000 tokens
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
QUESTION_TOKENS = (6, 7, 8, 9, 11, 15, 22, 32, 39, 76, 164)
ANSWER_TOKENS = (2, 6, 10, 14, 32, 102, 202, 301, 377, 490, 636)
TEMPLATE_TOKENS = 4  # "Human:", "\n\n", "Assistant:" and the space behind it
EOS_TOKENS = 1
VOCABULARY_WORDS = 400


def choose_rows(data: str | None, count: int, tokenizer_rows: int = 2000) -> tuple[list[Row], list[Row]]:
    """Rows to measure on and, for training a tokenizer that does not depend on `count`, all rows.

    Args:
        data: file or folder as for `train.py --data`; None generates.
        count: how many of the first rows to take.
    """
    if data is None:
        rows = generated_rows(max(count, tokenizer_rows))
    else:
        splits = load_splits(data, eval_data=None, eval_fraction=0.0, seed=0)
        rows = [row for row in splits.train_rows if row.output.strip()]
    if len(rows) < count:
        raise SystemExit(f"--data {data}: has {len(rows)} rows with an answer, {count} are needed")
    return rows[:count], rows


def generated_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows whose lengths follow the percentiles above; the first rows of a larger set follow them too."""
    questions = _lengths(QUESTION_TOKENS, count, random.Random(f"questions {seed}"))
    answers = _lengths(ANSWER_TOKENS, count, random.Random(f"answers {seed}"))
    return rows_of_lengths(zip(questions, answers, strict=True), seed)


def rows_of_lengths(lengths: Iterable[tuple[int, int]], seed: int = 0) -> list[Row]:
    """One generated row for every pair of question and answer tokens."""
    words, source = invented_words(VOCABULARY_WORDS), random.Random(seed)
    return [
        Row.asked(
            instruction=_text(words, max(1, question - TEMPLATE_TOKENS), source),
            input="",
            output=_text(words, max(1, answer - EOS_TOKENS), source),
            number=number,
        )
        for number, (question, answer) in enumerate(lengths, start=1)
    ]


def invented_words(count: int, seed: int = 0) -> list[str]:
    """Different pronounceable words of two or three syllables."""
    source, words = random.Random(seed), {}
    while len(words) < count:
        syllables = (source.choice("bdfgklmnprstvz") + source.choice("aeiou") for _ in range(source.choice((2, 3))))
        words["".join(syllables)] = None
    return list(words)


def encoded(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH) -> list[EncodedRow]:
    """Token ids and labels, by the rules of `train.py`."""
    return [encode_row(row, Encoder(tokenizer), max_length=max_length) for row in rows]


def write_rows(rows: Iterable[Row], path: Path) -> Path:
    """Alpaca rows as JSONL."""
    lines = [json.dumps({**row.columns, "output": row.output}, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def _lengths(tokens: Sequence[int], count: int, source: random.Random) -> list[int]:
    """Lengths at `count` random places of the distribution, spread evenly over it in every hundred rows."""
    shares = []
    while len(shares) < count:
        strata = [(place + source.random()) for place in range(100)]  # percentiles, one in each of 100 strata
        source.shuffle(strata)
        shares += strata
    return [_at(share, tokens) for share in shares[:count]]


def _at(percentile: float, tokens: Sequence[int]) -> int:
    """Length at a percentile, linear between the stored ones."""
    above = next(place for place, stored in enumerate(PERCENTILES) if percentile <= stored)
    if above == 0:
        return tokens[0]
    low, high = PERCENTILES[above - 1], PERCENTILES[above]
    share = (percentile - low) / (high - low)
    return round(tokens[above - 1] + share * (tokens[above] - tokens[above - 1]))


def _text(words: Sequence[str], count: int, source: random.Random) -> str:
    """`count` words in a line."""
    return " ".join(source.choices(words, k=count))
