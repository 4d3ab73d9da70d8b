"""Tune a soft prompt on a frozen causal language model: rows -> tokens -> steps -> prompt file."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import read_options
from softprompt.config.commands import TrainConfig
from softprompt.config.options import flags_in

if TYPE_CHECKING:
    from softprompt.tokens.encoded_splits import EncodedSplits
    from softprompt.training.trainer import Trainer


def main(argv: Sequence[str] | None = None, prog: str = "softprompt train") -> None:
    """Train, and print what is trained, how it goes and what came out."""
    given = read_options(TrainConfig, argv, prog=prog, description=__doc__)
    TrainConfig(**given)  # refuses wrong values before PyTorch is imported; `options_of_run` makes the final options

    from softprompt.cli.terminal import TerminalReport
    from softprompt.cli.text import (
        describe_base,
        describe_passes,
        describe_result,
        describe_rows,
        describe_shape,
        describe_steps,
    )
    from softprompt.training.checkpoint import check_outputs
    from softprompt.training.run import load_inputs, note_run, options_of_run, prepare_run

    settle()
    config = TrainConfig(**options_of_run(given))
    check_outputs(config)
    base, rows = load_inputs(config)
    print(describe_base(base))
    print(describe_rows(rows, config.data), flush=True)
    trainer = prepare_run(config, base, rows, TerminalReport())
    model = trainer.model
    print(model if config.verbose else describe_shape(model), model.trainable_parameters_line(), sep="\n", flush=True)
    print(flags_in(describe_passes(trainer)), flags_in(describe_steps(trainer)), sep="\n", flush=True)
    note_run(trainer)
    result = trainer.run()
    if config.eval_generate:
        _answer_some(trainer, rows)
    print(flags_in(describe_result(result, config)))


def _answer_some(trainer: "Trainer", rows: "EncodedSplits") -> None:
    """Answer the first test rows, or else held-out rows, write the answers into the run folder and summarise them."""
    from softprompt.answering.batch import ANSWERED_TOGETHER, answers_beside_references
    from softprompt.cli.text import describe_answering, describe_answers
    from softprompt.system.files import write_atomic
    from softprompt.training.checkpoint import ANSWERS_NAME

    config = trainer.config
    for line in describe_answering(trainer.base):
        print(line)
    shown = (rows.test_rows or rows.eval_rows)[: config.eval_generate]
    answers = answers_beside_references(trainer.model, rows.encoder, shown, batch_size=ANSWERED_TOGETHER)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    write_atomic(config.run_folder / ANSWERS_NAME, lines.encode())
    print(describe_answers(answers, "test" if rows.test_rows else "held-out", config))
