"""Answers to questions given as token ids, in one batch or in many: lengths, sampling arguments, the cut at eos."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from softprompt.config.commands import DEFAULT_MAX_LENGTH, Sampling
from softprompt.engine.batches import plan_batches
from softprompt.engine.decoding import require_finite
from softprompt.engine.families import can_pack
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.prompt.fit import context_limit
from softprompt.tokens.encoding import EncodedRow, decode_text, encode_text
from softprompt.tokens.template import TUTORIAL, Template

# neutral values for settings that a base's generation_config.json may bring and that no option here controls
NEUTRAL = {"num_beams": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "min_p": 0.0}
ANSWERED_TOGETHER = 8  # questions in one batch, where nobody says


def generate_batch(
    model: SoftPromptModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    questions: Sequence[list[int]],
    streamer: BaseStreamer | None = None,
) -> list[list[list[int]]]:
    """Answer questions, given as ids, in one batch.

    Args:
        model: a base with a prompt, or a base alone.

    Returns:
        For every question the ids of its `num_return_sequences` answers. Each ends with the eos id or at the question's
        own budget of new tokens, even if other answers of the batch are longer.

    Raises:
        UserError: a question leaves no room for an answer.
        NotFiniteLogits: no token can be chosen for a question; `row` is its place in `questions`.
    """
    budgets = [new_token_budget(sampling, len(ids)) for ids in questions]
    longest = max(len(ids) for ids in questions)
    gaps = [longest - len(ids) for ids in questions]
    # Rows are padded with their own first id. The repetition penalty counts pads as text, and so any other id as used.
    padded = [ids[:1] * gap + ids for ids, gap in zip(questions, gaps, strict=True)]
    device = next(model.parameters()).device
    generate: Any = model.generate  # causal LMs have `generate`, the class PreTrainedModel does not
    output = generate(
        torch.tensor(padded, device=device),  # [B, T]
        attention_mask=torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device),
        max_new_tokens=max(budgets),
        num_return_sequences=sampling.num_return_sequences,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        streamer=streamer,
        **({} if _decodes_here(model) else {"logits_processor": [FiniteLogits()]}),
        **NEUTRAL,
        **_draws(sampling),
    )
    answers = output[:, longest:].reshape(len(questions), sampling.num_return_sequences, -1).tolist()
    return [
        [_until_eos(answer[:budget], tokenizer.eos_token_id) for answer in several]
        for several, budget in zip(answers, budgets, strict=True)
    ]


def generate_answers(
    model: SoftPromptModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    instruction: str,
    input: str = "",
    template: Template = TUTORIAL,
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """Answer one question, given as text, `num_return_sequences` times.

    Args:
        model: a base with a prompt, or a base alone.

    Returns:
        The texts of the answers, without the question and without special tokens.

    Raises:
        UserError: the question leaves no room for an answer.
    """
    ids = encode_text(template.question(instruction, input), tokenizer)
    (answers,) = generate_batch(model, tokenizer, sampling, questions=[ids], streamer=streamer)
    return [text_of(answer, tokenizer) for answer in answers]


def draw_seed() -> int:
    """Draw a seed that is short enough to type again."""
    return secrets.randbelow(2**31)


def new_token_budget(sampling: Sampling, question_tokens: int) -> int:
    """Return how many tokens an answer may have.

    Raises:
        UserError: the question alone uses up `max_length`, which counts question and answer.
    """
    if sampling.max_new_tokens is not None:
        return sampling.max_new_tokens
    limit = DEFAULT_MAX_LENGTH if sampling.max_length is None else sampling.max_length
    if question_tokens >= limit:
        raise UserError(
            f"`max_length` {limit}: the question alone has {question_tokens} tokens;"
            " raise it, or limit only the answer with `max_new_tokens`"
        )
    return limit - question_tokens


def greedy_answers(
    model: SoftPromptModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], object] | None = None,
) -> list[str]:
    """Return the texts of the greedy answers, without special tokens, in the order of the questions.

    Args:
        model: a base with a prompt, or a base alone.
        questions: ids of each question, as `encoding.encode_question` gives them.
        advance: called after every batch with its number of questions.
    """
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    texts: dict[int, str] = {}
    for places in plan_batches([len(ids) for ids in questions], batch_size):
        batch = generate_batch(model, tokenizer, sampling, questions=[questions[place] for place in places])
        texts |= {place: text_of(answer, tokenizer) for place, (answer,) in zip(places, batch, strict=True)}
        if advance is not None:
            advance(len(places))
    return [texts[place] for place in range(len(questions))]


def answers_beside_references(
    model: SoftPromptModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EncodedRow], *, batch_size: int
) -> list[dict[str, str]]:
    """Return the texts of question, greedy answer and reference of every encoded row.

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
            "question": decode_text(question, tokenizer),
            "answer": answer,
            "reference": text_of(row.input_ids[len(question) :], tokenizer),
        }
        for question, answer, row in zip(questions, answers, rows, strict=True)
    ]


def text_of(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of an answer, without special tokens."""
    return decode_text(ids, tokenizer, skip_special_tokens=True)


class FiniteLogits(LogitsProcessor):
    """Checks the logits where transformers' own loop decodes, as `decode` checks its own."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` `[B, V]`; raises `NotFiniteLogits`."""
        require_finite(scores)
        return scores


def _decodes_here(model: SoftPromptModel | PreTrainedModel) -> bool:
    """Whether `engine/decoding.py` decodes."""
    return isinstance(model, SoftPromptModel) and can_pack(model.base_model)


def _draws(sampling: Sampling) -> dict[str, object]:
    """Return the sampling arguments; greedy decoding gets None for each, which also overrides the base's own config."""
    if not sampling.samples:
        return {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}
    return {
        "do_sample": True,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "temperature": sampling.temperature,
    }


def _until_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """Return an answer up to its eos, without the pads behind it."""
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids
