"""Answer a file of rows: check all of them, batch them by length, and save every batch as soon as it is answered.

Which rows share a batch depends only on the rows and the batch size, and every sampled batch has a seed of its own.
A run that is stopped and resumed therefore gives the answers of an uninterrupted one. For greedy answers a batch is
larger than what runs together: a row that is done leaves, and the next of the batch takes its place. It does not take
rows of the next batch, because which rows share a pass would then depend on when a run was stopped, and in half
precision an answer may depend on that. Sampled rows stay together to the end, since they draw from one generator.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from softprompt.answering.batch import (
    answers_one_by_one,
    draw_seed,
    front_of,
    generate_batch,
    limit_of,
    new_token_budget,
    text_of,
)
from softprompt.answering.greedy import queued_ids
from softprompt.answering.output import AnswerFile, answers_path, partial_path, read_header
from softprompt.answering.questions import Question, Questions, Walk, plan
from softprompt.base.loading import Base, require_known_ids
from softprompt.config.commands import DEFAULT_MAX_LENGTH, GenerateConfig
from softprompt.data.reading import counted
from softprompt.data.row import Row
from softprompt.engine.front import Front
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import Interrupted, NotFiniteLogits, UserError
from softprompt.prompt.bank import BankedPrompt
from softprompt.prompt.file import PromptFile
from softprompt.prompt.fit import context_limit, require_room
from softprompt.system.files import FileId
from softprompt.system.process import is_out_of_memory
from softprompt.tokens.encoding import Encoder

# options that must be the same in a resumed run; how many rows share a batch may change
RECIPE = (
    "max_length", "max_new_tokens", "do_sample", "top_k", "top_p", "temperature", "repetition_penalty",
    "num_return_sequences",
)  # fmt: skip
# inputs that must be the same in a resumed run, each with the message if it is not
FACTS = {
    "rows": "`instructions`: the rows were others",
    "prompt": "`prompt_file`: it was another prompt",
    "base": "`model`: it had other weights",
    "precision": "`precision`: it was another one",
    "device": "`device`: it was another kind of device",
}


QUEUED = 4  # greedy batches are so many times as large as what runs together


class JobReport:
    """Shows nothing of how a file of questions is answered; a subclass shows what it overrides."""

    def say(self, message: str) -> None:
        """The job has a message for the user, in which the names of options stand in backticks."""

    def begin(self, done: int, total: int) -> None:
        """The job begins, with `done` of the `total` rows already answered."""

    def answered(self, rows: int) -> None:
        """A batch of `rows` rows is answered and saved."""

    def end(self) -> None:
        """All rows are answered, or the job was stopped."""


def answer_rows(
    model: SoftPromptModel,
    base: Base,
    encoder: Encoder,
    config: GenerateConfig,
    *,
    rows: Sequence[Row],
    name: str,
    prompt: PromptFile,
    prompts: Sequence[BankedPrompt] = (),
    ensemble: Sequence[BankedPrompt] = (),
    report: JobReport | None = None,
    replaces: FileId | None = None,
) -> None:
    """Answer `rows` into the output file.

    Args:
        name: what messages call the rows.
        encoder: how the prompt's file has rows written.
        prompt: the file of the model's prompt, whose hash `resume` compares.
        prompts: the prompt of every row; empty if all rows have the model's.
        ensemble: the prompts that answer every row together, in place of the model's.
        replaces: the file that the output may replace, as it was when the command began.

    Raises:
        UserError: a row leaves no room for an answer, `resume` finds the answers of another run, memory runs out, or
            the output cannot be written.
        Interrupted: SIGINT or SIGTERM arrived; all finished batches are saved.
    """
    report = report or JobReport()
    questions = Questions(encoder, rows, prompts, ensemble=[*map(front_of, ensemble)], front=model.front)
    found = questions.walk(lambda question: _check_room(question, base, config, name))
    require_known_ids(base, [found.largest_id])
    prompt_sha256 = _sha256_of(prompt, prompts or ensemble)
    file = _open(config, _recipe(found, base, config, prompt_sha256), len(rows), report)
    file.replaces = replaces
    waiting = [place for place, number in enumerate(found.numbers) if number not in file]
    queue_up = not (config.samples or ensemble or answers_one_by_one(model)) and all(found.lengths)
    most = config.per_device_eval_batch_size * (QUEUED if queue_up else 1)
    batches = plan(found, waiting, most, lambda front: _largest_gap(base, config, front))
    report.say(f"{name}: {counted(len(rows), 'row')}, {len(waiting):,} to answer in {len(batches):,} batches")
    start = time.perf_counter()
    try:
        tokens = _answer_batches(model, config, file, questions, batches, queue_up, report)
        file.finish(_record(row, file.answers_of(row.number), config) for row in rows)
    except Interrupted as stop:
        raise Interrupted(stop.signum, file.place()) from None
    except OSError as error:
        raise UserError(f"{error.filename or file.partial}: {error.strerror or error}; {file.place()}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"`per_device_eval_batch_size` {config.per_device_eval_batch_size}"
        raise UserError(f"out of memory with {size}; {file.place()} and a smaller one") from error
    seconds = time.perf_counter() - start
    rates = f": {len(waiting) / seconds:.1f} rows/s, {tokens / seconds:,.0f} tokens/s" if waiting else ""
    report.say(f"answers written to {file.path}{rates}")
    if file.path != (planned := answers_path(config)):
        report.say(f"note: another file came to {planned} meanwhile and is kept, so the answers are in {file.path}")


def _answer_batches(
    model: SoftPromptModel,
    config: GenerateConfig,
    file: AnswerFile,
    questions: Questions,
    batches: list[list[int]],
    queue_up: bool,
    report: JobReport,
) -> int:
    """Answer and save batch by batch; return the number of tokens in the answers."""
    tokens = 0
    report.begin(file.num_answered, file.num_rows)
    try:
        for places in batches:
            batch = questions.at(places)
            numbers = [question.row.number for question in batch]
            torch.manual_seed(batch_seed(file.header["seed"], numbers[0]))
            try:
                answers = (_queued if queue_up else _together)(model, config, batch, questions)
            except NotFiniteLogits as error:
                number = numbers[error.row // config.num_return_sequences]
                raise UserError(f"`instructions`, row {number}: {error}; {file.place()}") from error
            encoder = batch[0].encoder
            file.append(numbers, [[text_of(answer, encoder) for answer in several] for several in answers])
            tokens += sum(len(answer) for several in answers for answer in several)
            report.answered(len(batch))
    finally:
        report.end()
    return tokens


def _together(
    model: SoftPromptModel, config: GenerateConfig, batch: Sequence[Question], questions: Questions
) -> list[list[list[int]]]:
    """Return the ids of all answers to each question of a batch, which runs together to its end."""
    encoder, ids = batch[0].encoder, [question.ids for question in batch]
    return generate_batch(
        model, encoder, config, questions=ids, fronts=_fronts(batch, questions), ensemble=questions.ensemble
    )


def _queued(
    model: SoftPromptModel, config: GenerateConfig, batch: Sequence[Question], questions: Questions
) -> list[list[list[int]]]:
    """Return the ids of the greedy answer to each question of a batch, in which a row that is done makes room."""
    encoder, ids = batch[0].encoder, [question.ids for question in batch]
    found = queued_ids(
        model,
        encoder,
        config,
        questions=ids,
        budgets=[new_token_budget(config, len(each), encoder) for each in ids],
        fronts=_fronts(batch, questions),
        batch_size=config.per_device_eval_batch_size,
    )
    answers = dict(found)
    return [[answers[place]] for place in range(len(batch))]


def _fronts(batch: Sequence[Question], questions: Questions) -> list[Front] | None:
    """What stands in front of every question, if not all have the model's own prompt."""
    return [question.front for question in batch] if questions.mixed else None


def _check_room(question: Question, base: Base, config: GenerateConfig, name: str) -> None:
    """Raise a `UserError` that names the row if a question leaves no room for its answer."""
    encoder = question.encoder
    try:
        text_tokens = len(question.ids) + new_token_budget(config, len(question.ids), encoder)
        require_room(base.model, len(question.front), text_tokens, option=limit_of(config, encoder))
    except UserError as error:
        raise UserError(f"{name}, row {question.row.number}: {error}") from None


def _largest_gap(base: Base, config: GenerateConfig, front: int) -> int | None:
    """Return how many tokens shorter than the longest row of a batch another may be; None for any number.

    With `max_length`, a shorter row may have more new tokens. The longest row of the batch is continued for as many
    tokens, and must not exceed the base's context.
    """
    limit = context_limit(base.model)
    if limit is None or config.max_new_tokens is not None:
        return None
    return limit - front - (config.max_length or DEFAULT_MAX_LENGTH)


def _sha256_of(prompt: PromptFile, prompts: Sequence[BankedPrompt]) -> str:
    """Return the hash of the prompt or, of many, of the hashes of all rows' prompts."""
    if not prompts:
        return prompt.metadata["sha256"]
    hashes = [each.file.metadata["sha256"] for each in prompts]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _recipe(found: Walk, base: Base, config: GenerateConfig, prompt_sha256: str) -> dict[str, object]:
    """Return the facts and options that must be the same in a resumed run; the seed is kept beside them."""
    facts = {
        "rows": found.sha256,
        "prompt": prompt_sha256,
        "base": base.fingerprint.sha256,
        "precision": base.precision,
        "device": base.device.type,
    }
    return {"facts": facts, "options": {name: getattr(config, name) for name in RECIPE}}


def _require_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a `UserError` that names the first option or input that differs from when the answers were begun."""
    for name, value in now["options"].items():
        was = before["options"].get(name)
        if was != value:
            raise UserError(f"`resume`: `{name}` was {was} when these answers were begun and is {value} now; keep it")
    for name, message in FACTS.items():
        if before["facts"].get(name) != now["facts"][name]:
            raise UserError(f"`resume`: {message} when these answers were begun; give the same, or use `overwrite`")


def _open(config: GenerateConfig, recipe: dict[str, Any], num_rows: int, report: JobReport) -> AnswerFile:
    """Open the file of the stopped run with `resume`, or else a fresh one; report the seed."""
    path = answers_path(config)
    partial = partial_path(path)
    if config.resume and partial.exists():
        header = read_header(partial)
        given = {} if config.seed is None else {"seed": config.seed}
        before = header["recipe"]["options"] | {"seed": header["seed"]}
        _require_same(header["recipe"] | {"options": before}, recipe | {"options": recipe["options"] | given})
        file = AnswerFile.go_on(path, header, num_rows)
        report.say(f"resumed from {partial}: {file.num_answered:,} rows are answered")
    else:
        seed = draw_seed() if config.seed is None else config.seed
        file = AnswerFile.start(path, {"recipe": recipe, "seed": seed, "overwrite": config.overwrite}, num_rows)
    if config.samples:
        report.say(f"seed: {file.header['seed']}")
    return file


def batch_seed(seed: int, first_number: int) -> int:
    """Return the seed of a batch, which does not depend on the batches that this process answered before."""
    digest = hashlib.sha256(f"{seed} {first_number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits, as `--seed` has


def _record(row: Row, answers: list[str], config: GenerateConfig) -> dict[str, object]:
    """Return the JSON object of one row in the output: its question, its other columns and the answers."""
    question = {**row.columns, **row.others}
    return question | ({"answer": answers[0]} if config.num_return_sequences == 1 else {"answers": answers})
