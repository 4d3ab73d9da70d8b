"""The sides that are compared (the base alone, a text in front, prompt files) and the results of each on the rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from softprompt.analysis.choices import actual_choices, choice_log_probabilities, encode_choices
from softprompt.answering.batch import greedy_answers, text_of
from softprompt.base.loading import Base, require_known_ids
from softprompt.config.commands import EvaluateConfig
from softprompt.data.reading import Row
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, row_scores
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import PromptFile, load_prompt
from softprompt.prompt.fit import check_same_base, require_room
from softprompt.system.process import is_out_of_memory
from softprompt.tokens.encoding import EncodedRow, encode_question, encode_rows, encode_text
from softprompt.tokens.row_hashes import hashes_of, share_among

NO_PROMPT, TEXT_PROMPT = "no prompt", "text prompt"
PROGRESS_BAR_ROWS = 128  # rows between two updates of the progress bar


@dataclass(frozen=True)
class Side:
    """One contender.

    Attributes:
        name: the path of its prompt file, or "no prompt" or "text prompt".
        prompt: the prompt in front of every row, also for a text; None for the base alone.
        sha256: the checksum that the prompt file states; empty without a file.
    """

    name: str
    prompt: SoftPromptEmbedding | None
    sha256: str = ""

    @property
    def num_virtual_tokens(self) -> int:
        """Number of virtual tokens P; 0 for the base alone."""
        return 0 if self.prompt is None else self.prompt.num_virtual_tokens


@dataclass(frozen=True)
class EvalSet:
    """The rows on which every side is evaluated.

    Attributes:
        name: what messages call the rows.
        rows: the rows with a response; `encoded` are the same rows as token ids.
        skipped: numbers of the rows without a response.
        questions: token ids of the questions to answer, which are those of the first rows.
        references: the right answers to the questions, as the tokenizer reads and writes them.
        candidates: every row with each of the choices as its response, `[row][choice]`; empty without choices.
        actual: the right choice of every row; empty without choices.
    """

    name: str
    rows: list[Row]
    encoded: list[EncodedRow]
    skipped: list[int]
    questions: list[list[int]]
    references: list[str]
    candidates: list[list[EncodedRow]]
    actual: list[str]


@dataclass(frozen=True)
class Outcome:
    """The results of one side on the rows; `answers` and `log_probabilities` are empty if not asked for."""

    side: Side
    scores: list[Score]
    answers: list[str]
    log_probabilities: list[list[float]]


def load_prompts(names: Sequence[str]) -> dict[str, PromptFile]:
    """Load the prompt files, and return them by the names under which they were given.

    Raises:
        UserError: a file cannot be read, is given twice, or has the name of another side.
    """
    seen: set[Path] = set()
    for name in names:
        if name in (NO_PROMPT, TEXT_PROMPT):
            raise UserError(f"`prompt_file` {name}: another side has that name; write ./{name}")
        path = Path(name).resolve()
        if path in seen:
            raise UserError(f"`prompt_file` {name}: is given twice; name every file once")
        seen.add(path)
    return {name: load_prompt(name) for name in names}


def make_sides(
    files: dict[str, PromptFile], base: Base, *, text_prompt: str | None, allow_other: bool
) -> tuple[list[Side], list[str]]:
    """Return the sides (the base alone, a text in front, and every prompt file) and notes to print.

    Args:
        text_prompt: the text; None takes the init text of the first file, if it names one, and "" leaves the text out.

    Raises:
        UserError: a prompt does not fit the base, or was trained on another one and `allow_other` is false.
    """
    remarks = [check_same_base(file, base, prompt_file=name, allow_other=allow_other) for name, file in files.items()]
    notes = [f"note: {name}: {remark}" for name, remark in zip(files, remarks, strict=True) if remark]
    sides = [Side(NO_PROMPT, None)]
    first, file = next(iter(files.items()))
    text, whose = text_prompt, "as given"
    if text is None:
        text, whose = file.facts.init_text, f"the init text of {first}"
    if text:
        written = SoftPromptEmbedding.from_text(text, base.tokenizer, base.model.get_input_embeddings())
        sides.append(Side(TEXT_PROMPT, written))
        notes.append(f"{TEXT_PROMPT}: {text!r}, {whose}, as {written.num_virtual_tokens} tokens")
    elif text_prompt is None:
        notes.append(f"no {TEXT_PROMPT}: {first} names no init text; `text_prompt` gives one")
    for name, file in files.items():
        sides.append(Side(name, SoftPromptEmbedding.from_tensor(file.weight), file.metadata["sha256"]))
    return sides, notes


def notes_on_seen_rows(files: dict[str, PromptFile], rows: Sequence[EncodedRow]) -> list[str]:
    """Return notes on prompts that some of `rows` trained or chose, as far as the prompt files tell."""
    notes, hashes = [], hashes_of(rows)
    for name, file in files.items():
        sketches = file.facts.rows_sketch
        for split, what in (("train", "trained"), ("held_out", "chose")):
            share = share_among(sketches.get(split, []), hashes)
            if share > 0:
                notes.append(
                    f"note: {name}: about {share:.0%} of the rows that {what} it are among these, which flatters it"
                )
    return notes


def encode_eval_set(rows: Sequence[Row], base: Base, config: EvaluateConfig, *, name: str) -> EvalSet:
    """Encode the rows, cut as in training; candidates of the choices are never cut.

    Raises:
        UserError: no row has a response, or a row's response is none of the choices.
    """
    encoded, skipped = encode_rows(rows, base.tokenizer, max_length=config.max_length)
    if not encoded:
        raise UserError(f"`data` {name}: no row has a response within `max_length` {config.max_length}")
    without = set(skipped)
    rows = [row for row in rows if row.number not in without]
    actual, candidates = [], []
    if config.choices:
        actual = actual_choices(rows, config.choices, name=name)
        candidates = encode_choices(rows, config.choices, base.tokenizer)
    questions = [encode_question(row, base.tokenizer) for row in rows[: config.eval_generate]]
    # as the tokenizer reads them: one that normalises could never answer in the row's own letters
    references = [text_of(encode_text(row.output, base.tokenizer), base.tokenizer) for row in rows[: len(questions)]]
    return EvalSet(name, rows, encoded, skipped, questions, references, candidates, actual)


def check_fit(eval_set: EvalSet, sides: Sequence[Side], base: Base, *, max_new_tokens: int) -> None:
    """Raise `UserError` if the base has no embedding for an id, or no room in its context for a row or an answer."""
    rows = [*eval_set.encoded, *chain(*eval_set.candidates)]
    require_known_ids(base, (id for row in rows for id in row.input_ids))
    most = max(side.num_virtual_tokens for side in sides)
    require_room(base.model, most, max(len(row.input_ids) for row in rows), option="max_length")
    if eval_set.questions:
        longest = max(len(ids) for ids in eval_set.questions)
        require_room(base.model, most, longest + max_new_tokens, option="max_new_tokens")


def work_of(sides: Sequence[Side], eval_set: EvalSet) -> int:
    """Return how many rows there are to score, answer and classify, counted over all sides."""
    return len(sides) * (len(eval_set.encoded) + len(eval_set.questions) + len(eval_set.candidates))


def run_sides(
    sides: Sequence[Side],
    eval_set: EvalSet,
    base: Base,
    config: EvaluateConfig,
    *,
    advance: Callable[[int], object] = lambda rows: None,
) -> list[Outcome]:
    """Evaluate one side after another on the rows.

    Args:
        advance: called with the number of rows done since the last call; `work_of` gives the total.

    Raises:
        UserError: memory runs out.
    """
    try:
        return [_run_side(side, eval_set, base, config, advance=advance) for side in sides]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"`per_device_eval_batch_size` {config.per_device_eval_batch_size}"
        raise UserError(f"out of memory with {size}; try a smaller one, or a smaller `max_length`") from error


def _run_side(
    side: Side, eval_set: EvalSet, base: Base, config: EvaluateConfig, *, advance: Callable[[int], object]
) -> Outcome:
    """Score, answer and classify the rows with one side."""
    model = base.model if side.prompt is None else SoftPromptModel(base.model, side.prompt)

    def in_parts(function: Callable, rows: Sequence) -> list:
        """Apply `function` to all rows, part by part, so that the progress bar moves."""
        found = []
        for start in range(0, len(rows), PROGRESS_BAR_ROWS):
            part = rows[start : start + PROGRESS_BAR_ROWS]
            found += function(model, part, pad_token_id=base.pad_token_id)
            advance(len(part))
        return found

    answers = greedy_answers(
        model,
        base.tokenizer,
        eval_set.questions,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.per_device_eval_batch_size,
        advance=advance,
    )
    scores = in_parts(row_scores, eval_set.encoded)
    return Outcome(side, scores, answers, in_parts(choice_log_probabilities, eval_set.candidates))
