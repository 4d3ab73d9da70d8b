"""Search for the number of virtual tokens, the learning rate and the start that suit rows and base."""

from collections.abc import Sequence
from pathlib import Path

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import SweepConfig
from softprompt.errors import UserError


def main(argv: Sequence[str] | None = None, prog: str = "softprompt sweep") -> None:
    """Search, and print every trial, the best one, and the command that trains it alone."""
    config = parse(SweepConfig, argv, prog=prog, description=__doc__)

    from softprompt.cli.terminal import TerminalSweepReport
    from softprompt.cli.text import command_line, describe_base, describe_rows, describe_test, describe_trial
    from softprompt.prompt.fit import require_room
    from softprompt.training.run import load_inputs
    from softprompt.training.sweep import Search

    settle()
    check_outputs(config)
    base, rows = load_inputs(config)
    print(describe_base(base))
    print(describe_rows(rows, config.data), flush=True)
    if not rows.eval_rows:
        raise UserError(f"`data` {config.data}: no held-out rows to choose by; give `eval_data` or `eval_fraction`")
    require_room(base.model, max(config.virtual_tokens), rows.longest, option="max_length")
    result = Search(config, base, rows, TerminalSweepReport()).run()
    print(f"\nbest: {describe_trial(result.best)}")
    if result.test is not None:
        print(describe_test(result.test))
    again = command_line("train", result.options)
    print(f"prompt written to {config.prompt_file}; the same by itself: {again}")


def check_outputs(config: SweepConfig) -> None:
    """Check, before anything is loaded, that the search may write its outputs; nothing is written here.

    Raises:
        UserError: the prompt file or the sweep folder exists and no option allows replacing it, it cannot be written,
            or the sweep folder holds files that no sweep wrote.
    """
    from softprompt.training.checkpoint import check_places
    from softprompt.training.sweep import RECIPE_NAME

    prompt_file, folder = Path(config.prompt_file), config.sweep_folder
    ours = (folder / RECIPE_NAME).is_file()
    replace = config.overwrite or (config.resume and ours)
    check_places(prompt_file, folder, option="sweep_dir", replace=replace)
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise UserError(f"`sweep_dir` {folder}: holds files that no sweep wrote; name another folder")
    if ours and not replace:
        raise UserError(f"`sweep_dir` {folder}: already there; go on with `resume`, or replace it with `overwrite`")
