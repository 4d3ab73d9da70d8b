"""What a run trains on, with a text to distil or without: options as they turn out, base, rows and objective."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.answering.job import JobReport
from softprompt.answering.output import partial_path
from softprompt.base.device import resolve_device
from softprompt.base.loading import Base, load_base
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.data.reading import Data
from softprompt.data.row import RowKinds
from softprompt.data.splits import Splits, load_splits
from softprompt.distillation.answers import REPLAY_NAME, TEACHER_NAME, answer_splits, seen_by_teacher
from softprompt.distillation.questions import QUESTIONS_NAME, teachers_questions
from softprompt.distillation.replay import replay_questions, with_replay
from softprompt.distillation.text import Text, place_text, read_text, require_room_for_text, teacher_model
from softprompt.engine.teacher import Teacher
from softprompt.errors import UserError
from softprompt.prompt.encoder import encoder_for
from softprompt.tokens.encoded_splits import EncodedSplits, encode_splits
from softprompt.tokens.encoding import EncodedRow, Encoder
from softprompt.training.objective import Divergence, Objective
from softprompt.training.run import DATA, HOW_TO_READ, date_of_run, load_inputs
from softprompt.training.run_folder import open_run_folder
from softprompt.training.sweep import SHARED

DEFAULT_VIRTUAL_TOKENS = 16
SHOWN = 3  # questions and answers of the teacher that are told
QUESTIONS_HELD_OUT = 0.2  # the share of the teacher's own questions that is held out
# what the teacher leaves in the folder of a run or a search before the first step
ANSWERS = (TEACHER_NAME, REPLAY_NAME)
SAMPLED = {QUESTIONS_NAME, *ANSWERS, *(partial_path(Path(name)).name for name in ANSWERS)}

Inputs = tuple[TrainConfig, Base, EncodedSplits, Objective | None]


def load_all_inputs(
    config: TrainConfig,
    in_memory: Mapping[str, Data] | None = None,
    report: JobReport | None = None,
    *,
    date: str | None = None,
) -> Inputs:
    """Load what a run needs: `load_inputs`, and with `distill_text` the teacher and its answers.

    Args:
        in_memory: data given as rows, by the name of the option that it replaces.
        report: hears how the teacher answers.
        date: the day that a chat template is given which asks for it; None takes that of the run, or today.

    Returns:
        The options with what `distill_text` decides, the base, the rows, and the objective if it is a divergence.

    Raises:
        UserError: as `load_inputs`; or the text or its teacher cannot be used.
    """
    name = config.distill_text
    if name is None:
        return config, *load_inputs(config, in_memory), None
    written = read_text(name)
    device = resolve_device(config.device)
    splits = Splits([], []) if config.distill_questions else _splits(config, in_memory)
    replay = replay_questions(config, max(len(splits.train_rows), config.distill_questions))
    base = load_base(config.model, device=device, precision=config.precision)
    config, encoder = _encoder(config, base, splits.kinds, date or date_of_run(config))
    text = place_text(name, written, encoder, base)
    if not config.distill_from_data:
        splits = _answered(config, splits, encoder, base, text, report or JobReport())
    rows = encode_splits(splits, encoder, max_length=config.max_length, most_kept=sys.maxsize)
    text_teacher = make_teacher(rows, splits, config, base, text)
    rows, teacher = with_replay(rows, text_teacher, replay, config, base, text, report or JobReport())
    facts = text.facts | {"temperature": config.distill_temperature, "ce": config.distill_ce}
    facts |= {"replay": len(replay)} if replay else {}
    objective = Divergence(config, teacher, facts, text.ids, pad_token_id=base.pad_token_id)
    return config, base, rows, objective


def load_sweep_inputs(
    config: SweepConfig, report: JobReport | None = None
) -> tuple[SweepConfig, Base, EncodedSplits, Objective | None]:
    """Load what a search needs; the teacher's answers are in the sweep's folder, and all trials learn from them.

    Raises:
        UserError: as `load_all_inputs`.
    """
    if config.distill_text is None:
        return config, *load_inputs(config), None
    shared: dict[str, Any] = {name: getattr(config, name) for name in SHARED}
    shared |= {"prompt_file": config.prompt_file, "run_dir": str(config.sweep_folder), "resume": config.resume}
    decided, base, rows, objective = load_all_inputs(TrainConfig(**shared), report=report, date=date_of_run(config))
    changes = {name: getattr(decided, name) for name in ("placement", "last_turn_only")}
    return dataclasses.replace(config, **changes), base, rows, objective


def _splits(config: TrainConfig, in_memory: Mapping[str, Data] | None) -> Splits:
    """The rows of the run; of those that the teacher is to answer, only the questions."""
    named: dict[str, Any] = {name: getattr(config, name) for name in DATA} | dict(in_memory or {})
    how: dict[str, Any] = {name: getattr(config, name) for name in HOW_TO_READ}
    return load_splits(**named, **how, asks=not config.distill_from_data)


def _answered(
    config: TrainConfig, splits: Splits, encoder: Encoder, base: Base, text: Text, report: JobReport
) -> Splits:
    """The splits with the teacher's answers, to its own questions if it is to write them."""
    model = teacher_model(text, encoder, base)
    if not config.resume:
        stale = _stale(config)
        open_run_folder(config)  # clears what an earlier run left there, whose answers these replace
        for path in stale:
            path.unlink(missing_ok=True)
    if config.distill_questions:
        path, count = config.run_folder / QUESTIONS_NAME, config.distill_questions
        written = teachers_questions(
            path, count, model, encoder, base, text, report, seed=config.seed, resume=config.resume
        )
        if len(written) < count:
            report.say(f"note: the teacher wrote {len(written)} different questions, of {count} wanted")
        for each in written[:SHOWN]:
            report.say(f"its question ({each['kind']}): {each['instruction']}")
        share = QUESTIONS_HELD_OUT if config.eval_fraction is None else config.eval_fraction
        splits = load_splits(written, eval_fraction=share, seed=config.seed, asks=True)
    splits = answer_splits(splits, model, encoder, base, config, text, report)
    for row in splits.train_rows[:SHOWN]:
        report.say(f"its answer to {str(row.messages[-1]['content'])!r}: {row.output!r}")
    return splits


def _stale(config: TrainConfig) -> list[Path]:
    """The files of an earlier run that this one samples again; a later `resume` would take them for its own.

    Raises:
        UserError: the run is to read one of them.
    """
    names = [TEACHER_NAME] + [REPLAY_NAME] * (config.distill_replay is not None)
    paths = [config.run_folder / name for name in names]
    paths += [*map(partial_path, paths)] + [config.run_folder / QUESTIONS_NAME] * (config.distill_questions > 0)
    for option in (*DATA, "distill_replay"):
        name = getattr(config, option)
        if name is not None and Path(name).resolve() in {path.resolve() for path in paths}:
            raise UserError(f"`{option}` {name}: this run would replace it; copy it, or name another `run_dir`")
    return paths


def _encoder(config: TrainConfig, base: Base, kinds: RowKinds, date: str | None) -> tuple[TrainConfig, Encoder]:
    """The options as a text to distil decides them, and the encoder: in the system turn where there is one.

    Raises:
        UserError: the rows are no questions, or the template cannot be used.
    """
    if kinds.ready:
        raise UserError("`distill_text`: these rows are text or token ids; it needs questions")
    make = functools.partial(encoder_for, base, kinds, template=config.template, last_turn_only=True, date=date)
    try:
        encoder = make(placement="system")
    except UserError as error:
        if not str(error).startswith("`placement`"):
            raise
        encoder = make()
    decided = dataclasses.replace(
        config,
        placement=encoder.placement,
        last_turn_only=True,
        virtual_tokens=config.virtual_tokens or (None if config.init_from else DEFAULT_VIRTUAL_TOKENS),
    )
    return decided, encoder


def make_teacher(rows: EncodedSplits, splits: Splits, config: TrainConfig, base: Base, text: Text) -> Teacher:
    """The teacher of all rows of a run.

    Raises:
        UserError: the text and the longest row exceed the base's context.
    """
    seen, front = _seen(rows, splits, config.distill_context), text.front(rows.encoder)
    require_room_for_text(base, len(front), max((len(row.input_ids) for row in seen), default=0), text)
    return Teacher(base.model, front, _all_rows(rows), seen)


def _all_rows(rows: EncodedSplits) -> list[EncodedRow]:
    return [row for split in rows.splits for row in split.rows]


def _seen(rows: EncodedSplits, splits: Splits, context: str | None) -> list[EncodedRow]:
    """All rows as the teacher sees them, with their context.

    Raises:
        UserError: a row has no context, or its answer has other tokens behind it.
    """
    if context is None:
        return _all_rows(rows)
    seen: list[EncodedRow] = []
    pairs = (
        (splits.train_rows, rows.train_rows),
        (splits.eval_rows, rows.eval_rows),
        (splits.test_rows, rows.test_rows),
    )
    for sources, encoded in pairs:
        longer = rows.encoder.encode([seen_by_teacher(row, context) for row in sources], max_length=sys.maxsize)
        known = {(row.number, tuple(row.supervised_ids)): row for row in longer}
        for row in encoded:
            matching = [
                each.until(row.num_supervised)
                for (number, labels), each in known.items()
                if number == row.number and list(labels[: row.num_supervised]) == row.supervised_ids
            ]
            if not matching:
                raise UserError(f"`distill_context`: row {row.number} is answered in other tokens behind its context")
            seen.append(matching[0])
    return seen
