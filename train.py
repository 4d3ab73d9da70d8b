#!/usr/bin/env python
"""Tune a soft prompt on a frozen causal language model: rows -> tokens -> steps -> prompt file."""

import json
import sys
from collections.abc import Sequence

from softprompt.cli.program import quiet_libraries, run
from softprompt.config.command_line import parse
from softprompt.config.commands import TrainConfig

ANSWERED_TOGETHER = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    config = parse(TrainConfig, argv, prog="train.py", description=__doc__)

    from softprompt.answering.batch import answers_beside_references
    from softprompt.base.device import resolve_device
    from softprompt.base.loading import load_base
    from softprompt.cli.text import describe_answers, describe_base, describe_passes, describe_result, describe_steps
    from softprompt.engine.model import SoftPromptModel
    from softprompt.prompt.fit import require_room
    from softprompt.prompt.start import initial_prompt
    from softprompt.system.files import write_atomic
    from softprompt.training.checkpoint import ANSWERS_NAME, check_outputs, last_checkpoint
    from softprompt.training.rows import encode_splits, load_rows, require_scored_rows
    from softprompt.training.trainer import Trainer

    quiet_libraries()
    check_outputs(config)
    device = resolve_device(config.device)
    splits = load_rows(config)
    base = load_base(config.model, device=device, precision=config.precision)
    print(describe_base(base), flush=True)
    rows = encode_splits(splits, base, config)
    require_scored_rows(config, rows)
    require_room(base.model, config.virtual_tokens or 0, rows.longest, flag="--max-length")  # before so many are made
    prompt = initial_prompt(config, base, rows.train_rows)
    require_room(base.model, prompt.num_virtual_tokens, rows.longest, flag="--max-length")
    model = SoftPromptModel(base.model, prompt)
    print(model, model.trainable_parameters_line(), sep="\n", flush=True)

    trainer = Trainer(model, base, rows.train_rows, rows.eval_rows, config, test_rows=rows.test_rows)
    checkpoint = last_checkpoint(config.run_folder) if config.resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)
        print(f"resumed from {checkpoint}")
    print(describe_passes(trainer), describe_steps(trainer), sep="\n", flush=True)
    result = trainer.run()
    if config.eval_generate and (shown := (rows.test_rows or rows.eval_rows)[: config.eval_generate]):
        answers = answers_beside_references(model, base.tokenizer, shown, batch_size=ANSWERED_TOGETHER)
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        write_atomic(config.run_folder / ANSWERS_NAME, lines.encode())
        print(describe_answers(answers, "test" if rows.test_rows else "held-out", config))
    print(describe_result(result, config))


if __name__ == "__main__":
    sys.exit(run(main, prog="train.py"))
