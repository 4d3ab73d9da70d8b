"""Compare trained prompts with the bare base and with a written prompt: loss, accuracy, exact match, choices."""

import json
from collections.abc import Sequence
from pathlib import Path

from softprompt.answering.output import refuse_sources
from softprompt.cli.program import quiet_libraries
from softprompt.config.command_line import parse
from softprompt.config.commands import EvaluateConfig
from softprompt.errors import UserError
from softprompt.system.files import require_writable, write_atomic


def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the command line says: what is scored, a table, and the output file if one is named."""
    config = parse(EvaluateConfig, argv, prog="python -m softprompt evaluate", description=__doc__)

    from softprompt.analysis.comparison import (
        check_fit,
        encode_eval_set,
        load_prompts,
        make_sides,
        notes_on_seen_rows,
        run_sides,
    )
    from softprompt.analysis.table import describe_figures, figures_of, to_json
    from softprompt.base.device import resolve_device
    from softprompt.cli.text import describe_base, describe_split
    from softprompt.data.splits import load_split
    from softprompt.prompt.fit import load_prompt_base

    quiet_libraries()
    check_output_file(config)
    device = resolve_device(config.device)
    files = load_prompts(config.prompt_file)
    rows, name = load_split(config.data, config.split)
    first = config.prompt_file[0]
    base = load_prompt_base(
        files[first].metadata, prompt_file=first, model=config.model, device=device, precision=config.precision
    )
    sides, notes = make_sides(files, base, allow_other=config.allow_other_base)
    eval_set = encode_eval_set(rows[: config.max_rows], base, config, name=name)
    check_fit(eval_set, sides, base, max_new_tokens=config.max_new_tokens)
    notes += notes_on_seen_rows(files, eval_set.encoded)
    scored = describe_split(f"--data {name}", eval_set.encoded, eval_set.skipped)
    print(describe_base(base), scored, *notes, sep="\n", flush=True)

    outcomes = run_sides(sides, eval_set, base, config)
    figures = [figures_of(outcome, eval_set, config) for outcome in outcomes]
    table = describe_figures(outcomes, figures, eval_set, config)
    if config.output_file is None:
        print(table)
        return
    try:
        write_output(Path(config.output_file), to_json(outcomes, figures, eval_set, base, config))
    finally:  # the table is not lost with a full disk, nor the file with a reader who goes away
        print(table, flush=True)
    print(f"figures and rows written to {config.output_file}")


def check_output_file(config: EvaluateConfig) -> None:
    """Refuse, before anything is loaded, to replace what is already there; writes nothing.

    Raises:
        UserError: the output exists without `--overwrite`, is no place for a file, or is a prompt or among the rows.
    """
    if config.output_file is None:
        return
    path = Path(config.output_file)
    what = f"--output-file {path}"
    if path.is_dir():
        raise UserError(f"{what}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{what}: is no plain file, and would be replaced by one; name another")
    refuse_sources(path, prompt_files=config.prompt_file, rows=config.data, flag="--data")
    require_writable(path.parent, flag=what)
    if path.exists() and not config.overwrite:
        raise UserError(f"{what}: already there; name another, or replace it with --overwrite")


def write_output(path: Path, content: dict[str, object]) -> None:
    """Write JSON with every script readable; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode())
