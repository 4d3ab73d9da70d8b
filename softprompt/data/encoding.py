"""Rows to token ids: the template's text, the labels, the cut. Training and answering use the same rules."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from softprompt.data.reading import Row
from softprompt.data.template import TUTORIAL, Template
from softprompt.errors import UserError

IGNORE_INDEX = -100


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one row and its labels, which are -100 wherever nothing is to be predicted."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_supervised(self) -> int:
        """Labels that count in the loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of `text` taken as text only: nothing is added, and a `</s>` inside it is characters, not the end."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def decode_text(ids: list[int], tokenizer: PreTrainedTokenizerBase, **settings: bool) -> str:
    """The text of ids, with the settings of the tokenizer's `decode`, which gives a list only for several lists."""
    text = tokenizer.decode(ids, **settings)
    assert isinstance(text, str)
    return text


def encode_question(row: Row, tokenizer: PreTrainedTokenizerBase, template: Template = TUTORIAL) -> list[int]:
    """Ids of everything in front of the response."""
    return encode_text(template.question(row.instruction, row.input), tokenizer)


def encode_row(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> EncodedRow:
    """Question, response and the eos id, cut to `max_length` tokens; labels cover response and eos."""
    (encoded,) = _encode([row], tokenizer, max_length, template)
    return encoded


def encode_rows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> tuple[list[EncodedRow], list[int]]:
    """Encode every row; returns those with something to learn and the numbers of those without.

    A row has nothing to learn when its output is blank or its question alone fills `max_length`.
    """
    kept, skipped, rows = [], [], list(rows)
    for row, encoded in zip(rows, _encode(rows, tokenizer, max_length, template), strict=True):
        if row.output.strip() and encoded.num_supervised:
            kept.append(encoded)
        else:
            skipped.append(row.number)
    return kept, skipped


def _encode(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, template: Template
) -> Iterator[EncodedRow]:
    """Row by row; all texts go to the tokenizer at once, which splits them over the cores."""
    if not rows:
        return
    settings = {"add_special_tokens": False, "split_special_tokens": True}
    questions = tokenizer([template.question(row.instruction, row.input) for row in rows], **settings)["input_ids"]
    answers = tokenizer([row.output for row in rows], **settings)["input_ids"]
    for question, answer in zip(questions, answers, strict=True):
        response = [*answer, tokenizer.eos_token_id]
        yield EncodedRow(
            input_ids=(question + response)[:max_length],
            labels=([IGNORE_INDEX] * len(question) + response)[:max_length],
        )


def without_copies(rows: Iterable[EncodedRow], of: Iterable[EncodedRow]) -> list[EncodedRow]:
    """The rows whose ids are those of no row in `of`."""
    known = {tuple(row.input_ids) for row in of}
    return [row for row in rows if tuple(row.input_ids) not in known]


def require_eos(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `UserError` for a tokenizer without an end-of-text token: its answers could never end."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"`model` {name}: its tokenizer has no eos token; set one in tokenizer_config.json")
