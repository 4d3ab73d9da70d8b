"""The teacher's own answers: sampled once with the text in front, saved batch by batch, and kept as rows to read.

`teacher.jsonl` in the run folder has one object per answer: its split, the number of its question there, and the turns
of the conversation as `messages`, the last of which is the answer. It can be used as `data` like any other file. The
mark `teacher` tells `resume` whether the answers are of the same text and base.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt.answering.batch import ANSWERED_TOGETHER, generate_batch, text_of
from softprompt.answering.job import JobReport, batch_seed
from softprompt.answering.output import AnswerFile, partial_path, read_header
from softprompt.base.loading import Base, require_known_ids
from softprompt.config.commands import Sampling, TrainConfig
from softprompt.data.row import Row
from softprompt.data.splits import Splits, load_splits
from softprompt.distillation.text import Text, require_room_for_text
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import base_and_front
from softprompt.errors import Interrupted, UserError
from softprompt.packs.batches import plan_batches
from softprompt.system.foreign import decode_json
from softprompt.tokens.encoding import Encoder
from softprompt.training.run import HOW_TO_READ

TEACHER_NAME = "teacher.jsonl"
REPLAY_NAME = "replay.jsonl"  # the answers of the base alone to `distill_replay`
SPLITS = {"train": "train_rows", "held_out": "eval_rows", "test": "test_rows"}  # in the order of `Splits`
TEMPERATURE = 0.7  # of the sampling, as in `generate`; so are top_k and top_p
OWN_COLUMNS = ("split", "row", "messages", "tools", "teacher")
Asked = list[tuple[str, Row]]  # split and row


def answer_splits(
    splits: Splits,
    teacher: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    base: Base,
    config: TrainConfig,
    text: Text,
    report: JobReport,
    *,
    name: str = TEACHER_NAME,
) -> Splits:
    """Return the splits with the teacher's answers, which are written to the run folder; `resume` goes on there.

    Args:
        name: of the file in the run folder. Only the questions of `TEACHER_NAME` have the column `distill_context`.

    Raises:
        UserError: there is no question, one leaves no room for an answer, or `resume` finds answers to other questions
            or of another teacher.
        Interrupted: SIGINT or SIGTERM arrived; all finished batches are saved.
    """
    asked = [(split, row) for split, name in SPLITS.items() for row in getattr(splits, name) if row.has_question]
    if not asked:
        raise UserError(f"`data` {config.data}: holds no question for the teacher to answer")
    path, context = config.run_folder / name, config.distill_context if name == TEACHER_NAME else None
    questions = encoder.questions([seen_by_teacher(row, context) for _, row in asked])
    require_known_ids(base, (id for ids in questions for id in ids))
    tokens = max(map(len, questions)) + config.distill_new_tokens
    require_room_for_text(base, len(base_and_front(teacher)[1]), tokens, text)
    recipe = _recipe(asked, questions, base, config, text)
    mark = teacher_mark(base, text)
    if not (config.resume and path.exists()):
        _answer(path, asked, questions, teacher, encoder, config, recipe, mark, report)
    kept = kept_splits(path, splits, mark)
    if _questions_of(kept) != _questions_of(splits):
        option = "data" if name == TEACHER_NAME else "distill_replay"
        raise UserError(f"`resume`: {path} answers other questions than those of `{option}`; give the same")
    return kept


def _questions_of(splits: Splits) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """The questions of every split, each once for all of its answers."""
    rows = [(split, row) for split, name in SPLITS.items() for row in getattr(splits, name) if row.has_question]
    return list({(split, row.number): (split, row.messages) for split, row in rows}.values())


def seen_by_teacher(row: Row, context: str | None) -> Row:
    """The row with the text of its column `context` in front of its last question.

    Raises:
        UserError: the row has nothing in that column.
    """
    if context is None:
        return row
    shown = str(row.others.get(context) or "").strip()
    if not shown:
        raise UserError(f"`distill_context` {context}: row {row.number} has nothing in that column")
    last = dict(row.messages[-1])
    last["content"] = f"{shown}\n\n{last['content']}"
    return dataclasses.replace(row, messages=(*row.messages[:-1], last))


def teacher_mark(base: Base, text: Text) -> str:
    """What the answers and questions of a text on a base are marked with."""
    return hashlib.sha256(f"{text.sha256} {base.fingerprint.sha256}".encode()).hexdigest()[:16]


def require_mark(path: Path, found: object, wanted: str | None) -> None:
    """Raise `UserError` unless a line of a file has the mark that is wanted, or none at all."""
    if wanted is not None and found not in (None, wanted):
        raise UserError(
            f"`resume`: {path} was written with another `distill_text` or base; give the same, or start anew with"
            " `overwrite`"
        )


def kept_splits(path: Path, splits: Splits | None = None, mark: str | None = None) -> Splits:
    """Read the rows that `teacher.jsonl` keeps.

    Args:
        splits: what the questions were read from, whose notes stay.
        mark: that of the teacher whose answers they must be; None takes those of any.

    Raises:
        UserError: the file is not one of ours, or has answers of another teacher.
    """
    found: dict[str, list[Row]] = {name: [] for name in SPLITS}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the teacher's answers cannot be read ({error}); name rows with `data`") from error
    for number, line in enumerate(lines, 1):
        try:
            each = decode_json(line)
            *turns, answer = each["messages"]
            row = Row(tuple(turns), answer["content"], each["row"], tools=tuple(each.get("tools", ())))
            others = {name: each[name] for name in each.keys() - set(OWN_COLUMNS)}
            found[each["split"]].append(dataclasses.replace(row, others=others))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}, row {number}: is no answer of a teacher; start anew with `overwrite`") from error
        require_mark(path, each.get("teacher"), mark)
    train, held_out, test = (found[split] for split in SPLITS)
    return Splits(train, held_out, test, notes=list(splits.notes) if splits else [])


def _recipe(
    asked: Asked, questions: Sequence[list[int]], base: Base, config: TrainConfig, text: Text
) -> dict[str, Any]:
    """What must be the same when sampling goes on."""
    rows = [[split, row.number, ids] for (split, row), ids in zip(asked, questions, strict=True)]
    return {
        "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "text": text.sha256,
        "base": base.fingerprint.sha256,
        "precision": base.precision,
        "options": [config.distill_answers, config.distill_new_tokens, config.seed],
    }


def _answer(
    path: Path,
    asked: Asked,
    questions: Sequence[list[int]],
    teacher: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    config: TrainConfig,
    recipe: dict[str, Any],
    mark: str,
    report: JobReport,
) -> None:
    """Answer the questions that are not answered yet, and write the file when all are."""
    sampling = _sampling(config.distill_new_tokens, config.distill_answers)
    file = _open(path, recipe, len(asked), config)
    waiting = [place for place in range(len(asked)) if place + 1 not in file]
    report.begin(file.num_answered, len(asked))
    try:
        for places, texts in _sampled(questions, waiting, teacher, encoder, sampling, config.seed):
            file.append([place + 1 for place in places], texts)
            report.answered(len(places))
    except Interrupted as stop:
        raise Interrupted(stop.signum, file.place()) from None
    finally:
        report.end()
    found = [(row, file.answers_of(number)) for number, row in enumerate(asked, 1)]
    file.finish([_record(*row, answer, mark) for row, answers in found for answer in answers])


def answered_now(
    rows: Sequence[Row],
    teacher: SoftPromptModel,
    encoder: Encoder,
    base: Base,
    text: Text,
    *,
    new_tokens: int,
    seed: int,
) -> list[Row]:
    """Return the rows that ask something with the teacher's answers, which are kept nowhere.

    Raises:
        UserError: there is no question, or one leaves no room for an answer.
    """
    rows = [row for row in rows if row.has_question]
    if not rows:
        raise UserError("`data`: holds no question for the teacher to answer")
    questions = encoder.questions(rows)
    require_known_ids(base, (id for ids in questions for id in ids))
    require_room_for_text(base, len(teacher.front), max(map(len, questions)) + new_tokens, text)
    found: dict[int, str] = {}
    waiting = range(len(rows))
    for places, texts in _sampled(questions, waiting, teacher, encoder, _sampling(new_tokens, 1), seed):
        found |= {place: answer for place, (answer,) in zip(places, texts, strict=True)}
    return [dataclasses.replace(row, output=found[place]) for place, row in enumerate(rows)]


def _sampling(new_tokens: int, several: int) -> Sampling:
    return Sampling(max_new_tokens=new_tokens, temperature=TEMPERATURE, num_return_sequences=several)


def _sampled(
    questions: Sequence[list[int]],
    waiting: Sequence[int],
    teacher: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    sampling: Sampling,
    seed: int,
) -> Iterator[tuple[list[int], list[list[str]]]]:
    """Answer the questions at the places `waiting`, batch by batch: places, and the texts of each one's answers."""
    size = max(1, 2 * ANSWERED_TOGETHER // sampling.num_return_sequences)
    for batch in plan_batches([len(questions[place]) for place in waiting], size):
        places = [waiting[each] for each in batch]
        torch.manual_seed(batch_seed(seed, places[0]))
        found = generate_batch(teacher, encoder, sampling, questions=[questions[place] for place in places])
        yield places, [[text_of(ids, encoder) for ids in answers] for answers in found]


def splits_of_run(options: Mapping[str, Any], folder: Path) -> Splits:
    """Read the rows of a run again by the options that its folder keeps; those of a teacher are in the folder itself.

    Raises:
        UserError: as `load_splits` and `kept_splits`.
    """
    if options["distill_text"] and not options["distill_from_data"]:
        return kept_splits(folder / TEACHER_NAME)
    return load_splits(options["data"], **{name: options[name] for name in ("eval_data", "test_data", *HOW_TO_READ)})


def _open(path: Path, recipe: dict[str, Any], count: int, config: TrainConfig) -> AnswerFile:
    """The answers of a stopped run, or else a fresh file, in whose place nothing is left.

    Raises:
        UserError: the answers that were begun are of other questions, another text, base or options.
    """
    if config.resume and partial_path(path).exists():
        header = read_header(partial_path(path))
        for name, value in recipe.items():
            if header["recipe"].get(name) != value:
                raise UserError(
                    f"`resume`: {path.name} was begun with another {name}; give the same, or start anew with"
                    " `overwrite`"
                )
        return AnswerFile.go_on(path, header, count)
    path.unlink(missing_ok=True)
    return AnswerFile.start(path, {"recipe": recipe}, count)


def _record(split: str, row: Row, answer: str, mark: str) -> dict[str, Any]:
    """The object of one answer."""
    messages = [*map(dict, row.messages), {"role": "assistant", "content": answer}]
    tools = {"tools": list(row.tools)} if row.tools else {}
    others = {name: value for name, value in row.others.items() if name not in OWN_COLUMNS}
    return {"split": split, "row": row.number, "messages": messages} | tools | others | {"teacher": mark}
