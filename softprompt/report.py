"""What the commands say about a run, as text; nothing is computed or printed here."""

import shlex

from transformers import PreTrainedTokenizerBase

from softprompt.base import Base
from softprompt.config import TrainConfig
from softprompt.encoding import IGNORE_INDEX, EncodedRow
from softprompt.engine import attention_note, can_pack
from softprompt.trainer import Losses, Trainer


def describe_base(base: Base) -> str:
    """Name, class, size, precision and device of the base, and how it was read if that is unusual."""
    size = sum(parameter.numel() for parameter in base.model.parameters())
    what = f"base: {base.name} ({type(base.model).__name__}, {size:,} parameters, {base.precision}, {base.device})"
    return "\n".join([what, *(f"note: {note}" for note in base.notes)])


def describe_split(name: str, rows: list[EncodedRow], skipped: list[int]) -> str:
    """How many rows and supervised tokens there are, and which rows are left out."""
    supervised = sum(row.num_supervised for row in rows)
    line = f"{name}: {len(rows):,} rows, {supervised:,} supervised tokens"
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


def describe_result(losses: Losses, config: TrainConfig) -> str:
    """The held-out loss before and after, and the command that uses the prompt."""
    command = shlex.join(["python", "generate.py", "--prompt-file", config.prompt_file])
    lines = [f"prompt written to {config.prompt_file}; try: {command}"]
    if losses.trained_prompt is not None and losses.trained_prompt >= losses.without_prompt:
        lines.append("warning: held-out loss is no better than without a prompt; try more rows or another rate")
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
