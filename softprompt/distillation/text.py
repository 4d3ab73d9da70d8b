"""The text to distil: its file, its token ids where a person would put it, and the base with it in front."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

from softprompt.base.loading import Base, require_known_ids
from softprompt.data.row import Row
from softprompt.engine.front import Front
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.packs.families import can_pack
from softprompt.prompt.embedding import SoftPromptEmbedding, start_ids
from softprompt.prompt.fit import context_limit
from softprompt.system import sources
from softprompt.tokens.encoding import Encoder

LARGEST_FILE = 1 << 22  # bytes


@dataclass(frozen=True)
class Text:
    """A text in front of a base.

    Attributes:
        name: the file as it was named.
        ids: its token ids, which stand where the prompt's virtual tokens stand.
        sha256: the hash of the text.
    """

    name: str
    ids: list[int]
    sha256: str

    def front(self, encoder: Encoder) -> Front:
        """What stands in front of every row with the text in its place."""
        return Front([*encoder.before_ids, *self.ids, *encoder.after_ids])

    @property
    def facts(self) -> dict[str, Any]:
        """What a prompt file says of it, which is not the text itself."""
        return {"sha256": self.sha256, "tokens": len(self.ids)}


def read_text(name: str) -> str:
    """Read the text of a file or a shipped one, without blanks around it.

    Raises:
        UserError: there is no such file, or it is empty, too large or no UTF-8 text.
    """
    path = sources.text_file(name) if sources.is_builtin(name) else sources.local_path(name, "distill_text")
    try:
        if not path.is_file():
            raise UserError(f"`distill_text` {name}: no such file")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"`distill_text` {name}: is larger than {LARGEST_FILE >> 20} MB, more than any base reads")
        text = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`distill_text` {name}: cannot be read as UTF-8 text ({error})") from error
    if not text:
        raise UserError(f"`distill_text` {name}: is empty; write the text that the prompt is to stand for")
    return text


def place_text(name: str, text: str, encoder: Encoder, base: Base) -> Text:
    """The ids of `text` between `encoder.before_ids` and `encoder.after_ids`, as the template writes it there.

    Raises:
        UserError: the base has no embedding for an id, or cannot pack rows.
    """
    if not can_pack(base.model):
        kind = type(base.model).__name__
        raise UserError(f"`distill_text`: {kind} cannot take packed rows, which distilling needs; choose another base")
    written = Encoder(
        base.tokenizer,
        dataclasses.replace(encoder.template, system=text),
        bos_id=encoder.bos_id,
        end_ids=base.end_ids,
    )
    probe = [Row.asked("a")]
    (behind,) = encoder.questions(probe)
    before, rest = encoder.before_ids, [*encoder.after_ids, *behind]
    try:
        (whole,) = written.questions(probe)
    except UserError:  # this template has no place for a system text
        whole = []
    middle = whole[len(before) : len(whole) - len(rest)]
    if not middle or [*before, *middle, *rest] != whole:
        # something stands around it that the rows repeat, such as a bos, or the tokenizer joins it to what follows
        middle = start_ids(text if encoder.placement == "system" else text + "\n\n", base.tokenizer)
    require_known_ids(base, middle, of=name)
    return Text(name, middle, hashlib.sha256(text.encode()).hexdigest())


def teacher_model(text: Text, encoder: Encoder, base: Base) -> SoftPromptModel:
    """The base with the text in front of every row."""
    embedding = base.model.get_input_embeddings()
    prompt = SoftPromptEmbedding.from_ids(text.ids, embedding, len(text.ids))
    return SoftPromptModel(base.model, prompt, encoder.before_ids, encoder.after_ids)


def require_room_for_text(base: Base, front: int, tokens: int, text: Text) -> None:
    """Raise `UserError` unless a front of so many ids, with the text in it, and a row of `tokens` fit the context."""
    limit = context_limit(base.model)
    if limit is not None and front + tokens > limit:
        raise UserError(
            f"`distill_text` {text.name}: its {len(text.ids):,} tokens and {tokens:,} of a question and its answer"
            f" exceed the base's context of {limit:,}; shorten the text, or lower `distill_new_tokens`"
        )
