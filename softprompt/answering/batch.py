"""Answers to questions given as token ids, in one batch or in many: lengths, sampling arguments, the cut at eos."""

import functools
import secrets
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from softprompt.config.commands import DEFAULT_MAX_LENGTH, DEFAULT_NEW_TOKENS, Sampling
from softprompt.data.row import Row
from softprompt.engine.decoding import require_finite
from softprompt.engine.front import Front
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.packs.families import can_pack
from softprompt.prompt.bank import BankedPrompt
from softprompt.tokens.encoding import Encoder, decode_text

# neutral values for settings that a base's generation_config.json may bring and that no option here controls
NEUTRAL = {"num_beams": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "min_p": 0.0}
ANSWERED_TOGETHER = 8  # questions in one batch, where nobody says


def generate_batch(
    model: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    sampling: Sampling,
    *,
    questions: Sequence[list[int]],
    fronts: Sequence[Front] | None = None,
    ensemble: Sequence[Front] = (),
    streamer: BaseStreamer | None = None,
) -> list[list[list[int]]]:
    """Answer questions, given as ids, in one batch; one by one where a batch might differ (`answers_one_by_one`).

    Args:
        model: a base with a prompt, or a base alone.
        encoder: how the questions were written, and what ends their answers.
        fronts: what stands in front of every question, in place of the model's own front.
        ensemble: the members of an ensemble, of which all stand in front of each question.

    Returns:
        For every question the ids of its `num_return_sequences` answers. Each ends with one of the encoder's `end_ids`
        or at the question's own budget of new tokens, even if other answers of the batch are longer.

    Raises:
        UserError: a question leaves no room for an answer.
        NotFiniteLogits: no token can be chosen for a question; `row` is its place in `questions`.
    """
    if len(questions) > 1 and answers_one_by_one(model):
        alone = functools.partial(generate_batch, model, encoder, sampling, ensemble=ensemble)
        own = [None] * len(questions) if fronts is None else [[front] for front in fronts]
        pairs = zip(questions, own, strict=True)
        return [answers for ids, front in pairs for answers in alone(questions=[ids], fronts=front)]
    tokenizer, end_ids = encoder.tokenizer, encoder.end_ids
    budgets = [new_token_budget(sampling, len(ids), encoder) for ids in questions]
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
        eos_token_id=end_ids,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        streamer=streamer,
        **({} if _decodes_here(model) else {"logits_processor": [FiniteLogits()]}),
        **({} if fronts is None else {"prompts": fronts}),
        **({"ensemble": ensemble} if ensemble else {}),
        **NEUTRAL,
        **_draws(sampling),
    )
    answers = output[:, longest:].reshape(len(questions), sampling.num_return_sequences, -1).tolist()
    return [
        [_until_end(answer[:budget], end_ids) for answer in several]
        for several, budget in zip(answers, budgets, strict=True)
    ]


def answers_one_by_one(model: SoftPromptModel | PreTrainedModel) -> bool:
    """Whether the questions of a batch are answered one by one.

    Only of the families that can pack it is tested that the pads of other rows change nothing; a recurrent state, for
    one, runs through them.
    """
    return not can_pack(model.base_model if isinstance(model, SoftPromptModel) else model)


def front_of(prompt: BankedPrompt) -> Front:
    """Return what stands in front of the questions that `prompt.encoder` writes."""
    return Front(prompt.encoder.before_ids, prompt.prompt.weight, prompt.encoder.after_ids)


def kind_of(encoder: Encoder) -> tuple[object, ...]:
    """Return what the questions of a batch have in common: what ends their answers, and how these are limited."""
    return encoder.template.name, *encoder.end_ids


def generate_answers(
    model: SoftPromptModel | PreTrainedModel,
    encoder: Encoder,
    sampling: Sampling,
    row: Row,
    *,
    ensemble: Sequence[Front] = (),
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """Answer the question of one row `num_return_sequences` times.

    Args:
        model: a base with a prompt, or a base alone.

    Returns:
        The texts of the answers, without the question and without special tokens.

    Raises:
        UserError: the question leaves no room for an answer.
    """
    (answers,) = generate_batch(
        model, encoder, sampling, questions=encoder.questions([row]), ensemble=ensemble, streamer=streamer
    )
    return [text_of(answer, encoder) for answer in answers]


def draw_seed() -> int:
    """Draw a seed that is short enough to type again."""
    return secrets.randbelow(2**31)


def limit_of(sampling: Sampling, encoder: Encoder) -> str:
    """The name of the option that limits an answer: `max_new_tokens`, or `max_length` as the tutorial has it."""
    other_template = sampling.max_length is None and encoder.template.name != "tutorial"
    return "max_new_tokens" if sampling.max_new_tokens is not None or other_template else "max_length"


def new_token_budget(sampling: Sampling, question_tokens: int, encoder: Encoder) -> int:
    """Return how many tokens an answer may have.

    Raises:
        UserError: the question alone uses up `max_length`, which counts question and answer.
    """
    if limit_of(sampling, encoder) == "max_new_tokens":
        return DEFAULT_NEW_TOKENS if sampling.max_new_tokens is None else sampling.max_new_tokens
    limit = DEFAULT_MAX_LENGTH if sampling.max_length is None else sampling.max_length
    if question_tokens >= limit:
        raise UserError(
            f"`max_length` {limit}: the question alone has {question_tokens} tokens;"
            " raise it, or limit only the answer with `max_new_tokens`"
        )
    return limit - question_tokens


def text_of(ids: list[int], encoder: Encoder) -> str:
    """Return the text of an answer, without the id that ends it and without special tokens."""
    ids = ids[:-1] if ids and ids[-1] in encoder.end_ids else ids
    return decode_text(ids, encoder.tokenizer, skip_special_tokens=True)


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


def _until_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """Return an answer up to the id that ends it, without the pads behind it."""
    return next((ids[: place + 1] for place, id in enumerate(ids) if id in end_ids), ids)
