"""Compare trained prompts with the bare base and with a written prompt: loss, accuracy, exact match, choices."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import EvaluateConfig, run_folder_of
from softprompt.config.options import flags_in
from softprompt.errors import UserError
from softprompt.system.files import check_output_file, write_atomic
from softprompt.system.foreign import visible

if TYPE_CHECKING:
    from softprompt.analysis.comparison import EvalSet, Outcome, Side
    from softprompt.base.loading import Base
    from softprompt.data.row import Row
    from softprompt.data.splits import Splits
    from softprompt.prompt.file import PromptFile


def main(argv: Sequence[str] | None = None, prog: str = "softprompt evaluate") -> None:
    """Print what is scored and the table of figures, and write the output file if one is named."""
    config = parse(EvaluateConfig, argv, prog=prog, description=__doc__, positional="prompt_file")

    from tqdm import tqdm

    from softprompt.analysis.comparison import (
        TEXT_PROMPT,
        check_fit,
        encode_eval_set,
        load_prompts,
        make_sides,
        notes_on_seen_rows,
        run_sides,
        work_of,
    )
    from softprompt.base.device import resolve_device
    from softprompt.cli.text import describe_answering, describe_base, describe_split
    from softprompt.prompt.fit import load_prompt_base
    from softprompt.tokens.encoded_splits import EncodedSplit, cut_of

    settle()
    check_output(config)
    device = resolve_device(config.device)
    files = load_prompts(config.prompt_file)
    first = config.prompt_file[0]
    chosen = rows_to_score(config, files[first])
    take_choices(config, chosen)
    base = load_prompt_base(
        files[first].facts, prompt_file=first, model=config.model, device=device, precision=config.precision
    )
    require_rows_of_run(chosen, files[first], base, prompt_file=first)
    if config.distill_text is not None:
        tell_worth(config, files, base, chosen)
        return
    sides, notes = make_sides(files, base, text_prompt=config.text_prompt, allow_other=config.allow_other_base)
    eval_set = encode_eval_set(chosen.rows[: config.max_rows], sides, config, name=chosen.name)
    chosen.notes.extend(limit_answers(config, eval_set, sides, base))
    check_fit(eval_set, sides, base, max_new_tokens=config.max_new_tokens or 0)
    notes += notes_on_seen_rows(files, eval_set.encoded)
    split = EncodedSplit(eval_set.encoded, eval_set.skipped, cut=cut_of(eval_set.encoded, config.max_length))
    scored = describe_split(f"`data` {chosen.name}", split)
    notes = [*(f"note: {note}" for note in chosen.notes), *notes]
    notes += describe_answering(base) if eval_set.questions else []
    # the note on the text prompt quotes the user's own text, whose backticks stay
    notes = [note if note.startswith(TEXT_PROMPT) else flags_in(note) for note in notes]
    print(describe_base(base), flags_in(scored), *map(visible, notes), sep="\n", flush=True)

    # `disable=None`: no bar where stderr is not a terminal
    with tqdm(total=work_of(sides, eval_set), unit="row", disable=None, dynamic_ncols=True) as bar:
        outcomes = run_sides(sides, eval_set, base, config, advance=bar.update)
    report(outcomes, eval_set, base, config)


def report(outcomes: "list[Outcome]", eval_set: "EvalSet", base: "Base", config: EvaluateConfig) -> None:
    """Print the table of figures, and write the output file if one is named."""
    from softprompt.analysis.ensemble import evaluate_ensemble
    from softprompt.analysis.table import describe_ensemble, describe_figures, figures_of, to_json
    from softprompt.cli.terminal import screen_width

    figures = [figures_of(outcome, eval_set, config) for outcome in outcomes]
    table = describe_figures(outcomes, figures, eval_set, config, width=screen_width())
    together = None
    if config.ensemble:
        together = evaluate_ensemble(base, eval_set, outcomes, config)
        table = f"{table}\n{describe_ensemble(together)}"
    if config.output_file is None:
        print(table)
        return
    try:
        content = to_json(outcomes, figures, eval_set, base, config)
        content |= {} if together is None else {"ensemble": asdict(together)}
        write_output(Path(config.output_file), content)
    finally:  # a full disk does not lose the table, and a closed stdout does not lose the file
        print(table, flush=True)
    print(f"figures and rows written to {config.output_file}")


def tell_worth(config: EvaluateConfig, files: "dict[str, PromptFile]", base: "Base", chosen: "Chosen") -> None:
    """Print how much of the text's effect each prompt has, and write the figures if an output file is named."""
    from softprompt.cli.text import describe_base
    from softprompt.distillation.judging import judge_files
    from softprompt.distillation.report import describe_worth, to_json

    print(describe_base(base), *map(visible, chosen.notes), sep="\n", flush=True)
    rows, own = chosen.rows[: config.max_rows], config.data is None
    figures = {}
    for name, worth, notes in judge_files(files, base, rows, config, answered=own):
        print(*(visible(flags_in(f"note: {note}")) for note in notes), f"{name}, on {chosen.name}", sep="\n")
        print(describe_worth(worth), flush=True)
        figures[name] = to_json(worth)
    if config.output_file is not None:
        write_output(Path(config.output_file), dict(figures))
        print(f"figures written to {config.output_file}")


@dataclass(frozen=True)
class Chosen:
    """The rows to score, their name in messages, notes on them, and their labels if they are of a classification.

    Attributes:
        splits: all rows of their run, and `max_length` its length, if they are rows of the prompt's run.
    """

    rows: "Sequence[Row]"
    name: str
    notes: list[str] = field(default_factory=list)
    choices: tuple[str, ...] = ()
    splits: "Splits | None" = None
    max_length: int = 0


def rows_to_score(config: EvaluateConfig, file: "PromptFile") -> Chosen:
    """Return the rows of `--data` or, without it, rows that the first prompt's run did not train on.

    Raises:
        UserError: no data is named, and the prompt's run folder is missing, belongs to another run or names no rows;
            or the output file is among the rows that it names.
    """
    from softprompt.answering.output import refuse_sources
    from softprompt.data.splits import load_split
    from softprompt.distillation.answers import splits_of_run
    from softprompt.training.run import IN_MEMORY, read_run

    if config.data is not None:
        asks = config.distill_text is not None  # the teacher answers
        how = {"columns": config.columns, "data_config": config.data_config}
        return Chosen(*load_split(config.data, config.split, asks=asks, **how))
    first = config.prompt_file[0]
    folder = run_folder_of(first, config.run_dir)
    run = read_run(folder)
    if run is None or IN_MEMORY in [run.options.get(name) for name in ("data", "eval_data", "test_data")]:
        raise UserError(f"`data`: name the rows to score; {folder}, where {first} would say its own, names none")
    if run.data_sha256 != file.facts.data_sha256:
        raise UserError(f"`data`: name the rows to score; {folder} is of another run than {first}")
    for name in ("data", "eval_data", "test_data"):
        if config.output_file is not None:
            refuse_sources(Path(config.output_file), prompt_files=(), rows=run.options[name], option=name)
    splits = splits_of_run(run.options, folder)
    held_out = config.held_out or not splits.test_rows
    found, others = splits.eval_rows, [splits.train_rows]
    if not held_out:
        found, others = splits.test_rows, [splits.train_rows, splits.eval_rows]
    keys = {row.key for row in found}
    known = {key for key in (row.key for row in itertools.chain(*others)) if key in keys}
    rows = [row for row in found if row.key not in known]
    if not rows:
        what = "held-out" if config.held_out else "test or held-out"
        raise UserError(f"`data`: name the rows to score; {first} has no {what} rows of its own")
    name = f"{run.options['data']} ({'held out' if held_out else 'test'}, as {folder} has it)"
    return Chosen(rows, name, splits.notes, splits.choices, splits, run.options["max_length"])


def take_choices(config: EvaluateConfig, chosen: Chosen) -> None:
    """Let the labels of the rows be the choices if none are given, and keep a note of them.

    Raises:
        UserError: an ensemble has neither choices nor answers to give.
    """
    if chosen.choices and not config.choices:
        config.choices = chosen.choices
        chosen.notes.append(f"`choices`: the labels of the rows: {', '.join(chosen.choices)}")
    if config.ensemble and not (config.choices or config.eval_generate):
        raise UserError("`ensemble`: needs `choices` to vote on, or `eval_generate` above 0")


def limit_answers(config: EvaluateConfig, eval_set: "EvalSet", sides: "Sequence[Side]", base: "Base") -> list[str]:
    """Set how long an answer may be if nobody said so, and return a note of it."""
    from softprompt.analysis.comparison import answer_limit

    if config.max_new_tokens is not None or not eval_set.questions:
        return []
    config.max_new_tokens = answer_limit(eval_set, sides, base)
    longest = eval_set.longest_reference
    how = "twice" if config.max_new_tokens == 2 * longest else "as far as the base's context goes for twice"
    return [f"answers have at most {config.max_new_tokens} tokens, {how} the longest reference (`max_new_tokens`)"]


def require_rows_of_run(chosen: Chosen, file: "PromptFile", base: "Base", *, prompt_file: str) -> None:
    """Refuse rows whose files have changed since the prompt's run, which may have trained on rows held out now.

    Token ids are compared, so with another tokenizer nothing can be compared, and the rows are accepted.

    Raises:
        UserError: the rows are not those of the run.
    """
    from softprompt.base.fingerprint import tokenizer_sha256
    from softprompt.prompt.encoder import encoder_of
    from softprompt.tokens.encoded_splits import encode_splits
    from softprompt.training.recipe import Recipe

    if chosen.splits is None or file.facts.tokenizer_sha256 != tokenizer_sha256(base.tokenizer):
        return
    encoder = encoder_of(file.facts, base, prompt_file=prompt_file)
    rows = encode_splits(chosen.splits, encoder, max_length=chosen.max_length)
    names = ("train_rows", "eval_rows", "test_rows")
    now = Recipe({}, {name: split.facts.sha256 for name, split in zip(names, rows.splits, strict=True)})
    if now.data_sha256 != file.facts.data_sha256:
        raise UserError(f"`data`: name the rows to score; {chosen.name} are not those that made {prompt_file} any more")


def check_output(config: EvaluateConfig) -> None:
    """Check, before anything is loaded, that the output file may be written; nothing is written here.

    Raises:
        UserError: the output exists without `--overwrite`, is no place for a file, is a prompt file, or is among the
            rows.
    """
    if config.output_file is None:
        return
    from softprompt.answering.output import refuse_sources

    path = Path(config.output_file)
    refuse_sources(path, prompt_files=config.prompt_file, rows=config.data, option="data")
    check_output_file(path, option="output_file", replace=config.overwrite)


def write_output(path: Path, content: dict[str, object]) -> None:
    """Write `content` as JSON in which no script is escaped; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode())
