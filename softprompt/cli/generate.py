"""Answer a question, or a file of them, with a frozen causal language model and a tuned soft prompt."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import ChatConfig, GenerateConfig
from softprompt.config.options import flags_in
from softprompt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from softprompt.base.loading import Base
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.file import PromptFile
    from softprompt.tokens.template import Template

# the tutorial's question in Chinese and English, for bases trained on general text
TUTORIAL_QUESTIONS = ("考试有哪些技巧？", "What are the tips for the exam?")


def main(argv: Sequence[str] | None = None, prog: str = "softprompt generate") -> None:
    """Put the answers on stdout or into the output file, and everything else on stderr."""
    config = parse(GenerateConfig, argv, prog=prog, description=__doc__, positional="instruction")
    if config.instructions is None:
        answer_one(config)
    else:
        answer_many(config)


def answer_one(config: GenerateConfig) -> None:
    """Check that the question fits, and print the seed, the question and the answers."""
    instruction = read_standard_input() if config.instruction == "-" else config.instruction
    if instruction is not None and not instruction.strip():
        raise UserError("`instruction`: the question is empty; type one, or leave the flag out for a sample question")
    model, base, file = load_prompted_base(config)

    from softprompt.answering.batch import draw_seed
    from softprompt.data.row import Row
    from softprompt.tokens.template import template_named

    template = template_named(file.facts.template, prompt_file=config.prompt_file)
    if instruction is None:
        instruction = sample_question(base.name, base.tokenizer)
    question = Row.asked(instruction, config.input)
    check_question(model, base, config, template.question(question))
    seed = draw_seed() if config.seed is None else config.seed
    if config.samples:
        print(f"seed: {seed}", file=sys.stderr)
    print(template.question(question), file=sys.stderr, flush=True)
    for title, side in sides_of(model, config.compare):
        if title:
            print(f"--- {title}", flush=True)
        print_answers(side, base.tokenizer, config, template, seed=seed, instruction=instruction, input=config.input)


def answer_many(config: GenerateConfig) -> None:
    """Answer every row of `--instructions` into the output file."""
    from softprompt.answering.job import answer_rows
    from softprompt.answering.output import check_answer_file
    from softprompt.cli.terminal import TerminalJobReport
    from softprompt.cli.text import describe_notes
    from softprompt.data.splits import load_questions

    settle()
    check_answer_file(config)
    rows, name, notes, _ = load_questions(
        config.instructions, columns=config.columns, data_config=config.data_config, data_split=config.data_split
    )
    for line in describe_notes(notes):
        print(line, file=sys.stderr)
    model, base, prompt = load_prompted_base(config)
    answer_rows(model, base, config, rows=rows, name=name, prompt=prompt, report=TerminalJobReport())


def load_prompted_base(config: ChatConfig) -> "tuple[SoftPromptModel, Base, PromptFile]":
    """Return the base with the prompt in front, the base, and the prompt file; notes on them go to stderr."""
    from softprompt.base.device import resolve_device
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.embedding import SoftPromptEmbedding
    from softprompt.prompt.file import load_prompt
    from softprompt.prompt.fit import check_same_base, load_prompt_base

    settle()
    file = load_prompt(config.prompt_file)
    device = resolve_device(config.device)
    base = load_prompt_base(
        file.facts, prompt_file=config.prompt_file, model=config.model, device=device, precision=config.precision
    )
    remark = check_same_base(file, base, prompt_file=config.prompt_file, allow_other=config.allow_other_base)
    for note in (*base.notes, remark):
        if note:
            print(flags_in(f"note: {note}"), file=sys.stderr)
    return SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(file.weight)), base, file


def check_question(model: "SoftPromptModel", base: "Base", config: ChatConfig, question: str) -> None:
    """Raise `UserError` if the base has no embedding for an id, or if the question leaves no room for an answer."""
    from softprompt.answering.batch import new_token_budget
    from softprompt.base.loading import require_known_ids
    from softprompt.prompt.fit import require_room
    from softprompt.tokens.encoding import encode_text

    ids = encode_text(question, base.tokenizer)
    require_known_ids(base, ids)
    limit = "max_new_tokens" if config.max_new_tokens else "max_length"
    text_tokens = len(ids) + new_token_budget(config, len(ids))
    require_room(base.model, model.soft_prompt.num_virtual_tokens, text_tokens, option=limit)


def sides_of(model: "SoftPromptModel", compare: bool) -> list:
    """Return the models that answer, each with its title: the one with the prompt, and to compare also the base."""
    return [("with the prompt", model), ("without the prompt", model.base_model)] if compare else [("", model)]


def print_answers(
    side: "SoftPromptModel | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    config: ChatConfig,
    template: "Template",
    *,
    seed: int,
    instruction: str,
    input: str = "",
) -> None:
    """Print the answers to stdout; at a terminal, a single answer is printed token by token."""
    import torch
    from transformers.generation.streamers import TextStreamer

    from softprompt.answering.batch import generate_answers

    stream = sys.stdout.isatty() and config.num_return_sequences == 1
    torch.manual_seed(seed)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    answers = generate_answers(
        side, tokenizer, config, instruction=instruction, input=input, template=template, streamer=streamer
    )
    if not stream:
        print("\n\n".join(answers), flush=True)


def sample_question(base_name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the question for a user who gives none: one that the shipped base knows, else the tutorial's question.

    The latter is in Chinese if the tokenizer needs at most one token per character of it, as those made for Chinese do.
    """
    from softprompt.system import sources
    from softprompt.tokens.encoding import encode_text

    if sources.is_builtin(base_name):
        return sources.SAMPLE_QUESTION
    chinese, english = TUTORIAL_QUESTIONS
    return chinese if len(encode_text(chinese, tokenizer)) <= len(chinese) else english


def read_standard_input() -> str:
    """Read all of standard input, as UTF-8 whatever the locale."""
    if sys.stdin is None:
        raise UserError("`instruction` -: there is no standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError("`instruction` -: standard input is not UTF-8 text") from error
