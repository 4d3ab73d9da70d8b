#!/usr/bin/env python
"""Answer a question with a frozen causal language model and a tuned soft prompt."""

import sys
from collections.abc import Sequence

from softprompt.command import parse, quiet_libraries, run
from softprompt.config import GenerateConfig
from softprompt.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Generate as the command line says: the answers on stdout, everything else on stderr."""
    config = parse(GenerateConfig, argv, prog="generate.py", description=__doc__)

    from softprompt.base import check_same_base, load_base, require_room, resolve_device
    from softprompt.encoding import encode_text, format_question
    from softprompt.generation import draw_seed, new_token_budget, print_answers, sample_question
    from softprompt.model import SoftPromptModel
    from softprompt.prompt import SoftPromptEmbedding
    from softprompt.prompt_file import load_prompt

    quiet_libraries()
    device = resolve_device(config.device)
    file = load_prompt(config.prompt_file)
    name = config.model or file.metadata.get("base")
    if not name:
        raise UserError(f"{config.prompt_file}: does not say which base it was made for; pass --model")
    try:
        instruction = sys.stdin.read().strip() if config.instruction == "-" else config.instruction
    except UnicodeDecodeError as error:
        raise UserError("--instruction -: standard input is not UTF-8 text") from error
    if instruction is not None and not instruction.strip():
        raise UserError("--instruction: the question is empty; type one, or leave the flag out for a sample question")

    base = load_base(name, device=device, precision=config.precision)
    remark = check_same_base(file.metadata, base, prompt_file=config.prompt_file, allow_other=config.allow_other_base)
    if instruction is None:
        instruction = sample_question(name, base.tokenizer)
    for note in (*base.notes, remark):
        if note:
            print(f"note: {note}", file=sys.stderr)
    model = SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(file.weight))
    question_tokens = len(encode_text(format_question(instruction, config.input), base.tokenizer))
    text_tokens = question_tokens + new_token_budget(config, question_tokens)
    require_room(
        base.model, len(file.weight), text_tokens, flag="--max-new-tokens" if config.max_new_tokens else "--max-length"
    )

    seed = draw_seed() if config.seed is None else config.seed
    if config.do_sample:
        print(f"seed: {seed}", file=sys.stderr)
    print(format_question(instruction, config.input), file=sys.stderr, flush=True)
    print_answers(model, base.tokenizer, config, seed=seed, instruction=instruction)


if __name__ == "__main__":
    sys.exit(run(main, prog="generate.py"))
