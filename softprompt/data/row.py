"""A row as all code behind reading sees it: turns of a conversation and the answer to learn."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

# what a chat template takes for a turn: `role` and `content`, and what templates know besides, such as `tool_calls`
Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class RowKinds:
    """What decides how rows are written, of one row or of many.

    Attributes:
        ready: whether a row is text or token ids, which no template is put around.
        own_system: whether a row has a system text or tools of its own, so that system turns differ.
    """

    ready: bool = False
    own_system: bool = False

    @classmethod
    def of(cls, *rows: "Row") -> Self:
        """The kinds of some rows."""
        ready = any(row.text is not None or row.encoded is not None for row in rows)
        own = any(bool(row.tools or (row.messages and row.messages[0]["role"] == "system")) for row in rows)
        return cls(ready, own)

    def __or__(self, other: "RowKinds") -> "RowKinds":
        if self == other:
            return self
        return RowKinds(self.ready or other.ready, self.own_system or other.own_system)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        messages: the turns in front of the answer, the oldest first; the first may be the system's.
        output: the text of the answer; "" if the row only asks.
        number: its place in its split, counted from 1, for messages.
        answer: what the turn of the answer holds besides its text, such as `tool_calls`.
        tools: descriptions of functions that the assistant may call, as chat templates take them.
        text: all of the row, if it is no conversation but text to learn; `messages` are then empty.
        encoded: the input_ids and labels of a row that was encoded by someone else; all else is then empty.
        given: how many of the messages belong to a question that is a list of turns. Answers among them are not
            learnt, unlike those of a conversation or a history.
        columns: the columns that hold the question, for output files.
        others: the other columns of the row, if they were asked for.
    """

    messages: tuple[Message, ...] = ()
    output: str = ""
    number: int = 1
    answer: Message = field(default_factory=dict)
    tools: tuple[Any, ...] = ()
    text: str | None = None
    encoded: tuple[list[int], list[int]] | None = None
    given: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    others: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def asked(cls, instruction: str, input: str = "", output: str = "", number: int = 1, **settings: Any) -> Self:
        """A row of one question, which is an instruction and what it is about; no blank ends the question."""
        question = {"role": "user", "content": f"{instruction}\n{input}".rstrip()}
        columns = {"instruction": instruction, "input": input}
        return cls((question,), output, number, columns=columns, **settings)

    @property
    def has_question(self) -> bool:
        """Whether there is anything to answer; a row that is no conversation asks nothing and is complete without."""
        if self.text is not None or self.encoded is not None:
            return True
        asking = [message for message in self.messages if message.get("role") != "system"]
        return bool(asking) and bool(str(asking[-1].get("content") or "").strip() or asking[-1].get("tool_calls"))

    @property
    def has_answer(self) -> bool:
        """Whether there is anything to learn."""
        if self.encoded is not None:
            return True
        return bool((self.output if self.text is None else self.text).strip() or self.answer.get("tool_calls"))

    def with_others(self, others: Mapping[str, Any]) -> Self:
        """The row with further columns."""
        return dataclasses.replace(self, others=others)

    def beginning(self, most: int) -> Self:
        """The row with at most `most` characters of its turns, its answer and its text; itself if it has no more.

        A turn behind the last of these characters keeps its first one, so that a template still finds it there.
        """
        texts = [str(message.get("content") or "") for message in self.messages]
        if sum(map(len, texts)) + len(self.output) + len(self.text or "") <= most:
            return self
        messages = []
        for message, text in zip(self.messages, texts, strict=True):
            messages.append({**message, "content": text[: max(most, 1)]} if len(text) > most else message)
            most -= min(len(text), most)
        left = max(most, 1)
        whole = None if self.text is None else self.text[:left]
        return dataclasses.replace(self, messages=tuple(messages), output=self.output[:left], text=whole)

    @property
    def key(self) -> str:
        """A text that is equal for rows of equal content."""
        content = [self.messages, self.output, self.answer, self.tools, self.text, self.encoded]
        return json.dumps(content, ensure_ascii=False, default=dict)
