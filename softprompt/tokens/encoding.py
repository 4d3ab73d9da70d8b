"""How a row becomes input_ids and labels, and where it is cut. Training and answering follow the same rules."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from softprompt.data.reading import Row
from softprompt.errors import UserError
from softprompt.tokens.template import TUTORIAL, Template

IGNORE_INDEX = -100


@dataclass(frozen=True)
class EncodedRow:
    """The input_ids of one row and its labels, which are as long, not shifted, and -100 where no loss is computed.

    Attributes:
        num_cut: how many tokens of the row's end were cut off.
        number: the number of the row in its data, from 1; 0 if it came from nowhere.
    """

    input_ids: list[int]
    labels: list[int]
    num_cut: int = field(default=0, compare=False, repr=False)
    number: int = field(default=0, compare=False, repr=False)

    @property
    def num_supervised(self) -> int:
        """The number of labels that count in the loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of `text` alone: no special token is added, and a `</s>` in it is read as plain characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def decode_text(ids: list[int], tokenizer: PreTrainedTokenizerBase, **settings: bool) -> str:
    """The text of token ids; `settings` are keyword arguments of the tokenizer's `decode`."""
    text = tokenizer.decode(ids, **settings)
    assert isinstance(text, str)  # for type checkers: it is a list only if `ids` is a list of lists
    return text


def encode_question(row: Row, tokenizer: PreTrainedTokenizerBase, template: Template = TUTORIAL) -> list[int]:
    """The token ids of everything in front of the response."""
    return encode_text(template.question(row.instruction, row.input), tokenizer)


def encode_row(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> EncodedRow:
    """Encode question, response and eos, cut to `max_length` tokens; the labels cover the response and eos."""
    (encoded,) = _encode([row], tokenizer, max_length, template)
    return encoded


def encode_rows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> tuple[list[EncodedRow], list[int]]:
    """Encode every row as `encode_row` does; returns the usable rows, and the numbers of the others."""
    rows = list(rows)
    encoded = encode_every_row(rows, tokenizer, max_length=max_length, template=template)
    kept = [each for row, each in zip(rows, encoded, strict=True) if is_usable(row, each)]
    return kept, [row.number for row, each in zip(rows, encoded, strict=True) if not is_usable(row, each)]


def encode_every_row(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: Template = TUTORIAL
) -> list[EncodedRow]:
    """Encode every row, also those with nothing to learn."""
    return list(_encode(list(rows), tokenizer, max_length, template))


def is_usable(row: Row, encoded: EncodedRow) -> bool:
    """Whether a row has something to learn: a question, an output that is not blank, and some of it within the cut."""
    return bool(row.has_question and row.output.strip() and encoded.num_supervised)


def _encode(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, template: Template
) -> Iterator[EncodedRow]:
    """Encode row by row; all texts go to the tokenizer at once, which distributes them over the CPU's cores."""
    if not rows:
        return
    settings = {"add_special_tokens": False, "split_special_tokens": True}
    questions = tokenizer([template.question(row.instruction, row.input) for row in rows], **settings)["input_ids"]
    answers = tokenizer([row.output for row in rows], **settings)["input_ids"]
    for row, question, answer in zip(rows, questions, answers, strict=True):
        response = [*answer, tokenizer.eos_token_id]
        yield EncodedRow(
            input_ids=(question + response)[:max_length],
            labels=([IGNORE_INDEX] * len(question) + response)[:max_length],
            num_cut=max(len(question) + len(response) - max_length, 0),
            number=row.number,
        )


def without_copies(rows: Iterable[EncodedRow], of: Iterable[EncodedRow]) -> list[EncodedRow]:
    """The rows whose input_ids do not occur in `of`."""
    known = {tuple(row.input_ids) for row in of}
    return [row for row in rows if tuple(row.input_ids) not in known]


def require_eos(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `UserError` if the tokenizer has no eos token, since its answers could never end."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"`model` {name}: its tokenizer has no eos token; set one in tokenizer_config.json")
