"""The sides that are compared (the base alone, a written text, prompt files) and the results of each on the rows."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers import PreTrainedModel

from softprompt.analysis.choices import actual_choices, choice_log_probabilities, encode_choices
from softprompt.answering.batch import text_of
from softprompt.answering.greedy import greedy_answers
from softprompt.base.loading import Base, require_known_ids
from softprompt.base.vocabulary import embedding_weight
from softprompt.config.commands import DEFAULT_INIT_TEXT, DEFAULT_NEW_TOKENS, EvaluateConfig
from softprompt.data.row import Row
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, row_scores
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.encoder import bound_to, encoder_of
from softprompt.prompt.file import PromptFile, load_prompt
from softprompt.prompt.fit import check_same_base, context_limit, require_room
from softprompt.system.process import is_out_of_memory
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_rows, encode_text
from softprompt.tokens.row_hashes import hashes_of, share_among

NO_PROMPT, TEXT_PROMPT = "no prompt", "text prompt"
PROGRESS_BAR_ROWS = 128  # rows between two updates of the progress bar


@dataclass(frozen=True)
class Side:
    """One contender.

    Attributes:
        name: the path of its prompt file, or "no prompt" or "text prompt".
        encoder: how this side's rows are written.
        prompt: the prompt in front of every row, also for a text in front; None for the base alone.
        sha256: the checksum that the prompt file states; empty without a file.
    """

    name: str
    encoder: Encoder
    prompt: SoftPromptEmbedding | None = None
    sha256: str = ""

    @property
    def num_virtual_tokens(self) -> int:
        """Number of virtual tokens P; 0 for the base alone."""
        return 0 if self.prompt is None else self.prompt.num_virtual_tokens

    def model(self, base_model: PreTrainedModel) -> SoftPromptModel | PreTrainedModel:
        """The base with this side's prompt, or alone."""
        return (
            base_model
            if self.prompt is None
            else SoftPromptModel(base_model, self.prompt, self.encoder.before_ids, self.encoder.after_ids)
        )

    @property
    def num_front(self) -> int:
        """How many places stand in front of every row."""
        around = 0 if self.prompt is None else len(self.encoder.before_ids) + len(self.encoder.after_ids)
        return around + self.num_virtual_tokens


@dataclass(frozen=True)
class EncodedSet:
    """The rows of an evaluation as one encoder writes them.

    Attributes:
        rows: the rows with their responses.
        questions: token ids of the questions to answer, which are those of the first rows.
        candidates: every row with each of the choices as its response, `[row][choice]`; empty without choices.
    """

    rows: list[EncodedRow]
    questions: list[list[int]]
    candidates: list[list[EncodedRow]]


@dataclass(frozen=True)
class EvalSet:
    """The rows on which every side is evaluated.

    Attributes:
        name: what messages call the rows.
        rows: the rows with a response.
        skipped: numbers of the rows without a response.
        references: the right answers to the questions, as the tokenizer reads and writes them.
        longest_reference: the tokens of the longest of them, with the one that ends it.
        actual: the right choice of every row; empty without choices.
        sets: the rows as token ids, for every side in its order; the last side is a prompt file.
    """

    name: str
    rows: list[Row]
    skipped: list[int]
    references: list[str]
    longest_reference: int
    actual: list[str]
    sets: list[EncodedSet]

    @property
    def encoded(self) -> list[EncodedRow]:
        """The rows as the last prompt file has them."""
        return self.sets[-1].rows

    @property
    def questions(self) -> list[list[int]]:
        """The questions as the last prompt file has them."""
        return self.sets[-1].questions

    @property
    def candidates(self) -> list[list[EncodedRow]]:
        """The choices as the last prompt file has them."""
        return self.sets[-1].candidates


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
    """Return the sides (the base alone, a written text, and every prompt file) and notes to print.

    The base alone, and with a text, is written as its users write it: under the template of the first prompt file, with
    the bos and the system turn that it has without a prompt.

    Args:
        text_prompt: the text; None takes the init text of the first file if the user wrote it, and "" leaves it out.

    Raises:
        UserError: a prompt does not fit the base, or was trained on another one and `allow_other` is false.
    """
    remarks = [check_same_base(file, base, prompt_file=name, allow_other=allow_other) for name, file in files.items()]
    notes = [f"note: {name}: {remark}" for name, remark in zip(files, remarks, strict=True) if remark]
    files = {name: bound_to(base, file) for name, file in files.items()}
    prompts = [
        Side(
            name,
            encoder_of(file.facts, base, prompt_file=name),
            SoftPromptEmbedding.from_tensor(file.weight),
            file.metadata["sha256"],
        )
        for name, file in files.items()
    ]
    alone = prompts[0].encoder.baseline
    sides = [Side(NO_PROMPT, alone)]
    first, file = next(iter(files.items()))
    own = file.facts.init_text if file.facts.init_text != DEFAULT_INIT_TEXT else ""
    text, whose = (own, f"the init text of {first}") if text_prompt is None else (text_prompt, "as given")
    if text:
        side, how = _text_side(text, alone, base)
        sides.append(side)
        notes.append(f"{TEXT_PROMPT}: {text!r}, {whose}, {how}")
    elif text_prompt is None:
        why = "started from softprompt's own init text" if file.facts.init_text else "names no init text"
        notes.append(f"no {TEXT_PROMPT}: {first} {why}; `text_prompt` gives one")
    return [*sides, *prompts], notes


def _text_side(text: str, alone: Encoder, base: Base) -> tuple[Side, str]:
    """The side of a written text: the system text of a chat template, or else in front; and how it is used."""
    if alone.template.is_chat:
        written = dataclasses.replace(alone.template, system=text)
        encoder = Encoder(
            base.tokenizer,
            written,
            bos_id=alone.bos_id,
            end_ids=alone.end_ids,
            last_turn_only=alone.last_turn_only,
        )
        try:
            shown = encoder.question_text(Row.asked("a"))
        except UserError:  # this template has no place for a system text
            shown = ""
        if text.strip() in shown:
            return Side(TEXT_PROMPT, encoder), "as the system text"
    embedding = base.model.get_input_embeddings()
    prompt = SoftPromptEmbedding.from_text(text, base.tokenizer, embedding)
    most = context_limit(base.model) or len(embedding_weight(embedding))
    if (count := prompt.num_virtual_tokens) > most:
        raise UserError(f"`text_prompt`: has {count:,} tokens, of which this base takes {most:,}; give a shorter one")
    return Side(TEXT_PROMPT, alone, prompt), f"as {prompt.num_virtual_tokens} tokens"


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


def encode_eval_set(rows: Sequence[Row], sides: Sequence[Side], config: EvaluateConfig, *, name: str) -> EvalSet:
    """Encode the rows for every side, cut as in training; candidates of the choices are never cut.

    Raises:
        UserError: no row has a response, a row's response is none of the choices, or two prompt files learnt other
            tokens of the same rows.
    """
    encoded, skipped = encode_rows(rows, sides[-1].encoder, max_length=config.max_length)
    if not encoded:
        raise UserError(f"`data` {name}: no row has a response within `max_length` {config.max_length}")
    without = set(skipped)
    rows = [row for row in rows if row.number not in without]
    actual = actual_choices(rows, config.choices, name=name) if config.choices else []
    known: dict[int, EncodedSet] = {}
    for side in reversed(sides):
        if id(side.encoder) not in known:
            scored = encoded if side is sides[-1] else _cut_alike(rows, encoded, side)
            candidates = encode_choices(rows, config.choices, side.encoder) if config.choices else []
            questions = side.encoder.questions(rows[: config.eval_generate]) if config.eval_generate else []
            known[id(side.encoder)] = EncodedSet(scored, questions, candidates)
    # as the tokenizer reads them: one that normalises could never answer in the row's own letters
    encoder, asked = sides[-1].encoder, rows[: config.eval_generate]
    ids = [encode_text(row.output, encoder.tokenizer) for row in asked]
    references, longest = [text_of(each, encoder) for each in ids], max(map(len, ids), default=0) + 1
    return EvalSet(name, rows, skipped, references, longest, actual, [known[id(side.encoder)] for side in sides])


def _cut_alike(rows: Sequence[Row], scored: Sequence[EncodedRow], side: Side) -> list[EncodedRow]:
    """Encode rows for a side so that the same tokens of every row are scored as in `scored`.

    Raises:
        UserError: this side has other tokens to score, so that its loss could not be compared.
    """
    found = side.encoder.encode(rows, max_length=sys.maxsize)
    cut = [each.until(row.num_supervised) for each, row in zip(found, scored, strict=True)]
    for row, one, other in zip(rows, cut, scored, strict=True):
        if one.supervised_ids != other.supervised_ids:
            raise UserError(
                f"`prompt_file` {side.name}: row {row.number} is answered in other tokens under its template"
                f" ({side.encoder.template.name}), so it cannot be compared; evaluate it alone"
            )
    return cut


def answer_limit(eval_set: EvalSet, sides: Sequence[Side], base: Base) -> int:
    """Return the most tokens of an answer where nobody says: twice the longest reference, as far as there is room."""
    limit, most = context_limit(base.model), 2 * eval_set.longest_reference
    if limit is None:
        return most
    longest = max(
        side.num_front + max(map(len, found.questions), default=0)
        for side, found in zip(sides, eval_set.sets, strict=True)
    )
    return max(min(most, limit - longest), 1)


def check_fit(eval_set: EvalSet, sides: Sequence[Side], base: Base, *, max_new_tokens: int) -> None:
    """Raise `UserError` if the base has no embedding for an id, or no room in its context for a row or an answer."""
    pairs = zip(sides, eval_set.sets, strict=True)
    for side, found in sorted(pairs, key=lambda pair: -pair[0].num_front):  # the side with the least room is named
        rows = [*found.rows, *chain(*found.candidates)]
        require_known_ids(base, (id for row in rows for id in row.input_ids))
        require_room(base.model, side.num_front, max(len(row.input_ids) for row in rows), option="max_length")
        if found.questions:
            longest = max(len(ids) for ids in found.questions)
            require_room(base.model, side.num_front, longest + max_new_tokens, option="max_new_tokens")


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
    with memory_named(config):
        pairs = zip(sides, eval_set.sets, strict=True)
        return [_run_side(side, found, base, config, advance=advance) for side, found in pairs]


@contextlib.contextmanager
def memory_named(config: EvaluateConfig) -> Iterator[None]:
    """Raise a `UserError` that names the options that help if memory runs out within the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"`per_device_eval_batch_size` {config.per_device_eval_batch_size}"
        raise UserError(f"out of memory with {size}; try a smaller one, or a smaller `max_length`") from error


def _run_side(
    side: Side, found: EncodedSet, base: Base, config: EvaluateConfig, *, advance: Callable[[int], object]
) -> Outcome:
    """Score, answer and classify the rows with one side."""
    model = side.model(base.model)

    def in_parts(function: Callable, rows: Sequence) -> list:
        """Apply `function` to all rows, part by part, so that the progress bar moves."""
        results = []
        for start in range(0, len(rows), PROGRESS_BAR_ROWS):
            part = rows[start : start + PROGRESS_BAR_ROWS]
            results += function(model, part, pad_token_id=base.pad_token_id)
            advance(len(part))
        return results

    answers = greedy_answers(
        model,
        side.encoder,
        found.questions,
        max_new_tokens=config.max_new_tokens or DEFAULT_NEW_TOKENS,
        batch_size=config.per_device_eval_batch_size,
        advance=advance,
    )
    scores = in_parts(row_scores, found.rows)
    return Outcome(side, scores, answers, in_parts(choice_log_probabilities, found.candidates))
