#!/usr/bin/env python
"""Answer a question, or a file of them, with a frozen causal language model and a tuned soft prompt."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt.cli.program import quiet_libraries, run
from softprompt.config.command_line import parse
from softprompt.config.commands import GenerateConfig
from softprompt.errors import UserError

if TYPE_CHECKING:
    from softprompt.base.loading import Base
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.file import PromptFile


def main(argv: Sequence[str] | None = None) -> None:
    """Generate as the command line says: answers on stdout or in the output file, everything else on stderr."""
    config = parse(GenerateConfig, argv, prog="generate.py", description=__doc__)
    quiet_libraries()
    if config.instructions is None:
        answer_one(config)
    else:
        answer_many(config)


def answer_one(config: GenerateConfig) -> None:
    """Check that the question fits, and print seed, question and answers."""
    from softprompt.answering.batch import draw_seed, new_token_budget, print_answers, sample_question
    from softprompt.base.loading import require_known_ids
    from softprompt.data.encoding import encode_text
    from softprompt.data.template import format_question
    from softprompt.prompt.fit import require_room

    instruction = read_standard_input() if config.instruction == "-" else config.instruction
    if instruction is not None and not instruction.strip():
        raise UserError("--instruction: the question is empty; type one, or leave the flag out for a sample question")
    model, base, _ = load_prompted_base(config)
    if instruction is None:
        instruction = sample_question(base.name, base.tokenizer)
    question = encode_text(format_question(instruction, config.input), base.tokenizer)
    require_known_ids(base, question)
    text_tokens = len(question) + new_token_budget(config, len(question))
    limit = "--max-new-tokens" if config.max_new_tokens else "--max-length"
    require_room(base.model, model.soft_prompt.num_virtual_tokens, text_tokens, flag=limit)

    seed = draw_seed() if config.seed is None else config.seed
    if config.do_sample:
        print(f"seed: {seed}", file=sys.stderr)
    print(format_question(instruction, config.input), file=sys.stderr, flush=True)
    print_answers(model, base.tokenizer, config, seed=seed, instruction=instruction)


def answer_many(config: GenerateConfig) -> None:
    """Answer every row of `--instructions` into the output file."""
    from softprompt.answering.job import answer_rows
    from softprompt.answering.output import check_answer_file
    from softprompt.data.splits import load_questions

    check_answer_file(config)
    rows, name = load_questions(config.instructions)
    model, base, prompt = load_prompted_base(config)
    answer_rows(model, base, config, rows=rows, name=name, prompt_sha256=prompt.metadata["sha256"])


def load_prompted_base(config: GenerateConfig) -> "tuple[SoftPromptModel, Base, PromptFile]":
    """The prompt file, the base it was made for, and the model of both."""
    from softprompt.base.device import resolve_device
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.embedding import SoftPromptEmbedding
    from softprompt.prompt.file import load_prompt
    from softprompt.prompt.fit import check_same_base, load_prompt_base

    file = load_prompt(config.prompt_file)
    base = load_prompt_base(
        file.metadata,
        prompt_file=config.prompt_file,
        model=config.model,
        device=resolve_device(config.device),
        precision=config.precision,
    )
    remark = check_same_base(file.metadata, base, prompt_file=config.prompt_file, allow_other=config.allow_other_base)
    for note in (*base.notes, remark):
        if note:
            print(f"note: {note}", file=sys.stderr)
    return SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(file.weight)), base, file


def read_standard_input() -> str:
    """All of standard input, as UTF-8 whatever the locale."""
    if sys.stdin is None:
        raise UserError("--instruction -: there is no standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError("--instruction -: standard input is not UTF-8 text") from error


if __name__ == "__main__":
    sys.exit(run(main, prog="generate.py"))
