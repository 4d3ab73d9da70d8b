"""Questions that the teacher writes itself, for a text without any: from several kinds of request, without repeats.

`questions.jsonl` in the run folder has one object per question: the kind of request, and the question as `instruction`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from softprompt.answering.batch import ANSWERED_TOGETHER, generate_batch, text_of
from softprompt.answering.job import JobReport, batch_seed
from softprompt.base.loading import Base
from softprompt.config.commands import Sampling
from softprompt.data.row import Row
from softprompt.distillation.answers import require_mark, teacher_mark
from softprompt.distillation.text import Text, require_room_for_text
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.system.files import write_atomic
from softprompt.system.foreign import decode_json, reason_of
from softprompt.tokens.encoding import Encoder

QUESTIONS_NAME = "questions.jsonl"
KINDS = {
    "use": (
        "Write one question that somebody could ask you. Write only the question.",
        "What could a user want from you? Write one request, and nothing else.",
    ),
    "edge": (
        "Choose one of your rules, and write a question that makes it hard to keep. Write only the question.",
        "Write one unusual question that your instructions just about cover. Write only the question.",
    ),
    "off-topic": (
        "Write one everyday question that has nothing to do with your instructions. Write only the question.",
        "Ask one short question about the world. Write only the question.",
    ),
    "follow-up": (
        "You have just answered somebody. Write the next question of that person, and nothing else.",
        "Write one question that begins with And.",
    ),
}
NEW_TOKENS, TEMPERATURE = 48, 1.0
MOST_TRIES = 4  # times the number that is wanted
FEWEST_LETTERS = 4


def teachers_questions(
    path: Path,
    count: int,
    teacher: SoftPromptModel,
    encoder: Encoder,
    base: Base,
    text: Text,
    report: JobReport,
    *,
    seed: int,
    resume: bool,
) -> list[dict[str, str]]:
    """Let the teacher write at most `count` different questions into `path`; `resume` takes those that are there.

    Raises:
        UserError: it writes none that can be used, the text leaves no room for one, or those there are damaged or of
            another teacher.
    """
    if resume and path.exists():
        return _kept(path, teacher_mark(base, text))
    requests = [(kind, each[place]) for place in range(2) for kind, each in KINDS.items()]
    asked = encoder.questions([Row.asked(request) for _, request in requests])
    require_room_for_text(base, len(teacher.front), max(map(len, asked)) + NEW_TOKENS, text)
    sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, num_return_sequences=2 * ANSWERED_TOGETHER)
    found: dict[str, dict[str, str]] = {}
    report.begin(0, count)
    for turn in range(-(-MOST_TRIES * count // sampling.num_return_sequences)):
        kind, _ = requests[turn % len(requests)]
        torch.manual_seed(batch_seed(seed, turn))
        (written,) = generate_batch(teacher, encoder, sampling, questions=[asked[turn % len(requests)]])
        before = len(found)
        for question in questions_in([text_of(ids, encoder) for ids in written]):
            found.setdefault(_key(question), {"kind": kind, "instruction": question})
        report.answered(min(len(found), count) - min(before, count))
        if len(found) >= count:
            break
    report.end()
    if not found:
        raise UserError("`distill_questions`: this base writes no question that can be used; give questions as `data`")
    rows = list(found.values())[:count]
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = [row | {"teacher": teacher_mark(base, text)} for row in rows]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in marked).encode())
    return rows


def questions_in(texts: Sequence[str]) -> list[str]:
    """The first line of each text that can be a question, without a number, a bullet or quotation marks around it."""
    found = []
    for text in texts:
        lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)]|[QF]:)\s*", "", line).strip(" \t\"'“”*") for line in text.splitlines()]
        line = next((line for line in lines if sum(map(str.isalpha, line)) >= FEWEST_LETTERS), "")
        if line:
            found.append(line)
    return found


def _kept(path: Path, mark: str) -> list[dict[str, str]]:
    """The questions of an earlier run of the same teacher."""
    try:
        rows = [decode_json(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); start anew with `overwrite`") from error
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, dict) and isinstance(row.get("instruction"), str)):
            raise UserError(f"{path}, row {number}: is no question; start anew with `overwrite`")
        require_mark(path, row.pop("teacher", None), mark)
    return rows


def _key(question: str) -> str:
    """What two questions share that differ in case, blanks and punctuation alone."""
    return " ".join(re.findall(r"\w+", question.casefold()))
