"""Tune a soft prompt on a frozen causal language model: rows -> tokens -> steps -> prompt file."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import read_options
from softprompt.config.commands import TrainConfig

MOST_CLASSIFIED = 200  # rows whose labels are scored at the end of a run

if TYPE_CHECKING:
    from torch import Tensor

    from softprompt.cli.terminal import TerminalReport
    from softprompt.system.files import FileId
    from softprompt.tokens.encoded_splits import EncodedSplits
    from softprompt.training.trainer import Trainer


def main(argv: Sequence[str] | None = None, prog: str = "softprompt train") -> None:
    """Train, and print what is trained, how it goes and what came out."""
    given = read_options(TrainConfig, argv, prog=prog, description=__doc__)
    TrainConfig(**given)  # refuses wrong values before PyTorch is imported; `options_of_run` makes the final options

    from softprompt.cli.terminal import TerminalReport
    from softprompt.training.run import options_of_run
    from softprompt.training.run_folder import reserved_run

    settle()
    config, report = TrainConfig(**options_of_run(given)), TerminalReport()
    with reserved_run(config, report.say) as replaces:
        _train(config, report, replaces)


def _train(config: TrainConfig, report: "TerminalReport", replaces: "FileId | None") -> None:
    """Train in a run folder that no other process uses; `replaces` is the file that the prompt may replace."""
    from softprompt.cli.terminal import TerminalTeacherReport, say
    from softprompt.cli.text import (
        describe_base,
        describe_passes,
        describe_result,
        describe_rows,
        describe_shape,
        describe_steps,
    )
    from softprompt.distillation.inputs import load_all_inputs
    from softprompt.training.run import note_run, prepare_run

    config, base, rows, objective = load_all_inputs(config, report=TerminalTeacherReport())
    say(describe_base(base), flags=False)
    data = "of the teacher's own questions" if config.distill_questions else config.data
    say(describe_rows(rows, data), flags=False)
    trainer = prepare_run(config, base, rows, report, objective)
    trainer.replaces = replaces
    model = trainer.model
    say(str(model) if config.verbose else describe_shape(model), flags=False)
    say(model.trainable_parameters_line(), flags=False)
    say(describe_passes(trainer))
    say(describe_steps(trainer))
    if objective is not None:
        say(f"losses are KL per answer token to the base with {config.distill_text} in front; its tokens are right")
    note_run(trainer)
    initial = trainer.weight.detach().clone()
    result = trainer.run()
    if rows.choices:
        _classify_some(trainer, rows)
    if config.eval_generate:
        _answer_some(trainer, rows)
    if config.distill_text is not None:
        _judge(trainer, initial)
    say(describe_result(result, config, trainer.written))


def _judge(trainer: "Trainer", initial: "Tensor") -> None:
    """Say what the distilled prompt is worth on the test rows, or else on the held-out rows."""
    from softprompt.cli.terminal import say
    from softprompt.distillation.report import describe_worth, judge
    from softprompt.distillation.text import place_text, read_text

    config, rows, base = trainer.config, trainer.rows, trainer.base
    name, split = ("test", rows.test) if rows.test_rows else ("held-out", rows.held_out)
    if not split.rows:
        say("note: no question is held out, so nothing is told of the prompt's worth; give `eval_fraction`")
        return
    assert config.distill_text is not None
    text = place_text(config.distill_text, read_text(config.distill_text), rows.encoder, base)
    worth = judge(
        base,
        rows.encoder,
        text,
        split,
        trainer.weight.detach(),
        name=name,
        initial=initial,
        new_tokens=config.distill_new_tokens,
    )
    say(describe_worth(worth), flags=False)


def _classify_some(trainer: "Trainer", rows: "EncodedSplits") -> None:
    """Say how many of the test rows, or else of the held-out rows, get their own label, with the prompt and without."""
    from softprompt.analysis.choices import choice_accuracy
    from softprompt.cli.terminal import say

    name, split = ("test", rows.test) if rows.test.sources else ("held-out", rows.held_out)
    some, model, pad = split.sources[:MOST_CLASSIFIED], trainer.model, trainer.base.pad_token_id
    if not some:
        return
    sides = (model.base_model, rows.encoder.baseline), (model, rows.encoder)
    without, with_prompt = (
        choice_accuracy(side, some, rows.choices, encoder, pad_token_id=pad) for side, encoder in sides
    )
    say(
        f"choice accuracy on {len(some)} {name} rows of {len(rows.choices)} labels:"
        f" without a prompt {without:.1%}, with the kept prompt {with_prompt:.1%}"
    )


def _answer_some(trainer: "Trainer", rows: "EncodedSplits") -> None:
    """Answer the first test rows, or else held-out rows, write the answers into the run folder and summarise them."""
    from softprompt.answering.batch import ANSWERED_TOGETHER
    from softprompt.answering.greedy import answers_beside_references
    from softprompt.cli.terminal import say
    from softprompt.cli.text import describe_answering, describe_answers
    from softprompt.system.files import write_atomic
    from softprompt.training.run_folder import ANSWERS_NAME

    config = trainer.config
    for line in describe_answering(trainer.base):
        say(line)
    shown = (rows.test_rows or rows.eval_rows)[: config.eval_generate]
    answers = answers_beside_references(trainer.model, rows.encoder, shown, batch_size=ANSWERED_TOGETHER)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    write_atomic(config.run_folder / ANSWERS_NAME, lines.encode("utf-8", "backslashreplace"))
    say(describe_answers(answers, "test" if rows.test_rows else "held-out", config), flags=False)
