"""Greedy answers to many questions: a row that is done leaves, and the next question takes its place at once.

Which rows share a pass follows from the questions and their order alone, so the same questions get the same answers. A
sampled answer draws from one generator for its whole batch, so sampled questions stay in batches (`batch.py`).
"""

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedModel

from softprompt.answering.batch import answers_one_by_one, generate_batch, text_of
from softprompt.answering.worker import chooser
from softprompt.config.commands import Sampling
from softprompt.engine.continuous import ContinuousDecoding, RunningRow
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import NotFiniteLogits
from softprompt.packs.batches import common_opening, plan_batches
from softprompt.prompt.fit import context_limit
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow, Encoder, decode_text

WORTH_A_PASS = 32  # fewest ids that all questions begin with which are worth a pass of their own


def queued_ids(
    model: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    sampling: Sampling,
    *,
    questions: Sequence[list[int]],
    budgets: Sequence[int],
    fronts: Sequence[Front] | None = None,
    batch_size: int,
) -> Iterator[tuple[int, list[int]]]:
    """Give the place of every question with the ids of its greedy answer, in the order in which they are done.

    Args:
        questions: ids of each question, at least one; they are taken up in this order.
        budgets: most ids of each answer.
        fronts: what stands in front of every question, in place of the model's own front.
        batch_size: how many rows run at the same time.

    Raises:
        NotFiniteLogits: no token can be chosen for a question; `row` is its place in `questions`.
    """
    if isinstance(model, SoftPromptModel):
        base, front, caches = model.base_model, model.front, model.front_caches
    else:
        base, front, caches = model, Front(), FrontCaches()
    opening: list[int] = []
    if fronts is None:
        # what all questions begin with becomes a part of the front, so that those that join later need not read it
        opening = common_opening([ids[:-1] for ids in questions])
        opening = opening if len(opening) >= WORTH_A_PASS else []
        fronts = [Front(front.before, front.prompt, (*front.after, *opening))] * len(questions)
    choose = chooser(sampling, 0, base.device)
    rows = [
        RunningRow(ids[len(opening) :], front, budget, encoder.end_ids, choose, opening)
        for ids, front, budget in zip(questions, fronts, budgets, strict=True)
    ]
    places = {row: place for place, row in enumerate(rows)}
    for row in ContinuousDecoding(base, caches, max_rows=batch_size).answered(rows):
        if row.failed:
            raise NotFiniteLogits(places[row])
        yield places[row], row.new_ids


def greedy_answers(
    model: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    questions: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    ensemble: Sequence[Front] = (),
    advance: Callable[[int], object] = lambda rows: None,
) -> list[str]:
    """Return the texts of the greedy answers, without special tokens, in the order of the questions.

    Args:
        model: a base with a prompt, or a base alone.
        questions: ids of each question, as `Encoder.questions` gives them.
        advance: called with the number of questions that have been answered since the last call.
    """
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    texts: dict[int, str] = {}
    batches = plan_batches([len(ids) for ids in questions], batch_size)
    if not (ensemble or answers_one_by_one(model)) and all(questions):
        order = [place for places in batches for place in places]
        asked, budgets = [questions[place] for place in order], [max_new_tokens] * len(order)
        for number, answer in queued_ids(
            model, encoder, sampling, questions=asked, budgets=budgets, batch_size=batch_size
        ):
            texts[order[number]] = text_of(answer, encoder)
            advance(1)
    else:
        for places in batches:
            asked = [questions[place] for place in places]
            batch = generate_batch(model, encoder, sampling, questions=asked, ensemble=ensemble)
            texts |= {place: text_of(answer, encoder) for place, (answer,) in zip(places, batch, strict=True)}
            advance(len(places))
    return [texts[place] for place in range(len(questions))]


def answers_beside_references(
    model: SoftPromptModel, encoder: Encoder, rows: Sequence[EncodedRow], *, batch_size: int
) -> list[dict[str, str]]:
    """Return the texts of question, greedy answer and reference of every encoded row that has a question.

    Of a conversation the last answer is the reference. An answer may be twice as long as the longest reference, if the
    base's context has room for that.
    """
    pairs = [pair for row in rows if (pair := _question_and_reference(row))[0]]
    if not pairs:
        return []
    questions = [question for question, _ in pairs]
    longest = 2 * max(len(reference) for _, reference in pairs)
    if (limit := context_limit(model.base_model)) is not None:
        room = limit - len(model.front) - max(map(len, questions))
        longest = min(longest, room)  # at least 1, since a row with its response fits
    answers = greedy_answers(model, encoder, questions, max_new_tokens=longest, batch_size=batch_size)
    return [
        {
            "question": decode_text(question, encoder.tokenizer),
            "answer": answer,
            "reference": text_of(reference, encoder),
        }
        for (question, reference), answer in zip(pairs, answers, strict=True)
    ]


def _question_and_reference(row: EncodedRow) -> tuple[list[int], list[int]]:
    """Cut a row in front of its last answer, and behind it."""
    learnt = [place for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
    start = stop = learnt[-1] + 1
    while start > 0 and row.labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return row.input_ids[:start], row.input_ids[start:stop]
