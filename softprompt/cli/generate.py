"""Answer a question, or a file of them, with a frozen causal language model and a tuned soft prompt."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import ChatConfig, GenerateConfig
from softprompt.config.options import flags_in
from softprompt.errors import UserError
from softprompt.system.foreign import visible, visible_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from softprompt.base.loading import Base
    from softprompt.data.row import Row
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.bank import BankedPrompt
    from softprompt.prompt.file import PromptFile
    from softprompt.tokens.encoding import Encoder

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
    model, base, _, encoder = load_prompted_base(config)
    members = load_ensemble(config, base)

    from softprompt.answering.batch import draw_seed
    from softprompt.data.row import Row

    if instruction is None:
        instruction = sample_question(base.name, base.tokenizer)
    question = Row.asked(instruction, config.input)
    check_question(model, base, config, encoder, question, members)
    seed = draw_seed() if config.seed is None else config.seed
    if config.samples:
        print(f"seed: {seed}", file=sys.stderr)
    print(visible_text(encoder.question_text(question)), file=sys.stderr, flush=True)
    with_it = "with the ensemble" if members else "with the prompt"
    print_answers(
        model, encoder, config, question, seed=seed, title=with_it if config.compare else "", ensemble=members
    )
    if config.compare:
        baseline = encoder.baseline
        print_answers(model.base_model, baseline, config, question, seed=seed, title="without the prompt")


def answer_many(config: GenerateConfig) -> None:
    """Answer every row of `--instructions` into the output file."""
    from softprompt.answering.job import answer_rows
    from softprompt.answering.output import answers_path, refuse_sources, reserved_answers
    from softprompt.cli.terminal import TerminalJobReport
    from softprompt.cli.text import describe_answering, describe_notes
    from softprompt.data.splits import load_questions
    from softprompt.prompt.bank import PromptBank, load_for_rows, prompt_files_of

    assert config.instructions is not None
    settle()
    report = TerminalJobReport()
    with reserved_answers(config, report.say) as replaces:
        rows, name, notes, _ = load_questions(
            config.instructions, columns=config.columns, data_config=config.data_config, data_split=config.data_split
        )
        for line in describe_notes(notes):
            report.say(line)
        files = prompt_files_of(rows, questions=config.instructions, default=config.prompt_file)
        refuse_sources(answers_path(config), prompt_files=[*files, *config.ensemble], rows=None, option="instructions")
        if files and config.ensemble:
            raise UserError(f"`ensemble`: the rows of {name} name prompt files of their own; drop one of the two")
        if files:  # the base is that of the first row's prompt
            config = dataclasses.replace(config, prompt_file=files[0])
        model, base, prompt, encoder = load_prompted_base(config)
        for line in describe_answering(base):
            report.say(line)
        bank = PromptBank(base, allow_other=config.allow_other_base)
        prompts = load_for_rows(bank, files, rows, name) if files else ()
        for each in dict.fromkeys(prompts):
            if each.remark and each.name != config.prompt_file:  # of which `load_prompted_base` has told
                report.say(f"note: {each.name}: {each.remark}")
        answer_rows(
            model,
            base,
            encoder,
            config,
            rows=rows,
            name=name,
            prompt=prompt,
            prompts=prompts,
            ensemble=load_ensemble(config, base),
            report=report,
            replaces=replaces,
        )


def load_prompted_base(config: ChatConfig) -> "tuple[SoftPromptModel, Base, PromptFile, Encoder]":
    """Return the base with the prompt, the base, the prompt file and its encoder; notes on them go to stderr."""
    from softprompt.base.device import resolve_device
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.embedding import SoftPromptEmbedding
    from softprompt.prompt.encoder import bound_to, encoder_of
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
            print(visible(flags_in(f"note: {note}")), file=sys.stderr)
    file = bound_to(base, file)
    encoder = encoder_of(file.facts, base, prompt_file=config.prompt_file)
    prompt = SoftPromptEmbedding.from_tensor(file.weight)
    return SoftPromptModel(base.model, prompt, encoder.before_ids, encoder.after_ids), base, file, encoder


def load_ensemble(config: GenerateConfig, base: "Base") -> "list[BankedPrompt]":
    """Return the members of `--ensemble`; notes on them go to stderr."""
    from softprompt.prompt.bank import PromptBank, load_members

    members = load_members(PromptBank(base, allow_other=config.allow_other_base), config.ensemble)
    for each in members[1:]:  # of the first `load_prompted_base` has told
        if each.remark:
            print(visible(flags_in(f"note: {each.name}: {each.remark}")), file=sys.stderr)
    return members


def check_question(
    model: "SoftPromptModel",
    base: "Base",
    config: ChatConfig,
    encoder: "Encoder",
    question: "Row",
    ensemble: "Sequence[BankedPrompt]" = (),
) -> None:
    """Raise `UserError` if the base has no embedding for an id, or if the question leaves no room for an answer."""
    from softprompt.answering.batch import front_of, limit_of, new_token_budget
    from softprompt.base.loading import require_known_ids
    from softprompt.prompt.fit import require_room

    (ids,) = encoder.questions([question])
    require_known_ids(base, ids)
    text_tokens = len(ids) + new_token_budget(config, len(ids), encoder)
    longest = max(map(len, [model.front, *map(front_of, ensemble)]))
    require_room(base.model, longest, text_tokens, option=limit_of(config, encoder))


def print_answers(
    side: "SoftPromptModel | PreTrainedModel",
    encoder: "Encoder",
    config: ChatConfig,
    question: "Row",
    *,
    seed: int,
    title: str = "",
    ensemble: "Sequence[BankedPrompt]" = (),
) -> None:
    """Print the answers to stdout, below a title if there is one; at a terminal, one answer comes token by token.

    What a terminal would obey is escaped there; a file or a pipe gets the answers as they are.
    """
    import torch

    from softprompt.answering.batch import front_of, generate_answers
    from softprompt.cli.terminal import AnswerStream

    if title:
        print(f"--- {title}", flush=True)
    at_terminal = sys.stdout.isatty()
    stream = at_terminal and config.num_return_sequences == 1
    torch.manual_seed(seed)
    streamer = AnswerStream(encoder) if stream else None
    answers = generate_answers(
        side, encoder, config, question, ensemble=[front_of(each) for each in ensemble], streamer=streamer
    )
    if not stream:
        text = "\n\n".join(answers)
        print(visible_text(text) if at_terminal else text, flush=True)


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
