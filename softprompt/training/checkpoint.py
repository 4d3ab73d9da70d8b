"""The run folder: what may be replaced there, and checkpoints from which a run goes on to the bit.

A checkpoint is a folder `checkpoint-STEP` with `prompt.safetensors`, usable by `generate.py`, and `state.pt`.
"""

import io
import json
import pickle
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from softprompt.config.commands import TrainConfig
from softprompt.errors import UserError
from softprompt.prompt.file import PromptFile, load_prompt
from softprompt.system.files import atomic_folder, require_writable, write_atomic

PROMPT_NAME = "prompt.safetensors"
STATE_NAME = "state.pt"
METRICS_NAME = "metrics.jsonl"
ANSWERS_NAME = "answers.jsonl"  # of `--eval-generate`
STATE_VERSION = 4


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk; `state` holds tensors, numbers, text, lists and dicts only."""

    folder: Path
    prompt: PromptFile
    state: dict


def check_outputs(config: TrainConfig) -> None:
    """Refuse, before anything is loaded, to replace what is already there; writes nothing.

    Raises:
        UserError: the prompt file or run folder exists and no flag allows to replace it, or cannot be written.
    """
    prompt_file, folder = Path(config.prompt_file), config.run_folder
    check_places(prompt_file, folder, flag="--run-dir")
    foreign = [path.name for path in _numbered(folder) if not _is_ours(path)]
    if foreign:
        raise UserError(f"--run-dir {folder}: {foreign[0]} there holds files of another program; name another folder")
    if config.overwrite:
        return
    if config.resume:
        if last_checkpoint(folder) is None and prompt_file.exists():
            raise UserError(f"--resume: {folder} holds nothing to go on from, and {prompt_file} exists; it is kept")
        return
    if prompt_file.exists():
        raise UserError(f"--prompt-file {prompt_file}: already there; name another, or replace it with --overwrite")
    if folder.is_dir() and not _only_our_metrics(folder):
        raise UserError(f"--run-dir {folder}: already there; go on with --resume, or replace it with --overwrite")


def check_places(prompt_file: Path, folder: Path, *, flag: str) -> None:
    """Raise `UserError` unless a prompt file, and the folder that `flag` names, can be written there."""
    if prompt_file.is_dir():
        raise UserError(f"--prompt-file {prompt_file}: is a folder; name a file in it")
    if prompt_file.exists() and not prompt_file.is_file():
        raise UserError(f"--prompt-file {prompt_file}: is no plain file, and would be replaced by one; name another")
    if prompt_file.resolve() == folder.resolve():
        raise UserError(f"{flag} {folder}: is also the name of the --prompt-file {prompt_file}; name another")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag} {folder}: is a file; name another folder")
    require_writable(prompt_file.parent, flag=f"--prompt-file {prompt_file}")
    require_writable(folder, flag=f"{flag} {folder}")


def open_run_folder(config: TrainConfig) -> Path:
    """Make the run folder; a fresh start there clears what an earlier run wrote, and nothing else."""
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    Path(config.prompt_file).parent.mkdir(parents=True, exist_ok=True)
    if not config.resume:
        for path in _checkpoints(folder):
            shutil.rmtree(path)
        if _begins_like_ours(folder / METRICS_NAME):
            (folder / METRICS_NAME).unlink()
            (folder / ANSWERS_NAME).unlink(missing_ok=True)
    return folder


def save_checkpoint(run_folder: Path, step: int, prompt: bytes, state: dict) -> Path:
    """Write `checkpoint-STEP` whole or not at all; one that is there already is of the same step and stays."""
    folder = run_folder / f"checkpoint-{step}"
    if folder.exists():
        return folder
    buffer = io.BytesIO()
    torch.save(state | {"version": STATE_VERSION}, buffer)
    with atomic_folder(folder) as temporary:
        write_atomic(temporary / PROMPT_NAME, prompt)
        write_atomic(temporary / STATE_NAME, buffer.getvalue())
    return folder


def last_checkpoint(run_folder: Path) -> Path | None:
    """The checkpoint with the highest step."""
    return max(_checkpoints(run_folder), key=_step, default=None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: a file is missing or damaged, or another version wrote it.
    """
    path = folder / STATE_NAME
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot be read ({reason}); delete {folder} to go on from the one before") from error
    if state.get("version") != STATE_VERSION:
        raise UserError(f"{path}: written by another version of softprompt; start anew with --overwrite")
    return Checkpoint(folder, load_prompt(folder / PROMPT_NAME), state)


def check_same_run(state: dict, recipe: dict, prompt_file: Path, run_folder: Path) -> None:
    """Refuse to go on with another recipe, or to replace a prompt file that this run did not name.

    Raises:
        UserError: names the first option that differs, and both values.
    """
    check_same_recipe(state["recipe"], recipe)
    named = (run_folder / state["prompt_file"]).resolve()
    if named != prompt_file.resolve():
        raise UserError(f"--resume: this run writes {named.name}, not {prompt_file}; give the same --prompt-file")


def check_same_recipe(before: dict, now: dict) -> None:
    """Raise `UserError` that names the first option which differs from when the run started, and both values."""
    for name, value in now.items():
        if before.get(name) != value:
            started = before.get(name)
            raise UserError(f"--resume: {name} was {started!r} when this run started and is {value!r} now; keep it")


def _checkpoints(run_folder: Path) -> list[Path]:
    return [path for path in _numbered(run_folder) if _is_ours(path)]


def _numbered(run_folder: Path) -> list[Path]:
    """Everything called like a checkpoint; other programs use the same names."""
    return [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {PROMPT_NAME, STATE_NAME}


def _only_our_metrics(folder: Path) -> bool:
    """Whether a run folder has nothing to lose: it is empty, or its run ended before the first checkpoint."""
    return all(path.name == METRICS_NAME and _begins_like_ours(path) for path in folder.iterdir())


def _begins_like_ours(metrics_file: Path) -> bool:
    """Whether the first line is a record of a run."""
    try:
        with metrics_file.open(encoding="utf-8") as file:
            first = json.loads(file.readline() or '{"step": 0, "loss": 0}')
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "step" in first and ("loss" in first or "eval_loss" in first)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))
