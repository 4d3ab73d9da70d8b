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

from softprompt.data.row import Message, Row
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
        self.eos = texts.get(end_ids[0], "") if end_ids else ""
        closer = self._closer()
        if closer and closer not in self.closers:
            self.closers.insert(0, closer)

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
        turns = self._turns(row)
        answer = self.special.hide({"role": "assistant", "content": row.output, **row.answer})
        turns = [*turns, answer]
        text, marked = self._render_marked(turns, row)
        places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        places = places[-1:] if last_turn_only else places
        answers, lost = [], 0
        for place in places:
            cue = self._render(turns[:place], row, cue=True)
            last = place == len(turns) - 1
            if text.startswith(cue):
                start = next((max(begin, len(cue)) for begin, end in marked if end > len(cue)), len(cue))
                end = self._end_of(text, start, turns[place])
                answers.append((start, end))
            elif last:
                # the template writes a finished turn in another way than it asks for one, so the cue decides
                text = cue + str(turns[place].get("content") or "") + self.eos
                answers, lost = [(len(cue), len(text))], lost + len(answers)
            else:
                lost += 1
        end = answers[-1][1]
        if not text[:end].endswith(tuple(self.closers)):
            text, answers[-1] = text[:end] + self.eos, (answers[-1][0], end + len(self.eos))
        return Written(text[: answers[-1][1]], answers, lost)

    def place_in_system_turn(self) -> tuple[str, str]:
        """Write system turns with the prompt in them from now on; returns the text before the prompt, and its close.

        Raises:
            UserError: the template has no place for a system text.
        """
        self.in_system_turn = True
        texts = [self.question(Row.asked(question, number=0)) for question in ("a", "b")]
        if any(text.count(SENTINEL) != 1 for text in texts):
            raise UserError("`placement` system: this chat template has no system turn; use `placement` front")
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

    def _end_of(self, text: str, start: int, turn: Message) -> int:
        """Where an answer ends: behind the first token that closes a turn, or where its content ends without one."""
        found = [(place, len(each)) for each in self.closers if (place := text.find(each, start)) >= 0]
        if found:
            place, length = min(found)
            return place + length
        content = str(turn.get("content") or "").strip()
        place = text.find(content, start)
        return place + len(content) if content and place >= 0 else len(text)

    def _closer(self) -> str:
        """The special token that the template writes behind an answer; "" if it writes none."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": SENTINEL}]
        _, _, behind = self._render(turns, Row(number=0), cue=False).partition(SENTINEL)
        return self.special.first_special(behind)

    def _render_marked(self, turns: list[dict], row: Row) -> tuple[str, list[tuple[int, int]]]:
        """The rendered turns, and the stretches that the template marks as the assistant's, if it marks any."""
        if not MARKS.search(self.template.text):
            return self._render(turns, row, cue=False), []
        rendered, marked = self._call(turns, row, return_assistant_tokens_mask=True)
        return rendered, [(start, end) for start, end in marked if start < end]  # marks around nothing are none

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
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            where = f"row {row.number}: " if row.number else ""
            raise UserError(
                f"{where}the chat template refuses it ({reason}); `template` tutorial takes any turns"
            ) from error
        return rendered[0], marked[0] if marked else []
