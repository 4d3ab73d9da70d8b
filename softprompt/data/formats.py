"""Which format rows have, which their columns decide, and how a record of each format becomes a `Row`."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from softprompt.data.row import Row
from softprompt.data.turns import ids_of, json_text, pairs_of, tools_of, turns_of
from softprompt.data.values import is_blank, is_missing, kind_of, to_json
from softprompt.errors import UserError

QUESTIONS = ("instruction", "prompt", "question", "query")
ANSWERS = ("output", "completion", "answer", "response")
# those that belong together go first; then any question goes with any answer
PAIRS = [*zip(QUESTIONS, ANSWERS, strict=True), ("instruction", "response")]
PAIRS += [pair for pair in itertools.product(QUESTIONS, ANSWERS) if pair not in PAIRS]
INPUTS = ("input", "context")  # more of a question; a `prompt` is whole
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations", "conversation")
TEXTS = ("text", "sentence")
LABELS = ("label_text", "label")  # the names of labels go before their numbers
IDS = ("input_ids", "labels")
# of which a file whose name says nothing must have one, to be taken for rows
TELLING = (*QUESTIONS, *ANSWERS, *INPUTS, *CONVERSATIONS, *TEXTS, "input_ids")
CLASSIFICATION = "text and label"
OTHER_FORMATS = (
    "formats are instruction and output, prompt and completion, question and answer, query and response, messages or"
    " conversations, text, text and label, input_ids and labels"
)
EXTRAS = ("system", "history", "tools")  # parts that need not be there, besides the input
NESTED = ("list", "dict")
IGNORE_INDEX = -100
MOST_SHOWN = 200  # characters of an example row
MOST_CLASSES = 20  # outputs that are all numbers below this look like class labels
MOST_CHOICES = 100  # different labels; more are no classes
# what people call the columns of these formats, to propose a mapping
QUESTION_WORDS = ("question", "prompt", "query", "instruct", "input", "user", "human", "request", "source", "problem")
ANSWER_WORDS = ("answer", "response", "output", "completion", "target", "reply", "assistant", "solution", "summary")
TEXT_WORDS = ("text", "sentence", "review", "comment", "tweet", "content", "headline", "title", "document")
LABEL_WORDS = ("label", "sentiment", "class", "category", "intent", "emotion", "rating", "stars")


@dataclass(frozen=True)
class Format:
    """How rows are read.

    Attributes:
        name: what to call it in messages.
        columns: for every part of a row, such as `question`, the name of its column; parts may be missing.
        known: for every part the name that the format has for it, which differs from the column's if that was mapped.
    """

    name: str
    columns: dict[str, str]
    known: dict[str, str]

    @property
    def main(self) -> str:
        """The column that holds the question, the conversation, the text or the ids."""
        return next(self.columns[part] for part in ("question", "conversation", "whole", "ids") if part in self.columns)

    @property
    def answers(self) -> set[str]:
        """The columns that hold an answer: that of the format, and `output` whatever the format."""
        return {"output", *(self.columns[part] for part in ("answer",) if part in self.columns)}

    @property
    def is_classification(self) -> bool:
        """Whether the answers are labels."""
        return self.name == CLASSIFICATION

    def row(self, record: Mapping[str, Any], number: int, tally: "Tally", *, asks: bool = False) -> Row:
        """The row of a record.

        Args:
            number: its number.
            tally: is told what is left out.
            asks: only the question is wanted; an answer in the record is left aside.

        Raises:
            UserError: a value is not of the kind that its column holds.
        """
        values = {part: record.get(column) for part, column in self.columns.items()}
        if "ids" in values:
            row = Row(encoded=self._encoded(values))
        elif "whole" in values:
            text = self._text(values, "whole")
            row = Row(text=text, columns={self.columns["whole"]: text})
        elif "conversation" in values:
            row = self._conversation(values, number, tally, asks)
        else:
            row = self._pair(values, number, tally, asks)
        tools = tools_of(values.get("tools"), self.columns.get("tools", ""))
        extra = {self.columns[part]: values[part] for part in EXTRAS if not is_blank(values.get(part))}
        return dataclasses.replace(row, number=number, tools=tools, columns={**row.columns, **extra})

    def _pair(self, values: dict[str, Any], number: int, tally: "Tally", asks: bool) -> Row:
        """A row of a question and an answer, which may be a list of turns in a `prompt` and a `completion`."""
        system = self._text(values, "system")
        turns, given = [{"role": "system", "content": system}] if system.strip() else [], 0
        if "history" in values:
            turns += pairs_of(values["history"], self.columns["history"])
        if self.known["question"] == "prompt" and kind_of(values["question"]) in NESTED:
            asked, written = turns_of(values["question"], self.columns["question"])
            turns += asked
            given = len(turns)
            columns: dict[str, Any] = {self.columns["question"]: written}
        else:
            question, more = self._text(values, "question"), self._input(values, number, tally)
            columns = {self.columns["question"]: question, self.columns.get("input", "input"): more}
            if self.known["question"] != "instruction":
                if "input" not in values:
                    columns.pop("input")
                text = f"{question}\n{more}" if more.strip() else question
            else:
                text = f"{question}\n{more}".rstrip()
            turns.append({"role": "user", "content": text})
        if asks:
            return Row(tuple(turns), columns=columns)
        if self.known["answer"] == "completion" and kind_of(values["answer"]) in NESTED:
            turns += turns_of(values["answer"], self.columns["answer"])[0]
            return dataclasses.replace(answered(turns, number, tally, given), columns=columns)
        return Row(tuple(turns), self._text(values, "answer"), given=given, columns=columns)

    def _conversation(self, values: dict[str, Any], number: int, tally: "Tally", asks: bool) -> Row:
        """A row of a conversation, of which the last turn of the assistant is the answer."""
        turns, written = list[dict[str, Any]](), list[Any]()
        column = self.columns["conversation"]
        if not is_blank(values["conversation"]):
            turns, written = turns_of(values["conversation"], column)
        if asks:
            while turns and turns[-1]["role"] == "assistant":
                turns.pop()
        written = written[: len(turns)]
        system = self._text(values, "system")
        if system.strip() and turns and turns[0]["role"] == "system":
            if turns[0]["content"] != system:
                tally.add("a turn of the system as well as a system text, of which the turn is used", number)
        elif system.strip():
            turns = [{"role": "system", "content": system}, *turns]
        row = Row(tuple(turns)) if asks else answered(turns, number, tally)
        return dataclasses.replace(row, columns={column: written})

    def _encoded(self, values: dict[str, Any]) -> tuple[list[int], list[int]]:
        """The ids and labels of a row that was encoded by someone else."""
        ids, labels = (ids_of(values[part], self.columns[part]) for part in ("ids", "answer"))
        if len(ids) != len(labels):
            raise UserError(f"has {len(ids)} input_ids and {len(labels)} labels; every id needs one label")
        for place, (id, label) in enumerate(zip(ids, labels, strict=True), start=1):
            if id < 0:
                raise UserError(f"id {place} is {id}; token ids are 0 and above")
            if label not in (id, IGNORE_INDEX):
                raise UserError(f"label {place} is {label} and its id is {id}; a label is the id or {IGNORE_INDEX}")
        return ids, labels

    def _input(self, values: dict[str, Any], number: int, tally: "Tally") -> str:
        """What a question is about: text; a `context` may also be a list or an object, of which it is the JSON text."""
        value = values.get("input")
        if self.known.get("input") != "context" or kind_of(value) not in NESTED:
            return self._text(values, "input")
        if is_blank(value):
            return ""
        column = self.columns["input"]
        tally.add(f"a list or an object in {column}, which is written as JSON text", number)
        return json_text(value, column)

    def _text(self, values: dict[str, Any], part: str) -> str:
        """Text unchanged, a number as it was written, and "" for a missing value.

        Raises:
            UserError: a value of another type.
        """
        value = values.get(part)
        if is_missing(value):
            return ""
        kind = kind_of(value)
        if kind not in ("text", "number"):
            raise UserError(f"{self.columns[part]} is a {kind}, not text; write it as text")
        return str(value)


@dataclass
class Tally:
    """What was done to rows besides reading them: for all that some have the numbers of those rows."""

    rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, number: int) -> None:
        """Count a row that has something."""
        self.rows[what].append(number)


def answered(turns: Sequence[dict[str, Any]], number: int, tally: Tally, given: int = 0) -> Row:
    """The row whose answer is the last turn of the assistant behind the `given` ones; without one it has no answer."""
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and place >= given]
    if not places:
        return Row(tuple(turns), given=given)
    last = places[-1]
    if turns[last + 1 :]:
        tally.add("turns behind the last answer, which are left out", number)
    answer = {key: value for key, value in turns[last].items() if key not in ("role", "content")}
    return Row(tuple(turns[:last]), turns[last]["content"], answer=answer, given=given)


def find_formats(columns: Sequence[str], mapping: Mapping[str, str], *, asks: bool = False) -> list[Format]:
    """The formats that fit the columns, the best one first; empty if none does.

    Args:
        columns: those that rows have.
        mapping: for names of formats the columns that stand for them. A format must have all of these names.
        asks: only the question is needed.
    """
    names = {column: column for column in columns if column not in mapping.values()} | dict(mapping)
    return [
        Format(name, {part: names[known] for part, known in parts.items()}, parts)
        for name, parts in _candidates(names, mapping, asks)
        if set(mapping) <= set(parts.values())
    ]


def _candidates(
    names: Mapping[str, str], mapping: Mapping[str, str], asks: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    """Every format that the names allow: its name, and the name of each of its parts."""

    def first(part: str, *wanted: str) -> dict[str, str]:
        for name in sorted(wanted, key=lambda name: name not in mapping):
            if name in names:
                return {part: name}
        return {}

    system, tools = first("system", *SYSTEMS), first("tools", "tools")
    for name in CONVERSATIONS:
        if name in names:
            yield "messages", {"conversation": name, **system, **tools}
    pairs = [(question, answer) for question, answer in PAIRS if question in names and answer in names]
    if asks:
        pairs += [(question, "") for question in QUESTIONS if question in names]
    for question, answer in pairs:
        whole = question == "prompt" and not mapping.keys() & set(INPUTS)
        parts = {"question": question} | ({} if whole else first("input", *INPUTS))
        parts |= ({"answer": answer} if answer else {}) | system | first("history", "history")
        parts |= tools if question == "prompt" else {}
        yield "instructions" if question == "instruction" else "question and answer", parts
    text, label = first("question", *TEXTS), first("answer", *LABELS)
    if text and label:
        yield CLASSIFICATION, text | label
    if text and asks:
        yield "questions", text
    if "text" in names and not asks:
        yield "text", {"whole": "text"}
    if all(name in names for name in IDS) and not asks:
        yield "encoded rows", {"ids": IDS[0], "answer": IDS[1]}


def advice(columns: Sequence[str], example: Mapping[str, Any], *, asks: bool = False) -> str:
    """What rows hold, by an example, and how their columns could be named."""
    shown = "".join(each if each.isprintable() else "?" for each in to_json(dict(example)).replace("`", "'"))
    shown = shown if len(shown) <= MOST_SHOWN else shown[: MOST_SHOWN - 3] + "..."
    likely = _likely([*map(str, columns)], asks)
    named = ",".join(f"{name}={column}" for name, column in likely.items())
    named = f"; name them with `columns` {named}" if named else "; `columns` gives columns other names"
    return f"the first row is {shown}; {OTHER_FORMATS}{named}"


def _likely(columns: Sequence[str], asks: bool) -> dict[str, str]:
    """The columns that may hold a question and an answer, or a text and its label, by what people call them."""

    def one_of(words: Sequence[str], but: str = "") -> str:
        named = ((word, column) for word in words for column in columns if column != but)
        return next((column for word, column in named if word in column.lower()), "")

    label = one_of(LABEL_WORDS)
    text = one_of(TEXT_WORDS, label)
    answer = one_of(ANSWER_WORDS)
    question = one_of(QUESTION_WORDS, answer)
    if label and text and not (question and answer) and not asks:
        return {"text": text, "label": label}
    left = [column for column in columns if column not in (question, answer) and column.lower() not in ("id", "idx")]
    question = question or (left.pop(0) if left else "")
    answer = answer or (left.pop(0) if left else "")
    if asks:
        return {"instruction": question} if question else {}
    return {"instruction": question, "output": answer} if question and answer else {}


def choices_of(names: Sequence[str], answers: Mapping[str, int]) -> tuple[str, ...]:
    """The labels of a classification: the names of its classes, or else the different answers if they are few words.

    Args:
        names: of the classes, if the data has them.
        answers: how often every label occurs.
    """
    found = sum(count for answer, count in answers.items() if answer.strip())
    different = sorted({answer.strip() for answer in answers if answer.strip()})
    if names:
        return tuple(dict.fromkeys([*(name.strip() for name in names if name.strip()), *different]))
    usual = 1 < len(different) <= MOST_CHOICES and len(different) < found
    return tuple(different) if usual and not are_bare_labels(different) else ()


def are_bare_labels(answers: Collection[str]) -> bool:
    """Whether different answers look like class labels without names: the numbers from 0 on."""
    return {*answers} == {str(number) for number in range(len(answers))} and 1 < len(answers) <= MOST_CLASSES
