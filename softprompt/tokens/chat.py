"""Turns written by a chat template, and which characters of the text are the assistant's.

Every answer is found by rendering the turns in front of it with the template's cue for the assistant: that text is what
an answer is generated behind, so it must be how the whole conversation begins. The token that closes the assistant's
turn is learnt with the answer, and nothing behind it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.tokens.special_text import SENTINEL, SpecialText
from softprompt.tokens.template import Template

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
LONGEST_REASON = 160  # characters of what a template says when it refuses a row


@dataclass(frozen=True)
class Written:
    """A conversation as text, in which the text of special tokens from the row is hidden.

    Attributes:
        text: all of it, up to the end of the last answer.
        answers: start and end of every answer that is learnt, its closing token included.
        lost_turns: how many earlier answers are not learnt since the template writes them in another way later.
    """

    text: str
    answers: list[tuple[int, int]]
    lost_turns: int = 0

    @property
    def parts(self) -> Iterator[str]:
        """All of the text, and its beginnings up to the start and the end of every answer."""
        yield self.text
        for answer in self.answers:
            yield from (self.text[:place] for place in answer)


class ChatWriter:
    """Writes rows with one chat template."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, special: SpecialText, end_ids: Sequence[int]
    ) -> None:
        """Find the tokens that close an assistant's turn.

        Args:
            end_ids: the ids that end an answer of this base, eos among them.

        Raises:
            UserError: the template cannot be rendered.
        """
        self.tokenizer, self.template, self.special = tokenizer, template, special
        self.in_system_turn = False  # whether the prompt stands in the system turn, marked by the sentinel
        self.names: dict[str, Any] = dict(tokenizer.special_tokens_map)
        texts = {id: text for text, id in special.ids.items()}
        self.closers = [texts[id] for id in end_ids if id in texts]
        self.tail, self.closer = self._probe_end()
        if self.closer:  # first, whether it was among the ends that are known already or not
            self.closers = [self.closer, *(each for each in self.closers if each != self.closer)]
        # what closes an answer behind which the template writes nothing
        self.closing = self.closer or (texts.get(end_ids[0], "") if end_ids else "")

    @property
    def closing_ids(self) -> list[int]:
        """The ids that may close an assistant's turn."""
        return [self.special.ids[text] for text in self.closers]

    def question(self, row: Row) -> str:
        """The text in front of the row's answer, with the template's cue for the assistant."""
        return self._render(self._turns(row), row, cue=True)

    def conversation(self, row: Row, *, last_turn_only: bool = False) -> Written:
        """The row with its answer, and where its answers are.

        Raises:
            UserError: the template refuses the row.
        """
        answer = self.special.hide({"role": "assistant", "content": row.output, **row.answer})
        turns = [*self._turns(row), answer]
        text, marked = self._render_marked(turns, row)
        given = row.given + len(turns) - 1 - len(row.messages)  # a system text of the template's goes in front
        earlier = [place for place, turn in enumerate(turns[:-1]) if turn["role"] == "assistant" and place >= given]
        answers, lost = [], 0
        for place in [] if last_turn_only else earlier:
            cue = self._render(turns[:place], row, cue=True)
            answer = self._earlier_answer(text, cue, self._render(turns[: place + 1], row, cue=False))
            lost += answer is None
            answers += [answer] if answer else []
        cue = self._render(turns[:-1], row, cue=True)
        if not text.startswith(cue):
            # the template writes a finished turn in another way than it asks for one, so the cue decides
            text, marked = cue + self._said(turns, row, cue), []
            answers, lost = [], lost + len(answers)
        end = self._end_of(text, len(cue))
        marks = [_marked_start(answer, marked) for answer in answers]
        answers = [(begin, end) for begin, (_, end) in zip(marks, answers, strict=True) if begin is not None]
        begin = _marked_start((len(cue), end), marked)
        text = text[:end] if text[:end].endswith(tuple(self.closers)) else text[:end] + self.closing
        return Written(text, [*answers, (len(cue) if begin is None else begin, len(text))], lost)

    def place_in_system_turn(self) -> tuple[str, str]:
        """Write system turns with the prompt in them from now on; returns the text before the prompt, and its close.

        Raises:
            UserError: the template has no place for a system text.
        """
        self.in_system_turn = True
        refusal = "`placement` system: this chat template has no system turn{}; use `placement` front"
        try:
            texts = [self.question(Row.asked(question, number=0)) for question in ("a", "b")]
        except UserError as error:
            raise UserError(refusal.format(f" ({error})")) from error
        if any(text.count(SENTINEL) != 1 for text in texts):
            raise UserError(refusal.format(""))
        before, _, behind = texts[0].partition(SENTINEL)
        same = os.path.commonprefix([behind, texts[1].partition(SENTINEL)[2]])
        return before, same[: self.special.last_special_end(same)]

    def _turns(self, row: Row) -> list[dict[str, Any]]:
        """The turns in front of the answer as the template gets them, with a system text if there is one."""
        turns = [dict(message) for message in self.special.hide(list(row.messages))]
        own = bool(turns) and turns[0]["role"] == "system"
        if not own and self.template.system:
            turns.insert(0, {"role": "system", "content": self.special.hide(self.template.system)})
        if self.in_system_turn:
            if not turns or turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": ""})
            turns[0] = {**turns[0], "content": SENTINEL + str(turns[0].get("content") or "")}
        return turns

    def _earlier_answer(self, text: str, cue: str, alone: str) -> tuple[int, int] | None:
        """Where an answer stands that is not the last; None if the template writes it otherwise than as the last one.

        Args:
            text: the whole conversation.
            cue: the turns in front of the answer, with the cue for it.
            alone: the turns up to the answer.
        """
        end = self._end_of(alone, len(cue))
        if not alone.startswith(cue) or not text.startswith(alone[:end]):
            return None
        if text.startswith(alone) and not alone[:end].endswith(tuple(self.closers)):
            # the token that opens the next turn may be what closes this one
            closer = next((each for each in self.closers if text.startswith(each, len(alone))), "")
            end = len(alone) + len(closer) if closer else end
        return len(cue), end

    def _end_of(self, text: str, start: int) -> int:
        """Where the answer ends that begins at `start` and is the last: behind the first token that closes a turn."""
        found = [(place, len(each)) for each in self.closers if (place := text.find(each, start)) >= 0]
        if found:
            place, length = min(found)
            return place + length
        return max(start, len(text) - len(self.tail)) if text.endswith(self.tail) else len(text)

    def _said(self, turns: list[dict[str, Any]], row: Row, cue: str) -> str:
        """What the template writes for the last turn behind the header that it shares with the cue."""
        last = {**turns[-1], "content": SENTINEL + str(turns[-1].get("content") or "")}
        text = self._render([*turns[:-1], last], row, cue=False)
        shared = self.special.before_token(text, len(os.path.commonprefix([cue, text])))
        return text[shared:].replace(SENTINEL, "")

    def _probe_end(self) -> tuple[str, str]:
        """What the template writes behind the last answer, and the special token in it that closes the turn.

        If it writes none there, the one that directly follows an answer which is not the last closes a turn; without
        either it is "".
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": SENTINEL}]
        _, _, tail = self._render(turns, Row(number=0), cue=False).partition(SENTINEL)
        closer = self.special.first_special(tail)
        if not closer:
            try:
                text = self._render([*turns, turns[0]], Row(number=0), cue=False)
            except UserError:  # a template for one question only
                return tail, ""
            behind = text.partition(SENTINEL)[2].lstrip()
            next_special = self.special.first_special(behind)
            if behind.startswith(next_special) and next_special != self.tokenizer.bos_token:
                closer = next_special
        return tail, closer

    def _render_marked(self, turns: list[dict], row: Row) -> tuple[str, list[tuple[int, int]]]:
        """The rendered turns, and the stretches that the template marks as the assistant's, if it marks any."""
        if not MARKS.search(self.template.text):
            return self._render(turns, row, cue=False), []
        rendered, marked = self._call(turns, row, return_assistant_tokens_mask=True)
        return rendered, [(begin, end) for begin, end in marked if begin < end]

    def _render(self, turns: list[dict], row: Row, *, cue: bool) -> str:
        return self._call(turns, row, add_generation_prompt=cue)[0]

    def _call(self, turns: list[dict], row: Row, **settings: Any) -> tuple[str, Any]:
        """Render with transformers' sandbox.

        Raises:
            UserError: the template refuses the turns or fails.
        """
        tools = [self.special.hide(tool) for tool in row.tools] or None
        try:
            found: Any = render_jinja_template(
                conversations=[turns], tools=tools, chat_template=self.template.text, **settings, **self.names
            )
            rendered, marked = found
        except Exception as error:  # a template is a program of someone else and may raise anything
            reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
            if not row.number:
                raise UserError(f"the chat template cannot be rendered ({reason})") from error
            raise UserError(
                f"row {row.number}: the chat template refuses it ({reason}); `template` tutorial takes any turns"
            ) from error
        return rendered[0], marked[0] if marked else []


def _marked_start(answer: tuple[int, int], marked: list[tuple[int, int]]) -> int | None:
    """Where an answer begins by the template's marks, its own header aside; None if they leave it out."""
    if not marked:
        return answer[0]
    cue, end = answer
    return next((max(begin, cue) for begin, stop in marked if stop > cue and begin < end), None)
