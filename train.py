#!/usr/bin/env python
"""Tune a soft prompt on a frozen causal language model: rows -> tokens -> steps -> prompt file."""

import sys
from collections.abc import Sequence

from softprompt.command import parse, quiet_libraries, run
from softprompt.config import TrainConfig
from softprompt.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    config = parse(TrainConfig, argv, prog="train.py", description=__doc__)

    from softprompt.base import load_base, require_known_ids, require_room, resolve_device
    from softprompt.checkpoint import check_outputs, last_checkpoint
    from softprompt.data import load_splits
    from softprompt.encoding import encode_rows
    from softprompt.initialise import initial_prompt
    from softprompt.model import SoftPromptModel
    from softprompt.report import describe_base, describe_passes, describe_result, describe_row, describe_split
    from softprompt.trainer import Trainer

    quiet_libraries()
    check_outputs(config)
    device = resolve_device(config.device)
    splits = load_splits(config.data, eval_data=config.eval_data, eval_fraction=config.eval_fraction, seed=config.seed)
    base = load_base(config.model, device=device, precision=config.precision)
    print(describe_base(base), flush=True)

    train_rows, skipped = encode_rows(splits.train_rows, base.tokenizer, max_length=config.max_length)
    print(describe_split(f"--data {config.data}", train_rows, skipped))
    if not train_rows:
        raise UserError(f"--data {config.data}: no row has a response within --max-length {config.max_length}")
    eval_rows, skipped = encode_rows(splits.eval_rows, base.tokenizer, max_length=config.max_length)
    print(describe_split("held out", eval_rows, skipped))
    print(describe_row(train_rows[0], base.tokenizer))

    require_known_ids(base, (id for row in train_rows + eval_rows for id in row.input_ids))
    longest = max(len(row.input_ids) for row in train_rows + eval_rows)
    require_room(base.model, config.virtual_tokens or 0, longest, flag="--max-length")  # before so many are made
    prompt = initial_prompt(config, base)
    require_room(base.model, prompt.num_virtual_tokens, longest, flag="--max-length")
    model = SoftPromptModel(base.model, prompt)
    print(model, model.trainable_parameters_line(), sep="\n", flush=True)

    trainer = Trainer(model, base, train_rows, eval_rows, config)
    checkpoint = last_checkpoint(config.run_folder) if config.resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)
        print(f"resumed from {checkpoint}")
    print(describe_passes(trainer))
    print(f"{trainer.total} steps of {config.rows_per_step} rows, learning rate {trainer.rate:.4g}", flush=True)
    losses = trainer.run()
    print(describe_result(losses, config))


if __name__ == "__main__":
    sys.exit(run(main, prog="train.py"))
