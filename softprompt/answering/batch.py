"""From a question to the answer's text, and its way to the screen."""

import secrets
import sys
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer, TextStreamer

from softprompt.config.commands import GenerateConfig
from softprompt.data.encoding import EncodedRow, encode_text
from softprompt.data.template import format_question
from softprompt.engine.batches import plan_batches
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.prompt.fit import context_limit
from softprompt.system import sources

# settings that a base's own generation_config.json may bring, and that no flag here asks for
NEUTRAL = {"num_beams": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "min_p": 0.0}
# the tutorial's question, for bases trained on text at large
TUTORIAL_QUESTIONS = ("考试有哪些技巧？", "What are the tips for the exam?")


def sample_question(base_name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What to ask when nothing is asked: of the shipped base's world, else the tutorial's question.

    In Chinese if the tokenizer spends at most a token per character on it, which says that it was made for Chinese.
    """
    if sources.is_builtin(base_name):
        return sources.SAMPLE_QUESTION
    chinese, english = TUTORIAL_QUESTIONS
    return chinese if len(encode_text(chinese, tokenizer)) <= len(chinese) else english


def draw_seed() -> int:
    """A fresh seed, small enough to type again."""
    return secrets.randbelow(2**31)


def print_answers(
    model: SoftPromptModel,
    tokenizer: PreTrainedTokenizerBase,
    config: GenerateConfig,
    *,
    seed: int,
    instruction: str,
) -> None:
    """Print the answers to stdout, as they come if it is a terminal; with `--compare`, the bare base's beneath."""
    sides = [("with the prompt", model)]
    if config.compare:
        sides.append(("without the prompt", model.base_model))
    stream = sys.stdout.isatty() and config.num_return_sequences == 1
    for title, side in sides:
        if config.compare:
            print(f"--- {title}", flush=True)
        torch.manual_seed(seed)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        question = {"instruction": instruction, "input": config.input}
        answers = generate_answers(side, tokenizer, config, **question, streamer=streamer)
        if not stream:
            print("\n\n".join(answers), flush=True)


def generate_answers(
    model: SoftPromptModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: GenerateConfig,
    *,
    instruction: str,
    input: str = "",
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """Answer one question `config.num_return_sequences` times.

    Args:
        model: a base with a prompt, or a base alone.

    Returns:
        What follows `Assistant: `, without special tokens.

    Raises:
        UserError: the question leaves no room for an answer.
    """
    ids = encode_text(format_question(instruction, input), tokenizer)
    (answers,) = generate_batch(model, tokenizer, config, questions=[ids], streamer=streamer)
    return [text_of(answer, tokenizer) for answer in answers]


def generate_batch(
    model: SoftPromptModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: GenerateConfig,
    *,
    questions: Sequence[list[int]],
    streamer: BaseStreamer | None = None,
) -> list[list[list[int]]]:
    """Answer questions, given as ids, in one batch.

    Returns:
        For every question the ids of its `config.num_return_sequences` answers: each ends with the eos id or where
        the question's own budget does, whatever the others may still write.

    Raises:
        UserError: a question leaves no room for an answer.
    """
    budgets = [new_token_budget(config, len(ids)) for ids in questions]
    longest = max(len(ids) for ids in questions)
    gaps = [longest - len(ids) for ids in questions]
    # a row's pads are its own first id: any other would be a token of the text for the repetition penalty
    padded = [ids[:1] * gap + ids for ids, gap in zip(questions, gaps, strict=True)]
    device = next(model.parameters()).device
    output = model.generate(
        torch.tensor(padded, device=device),  # [B, T]
        attention_mask=torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device),
        max_new_tokens=max(budgets),
        num_return_sequences=config.num_return_sequences,
        repetition_penalty=config.repetition_penalty,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        streamer=streamer,
        **NEUTRAL,
        **_sampling(config),
    )
    answers = output[:, longest:].reshape(len(questions), config.num_return_sequences, -1).tolist()
    return [
        [_until_eos(answer[:budget], tokenizer.eos_token_id) for answer in several]
        for several, budget in zip(answers, budgets, strict=True)
    ]


def new_token_budget(config: GenerateConfig, question_tokens: int) -> int:
    """How many tokens the answer may have.

    Raises:
        UserError: `--max-length`, which counts the question too, is used up by it.
    """
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if question_tokens >= config.max_length:
        raise UserError(
            f"--max-length {config.max_length}: the question alone has {question_tokens} tokens;"
            " raise it, or limit only the answer with --max-new-tokens"
        )
    return config.max_length - question_tokens


def _sampling(config: GenerateConfig) -> dict[str, object]:
    """Sampling arguments; greedy decoding must not be given any, even those of the base's own config."""
    if not config.do_sample:
        return {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}
    return {
        "do_sample": True,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "temperature": config.temperature,
    }


def _until_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """An answer with its eos and without the pads behind it."""
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids


def text_of(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """An answer's text, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True)


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
