"""Greedy answers to many questions, for exact match: batched by length, given back in the questions' order."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.answering.batch import generate_batch, text_of
from softprompt.base.loading import context_limit
from softprompt.config.commands import GenerateConfig
from softprompt.data.encoding import EncodedRow
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.padding import plan_batches


def greedy_answers(
    model: SoftPromptModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], object] | None = None,
) -> list[str]:
    """The answers' texts, without special tokens.

    Args:
        model: a base with a prompt, or a base alone.
        questions: ids of each question, as `encoding.encode_question` gives them.
        advance: told after every batch how many questions it had.
    """
    config = GenerateConfig(do_sample=False, max_new_tokens=max_new_tokens)
    texts: dict[int, str] = {}
    for places in plan_batches([len(ids) for ids in questions], batch_size):
        batch = generate_batch(model, tokenizer, config, questions=[questions[place] for place in places])
        texts |= {place: text_of(answer, tokenizer) for place, (answer,) in zip(places, batch, strict=True)}
        if advance is not None:
            advance(len(places))
    return [texts[place] for place in range(len(questions))]


def answers_beside_references(
    model: SoftPromptModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EncodedRow], *, batch_size: int
) -> list[dict[str, str]]:
    """Question, greedy answer and reference of rows as they were encoded.

    An answer may be twice as long as the longest reference, if the base's context has room for that.
    """
    questions = [row.input_ids[: len(row.input_ids) - row.num_supervised] for row in rows]
    longest = 2 * max(row.num_supervised for row in rows)
    if (limit := context_limit(model.base_model)) is not None:
        room = limit - model.soft_prompt.num_virtual_tokens - max(map(len, questions))
        longest = min(longest, room)  # at least 1, since a row with its response fits
    answers = greedy_answers(model, tokenizer, questions, max_new_tokens=longest, batch_size=batch_size)
    return [
        {
            "question": tokenizer.decode(question),
            "answer": answer,
            "reference": tokenizer.decode(row.input_ids[len(question) :], skip_special_tokens=True),
        }
        for question, answer, row in zip(questions, answers, rows, strict=True)
    ]
