"""Search for the number of virtual tokens, the learning rate and the start that suit rows and base."""

from collections.abc import Sequence
from pathlib import Path

from softprompt.cli.program import quiet_libraries
from softprompt.config.command_line import parse
from softprompt.config.commands import SweepConfig
from softprompt.errors import UserError

# the sweep folder's record of what it searches, and the sign that the folder is a sweep's
RECIPE_NAME = "sweep.json"


def main(argv: Sequence[str]) -> None:
    """Search as the command line says."""
    config = parse(SweepConfig, argv, prog="python -m softprompt sweep", description=__doc__)

    from softprompt.base.device import resolve_device
    from softprompt.base.loading import load_base
    from softprompt.cli.text import describe_base
    from softprompt.prompt.fit import require_room
    from softprompt.training.rows import encode_splits, load_rows
    from softprompt.training.sweep import Search

    quiet_libraries()
    check_outputs(config)
    device = resolve_device(config.device)
    splits = load_rows(config)
    base = load_base(config.model, device=device, precision=config.precision)
    print(describe_base(base), flush=True)
    rows = encode_splits(splits, base, config)
    if not rows.eval_rows:
        raise UserError(f"--data {config.data}: no held-out rows to choose by; give --eval-data or --eval-fraction")
    require_room(base.model, max(config.virtual_tokens), rows.longest, flag="--max-length")
    Search(config, base, rows, recipe_file=config.sweep_folder / RECIPE_NAME).run()


def check_outputs(config: SweepConfig) -> None:
    """Refuse, before anything is loaded, to replace what is already there; writes nothing.

    Raises:
        UserError: the prompt file or the sweep folder exists and no flag allows to replace it, or cannot be written.
    """
    from softprompt.training.checkpoint import check_places

    prompt_file, folder = Path(config.prompt_file), config.sweep_folder
    check_places(prompt_file, folder, flag="--sweep-dir")
    ours = (folder / RECIPE_NAME).is_file()
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise UserError(f"--sweep-dir {folder}: holds files that no sweep wrote; name another folder")
    if config.overwrite or (config.resume and ours):
        return
    if prompt_file.exists():
        raise UserError(f"--prompt-file {prompt_file}: already there; name another, or replace it with --overwrite")
    if ours:
        raise UserError(f"--sweep-dir {folder}: already there; go on with --resume, or replace it with --overwrite")
