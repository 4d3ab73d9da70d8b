"""Search for the number of virtual tokens, the learning rate and the start that suit rows and base."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import SweepConfig
from softprompt.errors import UserError

if TYPE_CHECKING:
    from softprompt.system.files import FileId


def main(argv: Sequence[str] | None = None, prog: str = "softprompt sweep") -> None:
    """Search, and print every trial, the best one, and the command that trains it alone."""
    config = parse(SweepConfig, argv, prog=prog, description=__doc__)

    from softprompt.cli.terminal import say
    from softprompt.system.files import FileId
    from softprompt.system.locks import hold_lock
    from softprompt.training.run_folder import LOCK_NAME

    settle()
    folder = config.sweep_folder
    if not folder.is_dir():
        check_outputs(config)  # before the folder is made for the lock
    with hold_lock(folder / LOCK_NAME, what=f"`sweep_dir` {folder}", say=say):
        check_outputs(config)
        _search(config, FileId.of(config.prompt_file) if config.overwrite or config.resume else None)


def _search(config: SweepConfig, replaces: "FileId | None") -> None:
    """Search in a folder that no other process uses; `replaces` is the file that the prompt may replace."""
    from softprompt.cli.terminal import TerminalSweepReport, TerminalTeacherReport, say
    from softprompt.cli.text import (
        command_line,
        describe_base,
        describe_other_name,
        describe_rows,
        describe_test,
        describe_trial,
    )
    from softprompt.distillation.inputs import load_sweep_inputs
    from softprompt.prompt.fit import require_room
    from softprompt.training.sweep import Search

    config, base, rows, objective = load_sweep_inputs(config, TerminalTeacherReport())
    say(describe_base(base), flags=False)
    say(describe_rows(rows, "of the teacher's own questions" if config.distill_questions else config.data), flags=False)
    if objective is not None:
        say(f"losses are KL per answer token to the base with {config.distill_text} in front")
    if not rows.eval_rows:
        raise UserError(f"`data` {config.data}: no held-out rows to choose by; give `eval_data` or `eval_fraction`")
    require_room(base.model, max(config.virtual_tokens), rows.longest, option="max_length")
    search = Search(config, base, rows, TerminalSweepReport(), objective)
    search.replaces = replaces
    result = search.run()
    say(f"\nbest: {describe_trial(result.best)}", flags=False)
    if result.test is not None:
        say(describe_test(result.test), flags=False)
    again = command_line("train", result.options)
    say(f"prompt written to {search.written}; to train it by itself: {again}", flags=False)
    if search.written != Path(config.prompt_file):
        say(describe_other_name(config.prompt_file, search.written))


def check_outputs(config: SweepConfig) -> None:
    """Check, before anything is loaded, that the search may write its outputs; nothing is written here.

    Raises:
        UserError: the prompt file or the sweep folder exists and no option allows replacing it, it cannot be written,
            or the sweep folder holds files that no sweep wrote.
    """
    from softprompt.distillation.inputs import SAMPLED
    from softprompt.training.run_folder import LOCK_NAME, RECIPE_NAME, check_places

    prompt_file, folder = Path(config.prompt_file), config.sweep_folder
    names = {path.name for path in folder.iterdir()} - {LOCK_NAME} if folder.is_dir() else set()
    # before a search records what it searches, the teacher of a text to distil answers
    ours = (folder / RECIPE_NAME).is_file() or bool(names and names <= SAMPLED)
    replace = config.overwrite or (config.resume and ours)
    check_places(prompt_file, folder, option="sweep_dir", replace=replace)
    if names and not ours:
        raise UserError(f"`sweep_dir` {folder}: holds files that no sweep wrote; name another folder")
    if ours and not replace:
        raise UserError(f"`sweep_dir` {folder}: already there; go on with `resume`, or replace it with `overwrite`")
