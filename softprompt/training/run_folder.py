"""The run folder: what may be replaced in it, who writes to it, and what is cleared before a run begins."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from softprompt.config.commands import TrainConfig
from softprompt.errors import UserError
from softprompt.system.files import (
    FileId,
    check_output_file,
    check_output_folder,
    remove_temporaries,
    require_writable,
)
from softprompt.system.foreign import decode_json
from softprompt.system.locks import hold_lock
from softprompt.training.checkpoint import PROMPT_NAME, STATE_NAME, checkpoints, is_ours, numbered, remove_checkpoint
from softprompt.training.run_log import METRICS_NAME, is_metrics_file

CONFIG_NAME = "config.json"  # `run.py` writes it
# the file in which a sweep folder records what is searched; a folder without it is no sweep folder
RECIPE_NAME = "sweep.json"
CONFIG_KIND = "softprompt run"  # value of its key `kind`, which tells it from files of other programs
ANSWERS_NAME = "answers.jsonl"  # the answers that `eval_generate` asks for
LOCK_NAME = ".lock"  # there while a process writes to the folder
# a pattern of what runs and sweeps write in a folder of their own
OURS = rf"checkpoint-\d+|{PROMPT_NAME}|{STATE_NAME}|{CONFIG_NAME}|{METRICS_NAME}|{ANSWERS_NAME}"
OURS += rf"|{RECIPE_NAME}|round-\d+\.json"


@contextlib.contextmanager
def reserved_run(config: TrainConfig, say: Callable[[str], None]) -> Iterator[FileId | None]:
    """Check the outputs of a run, and keep other runs out of its folder within the block.

    It yields the prompt file that the run may replace.

    Args:
        say: takes a line if the file system has no locks.

    Raises:
        UserError: as `check_outputs`; or another process uses the folder.
    """
    folder = config.run_folder
    if not folder.is_dir():
        check_outputs(config)  # before the folder is made for the lock
    with hold_lock(folder / LOCK_NAME, what=f"`run_dir` {folder}", say=say):
        check_outputs(config)
        yield FileId.of(config.prompt_file) if config.overwrite or config.resume else None


def check_outputs(config: TrainConfig) -> None:
    """Check, before anything is loaded, that the run may write its outputs; nothing that lasts is written here.

    Raises:
        UserError: the prompt file or the run folder exists and no option allows replacing it, it cannot be written, or
            the run folder holds files of another program.
    """
    prompt_file, folder = Path(config.prompt_file), config.run_folder
    check_places(prompt_file, folder, option="run_dir", replace=config.overwrite or config.resume)
    names = (f"checkpoint-{10**9}", METRICS_NAME)  # longer than any that is needed
    require_writable(folder, what=f"`run_dir` {folder}", names=names)
    foreign = [path.name for path in numbered(folder) if not is_ours(path)]
    if foreign:
        raise UserError(f"`run_dir` {folder}: {foreign[0]} there holds files of another program; name another folder")
    if _is_foreign_config(folder / CONFIG_NAME):
        raise UserError(f"`run_dir` {folder}: {CONFIG_NAME} there is of another program; name another folder")
    if config.overwrite:
        return
    if config.resume:
        if not checkpoints(folder) and prompt_file.exists():
            raise UserError(
                f"`resume`: {folder} holds nothing to go on from, and {prompt_file} exists and is kept; start anew with"
                " `overwrite`"
            )
        return
    if folder.is_dir() and not _holds_no_work(folder):
        raise UserError(f"`run_dir` {folder}: already there; go on with `resume`, or replace it with `overwrite`")


def check_places(prompt_file: Path, folder: Path, *, option: str, replace: bool) -> None:
    """Raise `UserError` unless the prompt file and the folder that `option` names can be written."""
    check_output_file(prompt_file, option="prompt_file", replace=replace)
    if prompt_file.resolve() == folder.resolve():
        raise UserError(f"`{option}` {folder}: is also the name of the `prompt_file` {prompt_file}; name another")
    check_output_folder(folder, option=option)


def open_run_folder(config: TrainConfig) -> Path:
    """Make the run folder and return it, and remove temporary files of dead runs.

    Without `resume`, what an earlier run wrote there is deleted, and nothing else. Its options go first, so that a run
    which is cut short here is not resumed with options that its checkpoints do not have.
    """
    folder, prompt_file = config.run_folder, Path(config.prompt_file)
    folder.mkdir(parents=True, exist_ok=True)
    prompt_file.parent.mkdir(parents=True, exist_ok=True)
    clear_temporaries(prompt_file, folder)
    if not config.resume:
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        for path in checkpoints(folder):
            remove_checkpoint(path)
        if is_metrics_file(folder / METRICS_NAME):
            (folder / METRICS_NAME).unlink()
            (folder / ANSWERS_NAME).unlink(missing_ok=True)
    return folder


def clear_temporaries(prompt_file: Path, folder: Path) -> None:
    """Remove the temporary files that killed runs left in a run folder and beside its prompt file."""
    remove_temporaries(folder, OURS, locked=(folder / LOCK_NAME).exists())
    remove_temporaries(prompt_file.parent, re.escape(prompt_file.name), locked=False)


def _is_foreign_config(path: Path) -> bool:
    """Whether another program wrote a `config.json`: a base's folder has one too. An unreadable file is not foreign."""
    try:
        content = decode_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return not isinstance(content, dict) or content.get("kind") != CONFIG_KIND


def _holds_no_work(folder: Path) -> bool:
    """Whether nothing is lost with a run folder: it is empty, or its run ended before the first checkpoint."""
    return all(
        path.name in (CONFIG_NAME, LOCK_NAME)
        or path.suffix == ".tmp"
        or (path.name == METRICS_NAME and is_metrics_file(path))
        for path in folder.iterdir()
    )
