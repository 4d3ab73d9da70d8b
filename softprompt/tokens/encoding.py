"""How a row becomes input_ids and labels, and where it is cut. Training and answering follow the same rules."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.chat import ChatWriter, Written
from softprompt.tokens.special_text import SENTINEL, SpecialText
from softprompt.tokens.template import TUTORIAL, Template
from softprompt.tokens.turns import Piece, pieces_of, question_pieces

IGNORE_INDEX = -100
LONGEST_COUNTED = 32  # times `max_length`: longer rows are not told apart by their length
CHARACTERS_PER_TOKEN = 8  # of a row so many are looked at for each token that is counted


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
        return len(self.labels) - self.labels.count(IGNORE_INDEX)

    @property
    def supervised_ids(self) -> list[int]:
        """The labels that count in the loss."""
        return [label for label in self.labels if label != IGNORE_INDEX]

    def until(self, num_supervised: int) -> "EncodedRow":
        """The row cut behind its label number `num_supervised`, which is the last that counts."""
        places = [place for place, label in enumerate(self.labels) if label != IGNORE_INDEX][:num_supervised]
        end = places[-1] + 1 if places else 0
        cut = self.num_cut + len(self.input_ids) - end
        return EncodedRow(self.input_ids[:end], self.labels[:end], cut, self.number)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of `text` alone: no special token is added, and a `</s>` in it is read as plain characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def decode_text(ids: list[int], tokenizer: PreTrainedTokenizerBase, **settings: bool) -> str:
    """The text of token ids; `settings` are keyword arguments of the tokenizer's `decode`."""
    text = tokenizer.decode(ids, **settings)
    assert isinstance(text, str)  # for type checkers: it is a list only if `ids` is a list of lists
    return text


class Encoder:
    """Turns rows into token ids under one template: to learn them, to score them and to answer them.

    What stands in front of an answer is always tokenised as `questions` tokenises it, so that a prompt is used as it
    was trained.

    Attributes:
        bos_id: the id that begins every text, once; None if the base has none.
        before_ids, after_ids: what all rows have in front of the prompt and directly behind it. The ids of rows and
            questions begin behind them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template = TUTORIAL,
        *,
        bos_id: int | None = None,
        end_ids: Sequence[int] = (),
        last_turn_only: bool = False,
        placement: str = "front",
        shares_close: bool = True,
    ) -> None:
        """Prepare the template.

        Args:
            end_ids: further ids that end an answer of this base, besides eos.
            last_turn_only: learn the last answer of a conversation alone.
            placement: `front`, or `system` for a prompt within the system turn of a chat template.
            shares_close: whether all rows close that turn alike; rows with system texts of their own do not.

        Raises:
            UserError: the template cannot be rendered, or has no place for a prompt in its system turn.
        """
        self.tokenizer, self.template, self.bos_id, self.last_turn_only = tokenizer, template, bos_id, last_turn_only
        self.placement = placement
        self._given_ends = end_ids
        self.end_ids = list(dict.fromkeys([tokenizer.eos_token_id, *end_ids]))
        self.before_ids: list[int] = []
        self.after_ids: list[int] = []
        self.lost_turns = 0  # answers of earlier turns that could not be learnt, so far
        self._writer: ChatWriter | None = None
        if template.is_chat:
            self._special = SpecialText(tokenizer)
            self._writer = ChatWriter(tokenizer, template, self._special, self.end_ids)
            self.end_ids = list(dict.fromkeys([*self._writer.closing_ids, *self.end_ids]))
        if placement == "system":
            self._place_in_system_turn(shares_close)

    @property
    def baseline(self) -> "Encoder":
        """The encoder for the same rows without a prompt: a system turn is then written as the template does alone."""
        if self.placement == "front":
            return self
        return Encoder(
            self.tokenizer,
            self.template,
            bos_id=self.bos_id,
            end_ids=self._given_ends,
            last_turn_only=self.last_turn_only,
        )

    def questions(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids of everything in front of the answer of each row, behind the front."""
        if self._writer is not None:
            texts = [self._writer.question(row) for row in rows]
            ids = self._chat_ids(texts)
            return [self._behind_front(ids[text], text, row) for text, row in zip(texts, rows, strict=True)]
        pieces = [question_pieces(row, self.template) for row in rows]
        return [self._joined(each)[0] for each in self._tokenised(pieces)]

    def question_text(self, row: Row) -> str:
        """The text in front of the answer, to show it."""
        if self._writer is not None:
            return self._special.restore(self._writer.question(row).replace(SENTINEL, "[...]"))
        return "".join(piece.text for piece in question_pieces(row, self.template))

    def encode(self, rows: Sequence[Row], *, max_length: int) -> list[EncodedRow]:
        """Encode rows, cut to `max_length` tokens behind the front; the labels cover the answers and what ends them.

        Of a text of millions of characters only the beginning is written and tokenised, as far as it is needed to
        know the first `max_length` tokens, and whether there are more than 32 times as many.

        Raises:
            UserError: the template refuses a row; the message names it.
        """
        most = LONGEST_COUNTED * max_length * CHARACTERS_PER_TOKEN
        short = [row.beginning(most) for row in rows]
        found = self._encode(short, max_length)
        for place, (row, part) in enumerate(zip(rows, short, strict=True)):
            # so few tokens of so much text: the place where it was cut may be among those that count
            if part is not row and len(found[place].input_ids) + found[place].num_cut < LONGEST_COUNTED * max_length:
                (found[place],) = self._encode([row], max_length)
        return found

    def _encode(self, rows: Sequence[Row], max_length: int) -> list[EncodedRow]:
        """Encode rows with all of their text."""
        if not rows:
            return []
        if rows[0].encoded is not None:
            return [_cut(*row.encoded, max_length, row.number) for row in rows if row.encoded is not None]
        if self._writer is not None and rows[0].text is None:
            # a row that is no use and will be left out need not suit the template
            usable = [row for row in rows if row.has_question and row.has_answer]
            written = [self._writer.conversation(row, last_turn_only=self.last_turn_only) for row in usable]
            self.lost_turns += sum(each.lost_turns for each in written)
            ids = self._chat_ids(part for each in written for part in each.parts)
            pairs = zip(written, usable, strict=True)
            encoded = {id(row): _cut(*self._labelled(each, row, ids), max_length, row.number) for each, row in pairs}
            return [encoded.get(id(row), EncodedRow([], [], number=row.number)) for row in rows]
        pieces = [pieces_of(row, self.template) for row in rows]
        found = zip(self._tokenised(pieces), rows, strict=True)
        return [_cut(*self._joined(each), max_length, row.number) for each, row in found]

    def _tokenised(self, rows: list[list[Piece]]) -> list[list[tuple[list[int], Piece]]]:
        """The ids of every piece; the tokenizer gets all texts at once and distributes them over the CPU's cores."""
        texts = [piece.text for row in rows for piece in row]
        settings = {"add_special_tokens": False, "split_special_tokens": True}
        ids = iter(self.tokenizer(texts, **settings)["input_ids"] if texts else [])
        return [[(next(ids), piece) for piece in row] for row in rows]

    def _joined(self, pieces: list[tuple[list[int], Piece]]) -> tuple[list[int], list[int]]:
        """The ids and labels of a row's pieces, with bos in front and an eos behind every answer.

        Which answers are learnt decides the labels alone, and never what is written.
        """
        input_ids = [] if self.bos_id is None else [self.bos_id]
        labels = [IGNORE_INDEX] * len(input_ids)
        for place, (ids, piece) in enumerate(pieces):
            ids = [*ids, self.tokenizer.eos_token_id] if piece.is_answer else ids
            is_last = place == len(pieces) - 1
            learnt = piece.is_answer and not piece.is_given and (is_last or not self.last_turn_only)
            input_ids += ids
            labels += ids if learnt else [IGNORE_INDEX] * len(ids)
        return input_ids, labels

    def _chat_ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The ids of rendered texts, with bos in front; those of `apply_chat_template` but for text of special tokens.

        With a prompt in the system turn, they are the ids in front of the prompt and those behind it.
        """
        texts = list(dict.fromkeys(texts))
        plain = [text for text in texts if SENTINEL not in text and not self._special.holds_hidden(text)]
        found = dict(
            zip(plain, self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [], strict=True)
        )
        for text in texts:
            if text not in found:
                before, _, behind = text.partition(SENTINEL)
                found[text] = [*self._special.encode(before), *self._special.encode(behind, behind=SENTINEL)]
        return {text: self._with_bos(ids) for text, ids in found.items()}

    def _with_bos(self, ids: list[int]) -> list[int]:
        """The ids with exactly one bos in front, whether the template has written it or not."""
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def _labelled(self, written: Written, row: Row, ids_of: dict[str, list[int]]) -> tuple[list[int], list[int]]:
        """The ids of a conversation behind the front and its labels, from the ids of its parts."""
        ids = ids_of[written.text]
        last, _ = written.answers[-1]
        asked = ids_of[written.text[:last]]
        if ids[: len(asked)] != asked:  # the tokenizer joins the answer's beginning to what stands in front of it
            ids = [*asked, *self._special.encode(written.text[last:], behind=written.text[:last])]
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in written.answers:
            begin = _common(ids, ids_of[written.text[:start]])
            stop = len(ids) if end == len(written.text) else _common(ids, ids_of[written.text[:end]])
            labels[begin:stop] = ids[begin:stop]
        behind = self._behind_front(ids, written.text, row)
        return behind, labels[len(ids) - len(behind) :]

    def _behind_front(self, ids: list[int], text: str, row: Row) -> list[int]:
        """The ids of a row behind what all rows share around the prompt.

        Raises:
            UserError: this row has other text there.
        """
        if self.placement == "front":
            return ids
        front = [*self.before_ids, *self.after_ids]
        if ids[: len(front)] != front or text.partition(SENTINEL)[0] != self._before:
            raise UserError(
                f"row {row.number}: what stands around the prompt in the system turn differs from other rows, so"
                " `placement` system cannot be used; use front"
            )
        return ids[len(front) :]

    def _place_in_system_turn(self, shares_close: bool) -> None:
        """Find the ids that all rows have in front of the prompt and behind it.

        Raises:
            UserError: there is no chat template, or it has no system turn.
        """
        if self._writer is None:
            raise UserError("`placement` system: needs a chat template; use `placement` front")
        self._before, close = self._writer.place_in_system_turn()
        self.before_ids = self._with_bos(self._special.encode(self._before))
        self.after_ids = self._special.encode(close, behind=SENTINEL) if shares_close else []


def bos_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that a tokenizer puts in front of every text by itself; None if it puts none there."""
    ids, bos = tokenizer("a")["input_ids"], tokenizer.bos_token_id
    return bos if bos is not None and ids[:1] == [bos] else None


def encode_row(row: Row, encoder: Encoder, *, max_length: int) -> EncodedRow:
    """Encode one row, cut to `max_length` tokens."""
    (encoded,) = encoder.encode([row], max_length=max_length)
    return encoded


def encode_rows(rows: Iterable[Row], encoder: Encoder, *, max_length: int) -> tuple[list[EncodedRow], list[int]]:
    """Encode every row; returns the usable rows, and the numbers of the others."""
    rows = list(rows)
    encoded = encoder.encode(rows, max_length=max_length)
    kept = [each for row, each in zip(rows, encoded, strict=True) if is_usable(row, each)]
    return kept, [row.number for row, each in zip(rows, encoded, strict=True) if not is_usable(row, each)]


def is_usable(row: Row, encoded: EncodedRow) -> bool:
    """Whether a row has something to learn: a question, an answer that is not blank, and some of it within the cut."""
    return bool(row.has_question and row.has_answer and encoded.num_supervised)


def _cut(input_ids: list[int], labels: list[int], max_length: int, number: int) -> EncodedRow:
    """A row cut to `max_length` tokens."""
    cut = max(len(input_ids) - max_length, 0)
    return EncodedRow(input_ids[:max_length], labels[:max_length], cut, number)


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two sequences have in common from the beginning."""
    pairs = zip(ids, others, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others)))


def require_eos(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `UserError` if the tokenizer has no eos token, since its answers could never end."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"`model` {name}: its tokenizer has no eos token; set one in tokenizer_config.json")
