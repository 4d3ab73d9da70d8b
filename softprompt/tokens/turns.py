"""Turns written as text without Jinja: the tutorial's template, the plain one, and rows that are text already."""

import json
from dataclasses import dataclass

from softprompt.data.row import Message, Row
from softprompt.tokens.template import Template

SPEAKERS = {"tool": "Tool: "}  # what the tutorial's template puts in front of a turn; "Human: " for all others


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is tokenised apart; an eos follows behind one that is an answer.

    `is_given` marks an answer that belongs to the question and is not learnt.
    """

    text: str
    is_answer: bool = False
    is_given: bool = False


def pieces_of(row: Row, template: Template) -> list[Piece]:
    """The pieces of a row, the last of which is its answer."""
    if row.text is not None:
        return [Piece(row.text, is_answer=True)]
    return [*question_pieces(row, template), Piece(spoken({"content": row.output, **row.answer}), is_answer=True)]


def question_pieces(row: Row, template: Template) -> list[Piece]:
    """The pieces in front of the row's answer, the last of which is no answer."""
    pieces: list[Piece] = []
    waiting = _opening(row, template)
    for place, message in enumerate(row.messages):
        if message["role"] == "system":
            continue
        if message["role"] == "assistant":
            answer = Piece(spoken(message), is_answer=True, is_given=place < row.given)
            pieces += [Piece(waiting + _cue(template)), answer]
            waiting = ""
        else:
            waiting += _asked(message, template)
    return [*pieces, Piece(waiting + _cue(template))]


def spoken(message: Message) -> str:
    """What an assistant's turn says: its text, and its calls of tools as JSON, each on a line of its own."""
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join([*filter(None, [message.get("content") or ""]), *calls]) if calls else message.get("content") or ""


def _opening(row: Row, template: Template) -> str:
    """The system text with the tools as JSON, and a blank line behind it; "" without both."""
    own = [str(message.get("content") or "") for message in row.messages if message["role"] == "system"]
    lines = own or [template.system]
    if row.tools:
        lines = [*lines, json.dumps(list(row.tools), ensure_ascii=False)]
    text = "\n".join(line for line in lines if line.strip())
    return text + "\n\n" if text else ""


def _asked(message: Message, template: Template) -> str:
    """A turn that is not the assistant's. No blanks end it, and an empty input leaves no blank line."""
    content = str(message.get("content") or "")
    if template.name != "tutorial":
        return content
    return f"{SPEAKERS.get(message['role'], 'Human: ')}{content}".strip() + "\n\n"


def _cue(template: Template) -> str:
    """What stands directly in front of an answer."""
    return "Assistant: " if template.name == "tutorial" else ""
