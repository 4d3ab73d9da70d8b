"""The run folder: what may be replaced in it, and checkpoints from which a resumed run gives the same bits.

A checkpoint is a folder `checkpoint-STEP` that holds `prompt.safetensors`, which `generate` can use, and `state.pt`.
"""

import io
import json
import pickle
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softprompt.config.commands import TrainConfig
from softprompt.errors import UserError
from softprompt.prompt.file import PromptFile, load_prompt
from softprompt.system.files import atomic_folder, check_output_file, check_output_folder, write_atomic
from softprompt.training.run_log import METRICS_NAME, is_metrics_file

PROMPT_NAME = "prompt.safetensors"
STATE_NAME = "state.pt"
CONFIG_NAME = "config.json"  # `run.py` writes it
CONFIG_KIND = "softprompt run"  # value of its key `kind`, which tells it from files of other programs
ANSWERS_NAME = "answers.jsonl"  # the answers that `eval_generate` asks for
STATE_VERSION = 5


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk. `state` holds only tensors, numbers, text, lists and dicts."""

    folder: Path
    prompt: PromptFile
    state: dict[str, Any]


def check_outputs(config: TrainConfig) -> None:
    """Check, before anything is loaded, that the run may write its outputs; nothing is written here.

    Raises:
        UserError: the prompt file or the run folder exists and no option allows replacing it, it cannot be written, or
            the run folder holds files of another program.
    """
    prompt_file, folder = Path(config.prompt_file), config.run_folder
    check_places(prompt_file, folder, option="run_dir", replace=config.overwrite or config.resume)
    foreign = [path.name for path in _numbered(folder) if not _is_ours(path)]
    if foreign:
        raise UserError(f"`run_dir` {folder}: {foreign[0]} there holds files of another program; name another folder")
    if _is_foreign_config(folder / CONFIG_NAME):
        raise UserError(f"`run_dir` {folder}: {CONFIG_NAME} there is of another program; name another folder")
    if config.overwrite:
        return
    if config.resume:
        if last_checkpoint(folder) is None and prompt_file.exists():
            raise UserError(f"`resume`: {folder} holds nothing to go on from, and {prompt_file} exists; it is kept")
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
    """Make the run folder and return it. Without `resume`, what an earlier run wrote there is deleted, nothing else."""
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    Path(config.prompt_file).parent.mkdir(parents=True, exist_ok=True)
    if not config.resume:
        for path in _checkpoints(folder):
            shutil.rmtree(path)
        if is_metrics_file(folder / METRICS_NAME):
            (folder / METRICS_NAME).unlink()
            (folder / ANSWERS_NAME).unlink(missing_ok=True)
    return folder


def save_checkpoint(run_folder: Path, step: int, prompt: bytes, state: dict[str, Any]) -> Path:
    """Write `checkpoint-STEP` whole or not at all. If the folder exists, it was written at this step, so it is kept."""
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
    """Return the checkpoint with the highest step, or None if there is none."""
    return max(_checkpoints(run_folder), key=_step, default=None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: a file is missing or damaged, or another version wrote it.
    """
    path = folder / STATE_NAME
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums
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
        raise UserError(f"{path}: written by another version of softprompt; start anew with `overwrite`")
    return Checkpoint(folder, load_prompt(folder / PROMPT_NAME), state)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return what a resumed run needs of PyTorch's global state: the random states and the number of threads."""
    return {
        "num_threads": torch.get_num_threads(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_states` returned."""
    torch.set_num_threads(state["num_threads"])
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"], device)


def _checkpoints(run_folder: Path) -> list[Path]:
    return [path for path in _numbered(run_folder) if _is_ours(path)]


def _numbered(run_folder: Path) -> list[Path]:
    """Return every path that is named like a checkpoint, since other programs use the same names."""
    return [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {PROMPT_NAME, STATE_NAME}


def _is_foreign_config(path: Path) -> bool:
    """Whether another program wrote a `config.json`: a base's folder has one too. An unreadable file is not foreign."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return not isinstance(content, dict) or content.get("kind") != CONFIG_KIND


def _holds_no_work(folder: Path) -> bool:
    """Whether nothing is lost with a run folder: it is empty, or its run ended before the first checkpoint."""
    return all(
        path.name == CONFIG_NAME or (path.name == METRICS_NAME and is_metrics_file(path)) for path in folder.iterdir()
    )


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))
