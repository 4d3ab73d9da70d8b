"""Checkpoints, from which a resumed run gives the same bits.

A checkpoint is a folder `checkpoint-STEP` with `state.safetensors`, which holds all that a resumed run reads, and
`prompt.safetensors`, which is for `generate`.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.errors import UserError
from softprompt.system.files import SUFFIX, atomic_folder, remove_folder, temporary_prefix, write_atomic
from softprompt.training.recipe import Recipe
from softprompt.training.state_file import Damaged, Layout, from_number, read_state, state_bytes

PROMPT_NAME = "prompt.safetensors"
STATE_NAME = "state.safetensors"
OLD_STATE_NAME = "state.pt"  # of versions before 6; it is never read
MOST_THREADS = 1024


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk: `content`, whose values have the types of `FIELDS`, and tensors."""

    folder: Path
    content: dict[str, Any]
    tensors: dict[str, Tensor]


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 to 2^63 - 1."""
    return type(value) is int and 0 <= value < 2**63


def is_number(value: object) -> bool:
    """Whether a value is a float as `state_file.to_number` writes it."""
    try:
        from_number(value)
    except Damaged:
        return False
    return True


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_recipe(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"options", "facts"} and all(map(_is_dict, value.values()))


def _is_scaler(value: object) -> bool:
    if not isinstance(value, dict):
        return value is None
    numbers = value.keys() == {"scale", "growth_tracker"} and is_number(value["scale"])
    return numbers and from_number(value["scale"]) > 0 and is_count(value["growth_tracker"])


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


# what a state holds besides tensors, each with what its value must be
FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": is_count,
    "train_loss": is_number,
    "loss_sum": is_number,
    "supervised": is_count,
    "without_prompt": lambda value: value is None or is_number(value),
    "best_step": is_count,
    "stale": is_count,
    "not_finite": is_count,
    "recipe": _is_recipe,
    "prompt_file": _is_text,
    "data": _is_text,
    "rate": lambda value: is_number(value) and 0 < from_number(value) < float("inf"),
    "max_grad_norm": lambda value: is_number(value) and from_number(value) > 0,
    "scaler": _is_scaler,
    "max_tokens_per_pass": lambda value: is_count(value) and value > 0,
    "num_threads": lambda value: is_count(value) and 0 < value <= MOST_THREADS,
}


def save_checkpoint(
    run_folder: Path, step: int, prompt: bytes, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write `checkpoint-STEP` whole or not at all; a folder of that name, whose state is damaged, is replaced.

    Raises:
        OSError: the disk is full or refuses; what was there is unchanged.
    """
    folder = run_folder / f"checkpoint-{step}"
    with atomic_folder(folder) as temporary:
        write_atomic(temporary / PROMPT_NAME, prompt)
        write_atomic(temporary / STATE_NAME, state_bytes(content, tensors))
    return folder


def prune_checkpoints(run_folder: Path, step: int, limit: int) -> None:
    """Remove all checkpoints up to `step` but the last `limit`, or none if `limit` is 0."""
    older = [path for path in checkpoints(run_folder) if step_of(path) <= step]
    for path in older[:-limit] if limit else []:
        remove_checkpoint(path)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, which is whole under its name until it is gone."""
    grave = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_prefix(folder), suffix=SUFFIX))
    folder.rename(grave / folder.name)
    remove_folder(grave)


def checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoints of softprompt in a folder, by step."""
    return sorted((path for path in numbered(run_folder) if is_ours(path)), key=step_of)


def numbered(run_folder: Path) -> list[Path]:
    """Return every path that is named like a checkpoint, since other programs use the same names."""
    return [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]


def is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but files of a checkpoint."""
    names = {PROMPT_NAME, STATE_NAME, OLD_STATE_NAME}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= names


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(folder.name.removeprefix("checkpoint-"))


def load_checkpoint(folder: Path, layout: Layout, compare: Callable[[Recipe], None]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        layout: the tensors that a state of this run may have.
        compare: raises `UserError` if the recipe of the state is not that of this run; called to tell why its tensors
            are others.

    Raises:
        Damaged: the state is missing, cut short, altered, or not of this folder's step.
        UserError: another version of softprompt wrote it, or a run with other options.
    """
    path = folder / STATE_NAME

    def compare_recipes(content: dict[str, Any]) -> None:
        if _is_recipe(content.get("recipe")):
            compare(Recipe(**content["recipe"]))

    if (folder / OLD_STATE_NAME).exists() and not path.exists():
        raise UserError(f"{folder}: written by another version of softprompt; start anew with `overwrite`")
    content, tensors = read_state(path, layout, compare_recipes)
    if content.keys() != FIELDS.keys():
        raise Damaged("it has other keys than a state")
    for name, is_right in FIELDS.items():
        if not is_right(content[name]):
            raise Damaged(f"its `{name}` is not what it should be")
    if content["step"] != step_of(folder):
        raise Damaged(f"it is of step {content['step']}, and its folder of another")
    return Checkpoint(folder, content, tensors)


def rng_layout(device: torch.device) -> dict[str, tuple[torch.dtype, tuple[range, ...]]]:
    """Return the tensors that hold PyTorch's random states."""
    states = rng_tensors(device)
    return {name: (state.dtype, (range(len(state), len(state) + 1),)) for name, state in states.items()}


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return PyTorch's random states by the names that a checkpoint has for them."""
    states = {"rng": torch.get_rng_state()}
    return states | ({"cuda_rng": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_rng(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `rng_tensors` returned; raises `Damaged` for what is no random state."""
    try:
        torch.set_rng_state(tensors["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda_rng"], device)
    except Exception as error:
        raise Damaged("its random state is none") from error
