"""Training rows that have nothing to do with the text, so that a prompt does not change what it need not change.

On these rows the teacher is the base as its users run it, without the text. Its answers are sampled like those of the
text's teacher, and kept in `replay.jsonl` in the run folder.
"""

import dataclasses
import itertools

from softprompt.answering.job import JobReport
from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.data.reading import open_data
from softprompt.data.row import Row
from softprompt.data.splits import Splits
from softprompt.distillation.answers import REPLAY_NAME, answer_splits
from softprompt.distillation.text import Text
from softprompt.engine.front import Front
from softprompt.engine.teacher import Teacher, Teachers
from softprompt.errors import UserError
from softprompt.tokens.encoded_splits import EncodedSplits, encode_splits

ONE_OF = 8  # training rows is a replayed one


def replay_questions(config: TrainConfig, num_train: int) -> list[Row]:
    """Read as many questions of `distill_replay` as go with `num_train` others; none without that option.

    Raises:
        UserError: the data cannot be read, or holds no question.
    """
    name = config.distill_replay
    if name is None:
        return []
    with open_data(name, "distill_replay") as source:
        rows, _ = source.rows(source.choose(("train", "validation", "test")), asks=True)
        found = list(itertools.islice((row for row in rows if row.has_question), _share(num_train)))
    if not found:
        raise UserError(f"`distill_replay` {name}: holds no question")
    return found


def with_replay(
    rows: EncodedSplits,
    teacher: Teacher,
    questions: list[Row],
    config: TrainConfig,
    base: Base,
    text: Text,
    report: JobReport,
) -> tuple[EncodedSplits, Teacher | Teachers]:
    """The rows of a run with the answered `questions` among those to train on, and the teachers of all of them.

    Raises:
        UserError: as `answer_splits`; or the base has no answer to any question.
    """
    if not questions:
        return rows, teacher
    most = _share(len(rows.train_rows))
    asked = Splits(questions[: -(-most // config.distill_answers)], [])
    answered = answer_splits(
        asked, base.model, rows.encoder.baseline, base, config, text, report, name=REPLAY_NAME
    ).train_rows
    replayed = encode_splits(Splits([], answered[:most]), rows.encoder, max_length=config.max_length).held_out
    if not replayed.rows:
        raise UserError(f"`distill_replay` {config.distill_replay}: the base has no answer to any of its questions")
    train = dataclasses.replace(rows.train, rows=[*rows.train_rows, *replayed.rows], known_facts=None)
    bare = Teacher(base.model, Front(), replayed.rows, replayed.for_base)
    note = f"{len(replayed.rows)} of the training rows are of {config.distill_replay}; the base alone is their teacher"
    return dataclasses.replace(rows, train=train, notes=[*rows.notes, note]), Teachers(teacher, bare)


def _share(num_train: int) -> int:
    """How many rows are replayed beside so many others."""
    return max(1, num_train // (ONE_OF - 1))
