"""What the commands say about a run, as text; nothing is computed or printed here."""

import math
import shlex

from transformers import PreTrainedTokenizerBase

from softprompt.analysis.statistics import exact_match
from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.data.encoding import IGNORE_INDEX, EncodedRow
from softprompt.engine.families import can_pack
from softprompt.engine.forward import attention_note
from softprompt.training.checkpoint import ANSWERS_NAME
from softprompt.training.selection import Result
from softprompt.training.trainer import Trainer


def describe_base(base: Base) -> str:
    """Name, class, size, precision and device of the base, and how it was read if that is unusual."""
    size = sum(parameter.numel() for parameter in base.model.parameters())
    what = f"base: {base.name} ({type(base.model).__name__}, {size:,} parameters, {base.precision}, {base.device})"
    return "\n".join([what, *(f"note: {note}" for note in base.notes)])


def describe_split(name: str, rows: list[EncodedRow], skipped: list[int], *, copies: int = 0) -> str:
    """How many rows and supervised tokens there are, and which rows are left out.

    Args:
        copies: rows left out since they also stand in another split.
    """
    supervised = sum(row.num_supervised for row in rows)
    line = f"{name}: {len(rows):,} rows, {supervised:,} supervised tokens"
    if copies:
        line += f"; {copies} that are also rows of another split left out"
    if not skipped:
        return line
    shown = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
    return f"{line}; {len(skipped)} without a response (blank, or cut off by --max-length) skipped: row {shown}"


def describe_row(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """One row as the model sees it, and what of it is to be learnt."""
    labels = [label for label in row.labels if label != IGNORE_INDEX]
    return f"first row, input_ids decoded:\n{_indent(tokenizer.decode(row.input_ids))}\n" + (
        f"first row, labels decoded:\n{_indent(tokenizer.decode(labels))}"
    )


def describe_passes(trainer: Trainer) -> str:
    """How a step's rows go through the base."""
    if can_pack(trainer.base.model):
        line = f"rows of a step are packed into passes of at most {trainer.max_tokens:,} tokens"
        return "\n".join(filter(None, [line, attention_note(trainer.base.model)]))
    name, size = type(trainer.base.model).__name__, trainer.config.per_device_train_batch_size
    return f"note: {name} cannot take packed rows, so they run as padded batches of {size}: the same result, slower"


def describe_steps(trainer: Trainer) -> str:
    """How many steps of how many rows, at which rate, absolute and relative to the prompt."""
    rate, scale = trainer.optimizer.rate, trainer.optimizer.scale
    config, epoch = trainer.config, math.ceil(len(trainer.train_rows) / trainer.config.rows_per_step)
    line = (
        f"{trainer.total} steps of {trainer.config.rows_per_step} rows,"
        f" learning rate {rate:.4g} ({rate / scale:.3g} x the prompt's RMS of {scale:.4g})"
    )
    if config.num_train_epochs is None and config.max_steps < 0 and trainer.total > epoch:
        line += (
            f"\nnote: an epoch of these rows has {epoch} steps, so {trainer.total / epoch:.3g} epochs are trained to"
            f" make {trainer.total} steps; --num-train-epochs 1 trains one"
        )
    return line


def describe_answers(answers: list[dict[str, str]], split: str, config: TrainConfig) -> str:
    """How many answers are the references, and the first three beside them."""
    exact = sum(exact_match([row["answer"] for row in answers], [row["reference"] for row in answers]))
    share, place = exact / len(answers), config.run_folder / ANSWERS_NAME
    lines = [f"exact match: {exact} of {len(answers)} greedy answers to {split} rows ({share:.1%}); all in {place}"]
    for row in answers[:3]:
        lines += [_indent(row["question"] + row["answer"]), _indent(f"(reference: {row['reference']})")]
    return "\n".join(lines)


def describe_result(result: Result, config: TrainConfig) -> str:
    """Which prompt was kept, the command that uses it, and a warning if the base alone does as well."""
    lines, held_out = [], result.held_out
    command = shlex.join(["python", "generate.py", "--prompt-file", config.prompt_file])
    if held_out.trained_prompt is not None:
        why = "the last" if config.save_last else "the lowest held-out loss"
        perplexity = math.exp(min(held_out.trained_prompt, 700))
        lines.append(
            f"kept the prompt of step {result.step} ({why}: {held_out.trained_prompt:.4f}, perplexity {perplexity:.4g})"
        )
    lines.append(f"prompt written to {config.prompt_file}; try: {command}")
    if result.still_falling:
        lines.append(
            f"note: the held-out loss was still falling at the end; go on from this prompt with"
            f" --init-from {shlex.quote(config.prompt_file)}, or train more steps from the start with --max-steps"
        )
    for split, losses in (("held-out", held_out), ("test", result.test)):
        if losses.trained_prompt is not None and not losses.trained_prompt < losses.without_prompt:
            lines.append(f"warning: {split} loss is no better than without a prompt; try more rows or another rate")
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
