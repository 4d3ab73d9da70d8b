"""Answer one line after another with one loaded base; every line is a question of its own."""

import sys
from collections.abc import Iterator, Sequence

from softprompt.cli.generate import check_question, load_prompted_base, print_answers
from softprompt.config.command_line import parse
from softprompt.config.commands import ChatConfig
from softprompt.config.options import flags_in, is_unicode
from softprompt.errors import UserError


def main(argv: Sequence[str] | None = None, prog: str = "softprompt chat") -> None:
    """Answer the lines of standard input until it ends."""
    config = parse(ChatConfig, argv, prog=prog, description=__doc__, positional="prompt_file")
    model, base, _, encoder = load_prompted_base(config)

    from softprompt.answering.batch import draw_seed
    from softprompt.data.row import Row

    seed = draw_seed() if config.seed is None else config.seed
    if config.samples:
        print(f"seed: {seed}", file=sys.stderr)
    for number, line in enumerate(_questions()):
        try:
            if not is_unicode(line):
                raise UserError("the line is not UTF-8 text")
            check_question(model, base, config, encoder, Row.asked(line))
            # every line has a seed of its own, so a question that is asked again gets a new answer
            print_answers(model, encoder, config, Row.asked(line), seed=(seed + number) % 2**63)
        except UserError as error:  # a line that is refused does not end the chat
            print(flags_in(f"softprompt chat: {error}"), file=sys.stderr, flush=True)


def _questions() -> Iterator[str]:
    """Yield the lines of standard input that are not blank; at a terminal, ask for each with `> ` until Ctrl-D."""
    if sys.stdin is None:
        raise UserError("there is no standard input to read questions from")
    interactive = sys.stdin.isatty()
    if interactive:
        print("Type a question and Enter; Ctrl-D ends.", file=sys.stderr)
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise UserError("standard input is not text in the terminal's encoding; write UTF-8") from error
        if not line:
            return
        if line.strip():
            yield line.strip()
