"""The text in which the commands describe a run; nothing is printed here."""

import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from softprompt.analysis.statistics import exact_match
from softprompt.analysis.table import three_digits
from softprompt.base.loading import Base
from softprompt.cli.program import typed
from softprompt.config.commands import TrainConfig
from softprompt.config.options import flag, flags_in
from softprompt.data.reading import counted, numbers_shown
from softprompt.engine.forward import attention_note
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score
from softprompt.packs.families import can_pack
from softprompt.system.foreign import visible, visible_text
from softprompt.tokens.encoded_splits import KEPT_WHOLE, EncodedSplit, EncodedSplits
from softprompt.tokens.encoding import EncodedRow, Encoder, decode_text
from softprompt.training.run_folder import ANSWERS_NAME
from softprompt.training.run_log import CURRENT, INITIAL, KEPT, NO_PROMPT, TRAINED, EvaluationRecord, StepRecord
from softprompt.training.selection import Result
from softprompt.training.sweep import TrialResult
from softprompt.training.trainer import Trainer

PROMPTS = {
    NO_PROMPT: "without a prompt",
    INITIAL: "with the initial prompt",
    CURRENT: "with the prompt so far",
    TRAINED: "with the trained prompt",
    KEPT: "with the kept prompt",
}
TEMPLATES = {
    "chat": "by the base's chat template",
    "file": "by the chat template that was given",
    "plain": "as question and answer with nothing between them",
    "text": "as they are",
}
MANY_CUT = 0.1  # a share of rows without their end that is worth a warning
SPLITS = {"eval": "held-out", "test": "test"}


def describe_base(base: Base) -> str:
    """Describe the base: its name, class, size, precision and device, and how it was read if that is unusual."""
    size = sum(parameter.numel() for parameter in base.model.parameters())
    what = f"base: {base.name} ({type(base.model).__name__}, {size:,} parameters, {base.precision}, {base.device})"
    return "\n".join(map(visible, [what, *(f"note: {note}" for note in base.notes)]))


def describe_answering(base: Base) -> list[str]:
    """Say, if it is so, that batches are answered row by row."""
    if can_pack(base.model):
        return []
    name = type(base.model).__name__
    return [f"note: {name} is not known to answer a batch as it answers single rows, so rows are answered one by one"]


def describe_shape(model: SoftPromptModel) -> str:
    """Describe the model's shape in one line: the prompt in front of the base's layers."""
    prompt, config = model.soft_prompt, model.base_model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", "?")
    return (
        f"model: {prompt.num_virtual_tokens} x {prompt.hidden_size} virtual tokens, {config.num_hidden_layers} frozen"
        f" layers, {heads} heads, vocabulary {config.vocab_size:,}"
    )


def describe_rows(rows: EncodedSplits, data: str) -> str:
    """Say how many rows each split has, and show the first row to train on."""
    lines = [describe_split(f"`data` {data}", rows.train), describe_split("held out", rows.held_out)]
    if rows.test.rows or rows.test.skipped or rows.test.copies:
        lines.append(describe_split("test", rows.test))
    # not in the row below, whose own backticks stay
    lines = [*map(flags_in, lines), *describe_notes(rows.notes)]
    if rows.train_rows:
        lines += [*describe_template(rows.encoder), describe_row(rows.train_rows[0], rows.encoder)]
    return "\n".join(lines)


def describe_notes(notes: Iterable[str]) -> list[str]:
    """What is worth telling about the data, a line each."""
    return [flags_in(f"note: {note}") for note in notes]


def describe_split(name: str, split: EncodedSplit) -> str:
    """Say how many rows and supervised tokens a split has, which rows are left out, and how many lose their end.

    It is a warning if more than a tenth of the rows lose their end.
    """
    supervised = counted(split.facts.num_supervised, "supervised token")
    line = f"{name}: {counted(len(split.rows), 'row')}, {supervised}"
    if split.copies:
        line += f"; {split.copies} that are also rows of another split left out"
    if split.skipped:
        line += (
            f"; {len(split.skipped)} without a question or a response (blank, or cut off by `max_length`) skipped:"
            f" row {numbers_shown(split.skipped)}"
        )
    cut = split.cut
    if cut.without_end:
        line += (
            f"; {cut.without_end:,} cut before their end by `max_length`; `max_length` {cut.enough} would keep"
            f" {100 * KEPT_WHOLE:.0f} % of the rows whole"
        )
    return f"warning: {line}" if cut.without_end > MANY_CUT * cut.rows else line


def describe_template(encoder: Encoder) -> list[str]:
    """Say how the rows are written, unless it is the tutorial's template on a base without bos."""
    template, tokenizer = encoder.template, encoder.tokenizer
    parts = []
    if template.name != "tutorial":
        parts.append(TEMPLATES[template.name])
    if template.system:
        parts.append("with the system text that was given")
    if template.date:
        parts.append(f"with the date {template.date}")
    if encoder.bos_id is not None:
        parts.append(f"every text begins with {visible(decode_text([encoder.bos_id], tokenizer))}")
    if encoder.placement == "system":
        parts.append("the prompt stands in the system turn")
    return [f"rows are written {', '.join(parts)}"] if parts else []


def describe_row(row: EncodedRow, encoder: Encoder) -> str:
    """Show a row as the model sees it, and the part of it that is to be learnt."""
    tokenizer = encoder.tokenizer
    shown = decode_text(row.input_ids, tokenizer)
    if encoder.placement == "system":
        before, after = (decode_text(ids, tokenizer) for ids in (encoder.before_ids, encoder.after_ids))
        shown = f"{before}[prompt]{after}{shown}"
    labels = decode_text(row.supervised_ids, tokenizer)
    return f"first row, input_ids decoded:\n{_indent(shown)}\nfirst row, labels decoded:\n{_indent(labels)}"


def describe_passes(trainer: Trainer) -> str:
    """Say how the rows of a step go through the base: in packs or in padded batches."""
    if can_pack(trainer.base.model):
        line = f"rows of a step are packed into passes of at most {trainer.max_tokens:,} tokens"
        return "\n".join(filter(None, [line, attention_note(trainer.base.model)]))
    name, size = type(trainer.base.model).__name__, trainer.config.per_device_train_batch_size
    return f"note: {name} cannot take packed rows, so they run as padded batches of {size}: the same result, slower"


def describe_steps(trainer: Trainer) -> str:
    """Say how many steps of how many rows are taken, and the learning rate, also relative to the prompt."""
    rate, scale, config = trainer.optimizer.rate, trainer.optimizer.scale, trainer.config
    epoch = math.ceil(len(trainer.rows.train_rows) / config.rows_per_step)
    line = (
        f"{trainer.total} steps of {config.rows_per_step} rows,"
        f" learning rate {rate:.4g} ({rate / scale:.3g} x the prompt's RMS of {scale:.4g})"
    )
    if config.num_train_epochs is None and config.max_steps < 0 and trainer.total > epoch:
        line += (
            f"\nnote: an epoch of these rows has {epoch} steps, so {trainer.total / epoch:.3g} epochs are trained to"
            f" make {trainer.total} steps; `num_train_epochs` 1 trains one"
        )
    return line


def describe_step(record: StepRecord, total_steps: int, *, unit: str = "supervised tokens/s") -> str:
    """Return the line of a window of steps."""
    width = len(str(total_steps))
    return (
        f"step {record.step:{width}d}/{total_steps}  loss {three_digits(record.loss)}  lr {record.learning_rate:.2e}"
        f"  grad_norm {record.grad_norm:.2e}  {record.supervised_tokens_per_second:,.0f} {unit}"
    )


def describe_evaluation(record: EvaluationRecord) -> str:
    """Return the line of an evaluation, on rows that are not trained on."""
    loss = three_digits(record.loss)
    return f"{SPLITS[record.split]} loss {PROMPTS[record.prompt]}: {loss}  token accuracy {record.accuracy:.1%}"


def describe_answers(answers: list[dict[str, str]], split: str, config: TrainConfig) -> str:
    """Say how many answers equal their references, and show the first three beside them."""
    exact = sum(exact_match([row["answer"] for row in answers], [row["reference"] for row in answers]))
    share, place = exact / len(answers), config.run_folder / ANSWERS_NAME
    lines = [f"exact match: {exact} of {len(answers)} greedy answers to {split} rows ({share:.1%}); all in {place}"]
    for row in answers[:3]:
        lines += [_indent(row["question"] + row["answer"]), _indent(f"(reference: {row['reference']})")]
    return "\n".join(lines)


def describe_result(result: Result, config: TrainConfig, written: Path | None = None) -> str:
    """Say which prompt was kept, which command uses it, and what to do if it could be better.

    Args:
        written: the path of the prompt file, if it has another name than planned, since a file came there.
    """
    lines, held_out, written = [], result.held_out, written or Path(config.prompt_file)
    command = f"{typed('generate')} {shlex.join(['--prompt-file', str(written)])}"
    if held_out.trained_prompt is not None:
        why = "the last" if config.save_last else "the lowest held-out loss"
        loss = three_digits(held_out.trained_prompt)
        # a divergence has no perplexity
        perplexity = "" if config.distill_text else f", perplexity {math.exp(min(held_out.trained_prompt, 700)):.4g}"
        lines.append(f"kept the prompt of step {result.step} ({why}: {loss}{perplexity})")
    lines.append(f"prompt written to {written}; try: {command}")
    if result.still_falling:
        lines.append(
            f"note: the held-out loss was still falling at the end; go on from this prompt with"
            f" `init_from` {shlex.quote(str(written))}, or train more steps from the start with `max_steps`"
        )
    for split, losses in (("held-out", held_out), ("test", result.test)):
        trained, without = losses.trained_prompt, losses.without_prompt
        if trained is not None and without is not None and not trained < without:
            lines.append(f"warning: {split} loss is no better than without a prompt; try more rows or another rate")
    if written != Path(config.prompt_file):
        lines.append(describe_other_name(config.prompt_file, written))
    return "\n".join(lines)


def describe_other_name(planned: str, written: Path) -> str:
    """Say that a file was written under another name, since one came to the planned name meanwhile."""
    return f"note: another file came to {planned} meanwhile and is kept, so this one is {written}"


def describe_trial(result: TrialResult) -> str:
    """Return the line of a trial in the table of a search."""
    trial = result.trial
    rate = f"{result.learning_rate:.3g} ({trial.relative_rate:g} x RMS)"
    return f"{trial.virtual_tokens:4d} {trial.init:8}{rate:>22}   {three_digits(result.loss)}"


def describe_test(score: Score) -> str:
    """Return the line with the figures on the test rows that end a search."""
    return f"test loss with this prompt: {three_digits(score.loss)}  token accuracy {score.accuracy:.1%}"


def command_line(command: str, options: Mapping[str, object]) -> str:
    """Return what the user types to run a command with these options."""
    words = [word for name, value in options.items() for word in (flag(name), str(value))]
    return f"{typed(command)} {shlex.join(words)}".rstrip()


def _indent(text: str) -> str:
    return "\n".join("    " + visible_text(line) for line in text.splitlines())
