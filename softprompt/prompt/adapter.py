"""Prompts that others saved: folders of PEFT's prompt-learning methods, and arrays of NumPy.

Such a file may be a stranger's. It is data: JSON and tensors, whose headers are checked before a value is read.
"""

import ast
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.base.checkpoint import Stored, stored_tensors
from softprompt.errors import UserError
from softprompt.system.foreign import foreign, read_json, require_plain_file, visible

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
TENSOR_NAME = "prompt_embeddings"
TASK_NAMES = ("prefix_task_cols", "prefix_task_rows")
ARRAY = "NumPy array"
MOST_VALUES = 1 << 31  # of a tensor; in fp32 they are the 8 GiB that a prompt file may have
# the methods whose saved `prompt_embeddings` are what stands in front of the text
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING")
PER_LAYER = ("PREFIX_TUNING", "CARTRIDGE")
ARRAY_MAGIC = b"\x93NUMPY"
MAX_ARRAY_HEADER = 1 << 16  # bytes
ARRAY_DTYPES = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}


@dataclass(frozen=True)
class Adapter:
    """A prompt that an adapter holds.

    Attributes:
        weight: fp32 `[P, H]`.
        kind: PEFT's name of the method, or `ARRAY`.
        base: the name of the base that the adapter's config states; "" if it states none.
        revision: the revision of that base on the hub, or "".
    """

    weight: Tensor
    kind: str
    base: str = ""
    revision: str = ""


def weight_file(folder: Path, name: str) -> Path:
    """The file of an adapter's tensors.

    Args:
        name: what the user called the adapter.

    Raises:
        UserError: the folder is no adapter, or has no such file.
    """
    if not (folder / CONFIG_NAME).exists():
        raise UserError(
            f"{name}: no such prompt file, but a folder, and without {CONFIG_NAME} it is no adapter of PEFT"
        )
    found = next((folder / each for each in WEIGHT_NAMES if (folder / each).exists()), None)
    if found is None:
        raise UserError(f"{name}: no {' or '.join(WEIGHT_NAMES)} there; save the adapter again")
    return found


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The config of an adapter that is a prompt of a causal language model.

    Raises:
        UserError: it is no JSON, or the adapter is something else; the message says what.
    """
    config = read_json(folder / CONFIG_NAME, name)
    kind = config.get("peft_type")
    said = visible(str(kind)[:80])
    if kind in PER_LAYER:
        raise UserError(
            f"{name}: an adapter of type {said}, which holds keys and values of every layer and is no prompt of"
            " embeddings; only PEFT runs it"
        )
    if kind not in PROMPTS:
        raise UserError(f"{name}: an adapter of type {said}, which is no prompt; only {', '.join(PROMPTS)} are read")
    task = config.get("task_type")
    if config.get("num_transformer_submodules") not in (None, 1) or task == "SEQ_2_SEQ_LM":
        raise UserError(f"{name}: a prompt for an encoder and a decoder; only prompts of causal models are read")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{name}: a prompt for {visible(str(task)[:80])}; only prompts of causal models are read")
    if config.get("modules_to_save"):
        raise UserError(
            f"{name}: has `modules_to_save`, so it holds trained weights of the base besides the prompt; only PEFT"
            " runs it"
        )
    return config


def read_adapter(folder: Path, name: str, *, task: int | None = None) -> Adapter:
    """Read the prompt of an adapter folder.

    Args:
        name: what the user called the adapter, for messages.
        task: the number of the task, from 0, of an adapter that holds several.

    Raises:
        UserError: the adapter is damaged, is no prompt, or holds several and none of them is named.
    """
    config, file = read_config(folder, name), weight_file(folder, name)
    stored = stored_tensors([file])
    kind = config["peft_type"]
    extra = sorted(stored.keys() - {TENSOR_NAME, *(TASK_NAMES if kind == "MULTITASK_PROMPT_TUNING" else ())})
    if TENSOR_NAME not in stored or extra:
        what = f"holds {visible(extra[0][:80])!r} besides" if TENSOR_NAME in stored else "holds no"
        raise UserError(f"{name}: {file.name} {what} {TENSOR_NAME!r}, so it is no adapter of type {kind}")
    weight = _tensor(stored[TENSOR_NAME], name)
    _check_shape(weight, config, name)
    if kind == "MULTITASK_PROMPT_TUNING":
        weight = _of_task(weight, stored, task, name)
    elif task is not None:
        raise UserError(f"`task` {task}: {name} holds one prompt, of type {kind}; leave it out")
    stated = {key: config.get(key) for key in ("base_model_name_or_path", "revision")}
    base, revision = (each if isinstance(each, str) else "" for each in stated.values())
    return Adapter(weight, kind, base, revision if base else "")


def _check_shape(weight: Tensor, config: dict[str, Any], name: str) -> None:
    """Raise `UserError` unless the tensor is the `[P, H]` that the config states, as far as it states it."""
    wanted = [config.get("num_virtual_tokens"), config.get("token_dim")]
    shape = list(weight.shape)
    if len(shape) == 2 and all(stated in (None, size) for stated, size in zip(wanted, shape, strict=True)):
        return
    width = wanted[1]
    if len(shape) == 2 and isinstance(width, int) and 0 < width < shape[1] and shape[1] % width == 0:
        raise UserError(
            f"{name}: its rows have {shape[1]:,} numbers, {shape[1] // width} times the hidden size {width}: keys and"
            " values of every layer, as in prefix tuning, and no prompt of embeddings"
        )
    said = visible(str(wanted)[:80])
    raise UserError(f"{name}: its tensor is {shape}, its {CONFIG_NAME} says {said}; save the adapter again")


def _of_task(weight: Tensor, stored: dict[str, Stored], task: int | None, name: str) -> Tensor:
    """The prompt of one task: the shared prompt times the product of the task's columns and rows.

    That is Wang et al. (2023), section 3.1: columns `[T, P, R]` and rows `[T, R, H]` for T tasks and rank R.
    """
    if any(each not in stored for each in TASK_NAMES):
        raise UserError(f"{name}: lacks {' or '.join(TASK_NAMES)}, without which no task has a prompt")
    columns, rows = (_tensor(stored[each], name) for each in TASK_NAMES)
    count = len(columns) if columns.dim() == 3 else 0
    rank = columns.shape[-1] if count else 0
    if list(columns.shape) != [count, len(weight), rank] or list(rows.shape) != [count, rank, weight.shape[1]]:
        raise UserError(f"{name}: its tensors {list(columns.shape)} and {list(rows.shape)} do not fit its prompt")
    if task is None and count == 1:
        task = 0
    if task is None or not 0 <= task < count:
        asked = "name one" if task is None else f"there is no {task}"
        raise UserError(f"{name}: holds prompts of {count} tasks, 0 to {count - 1}: {asked} with `task` in `import`")
    return weight * (columns[task] @ rows[task])


def _tensor(stored: Stored, name: str) -> Tensor:
    """A tensor of a file in fp32."""
    if math.prod(stored.shape) > MOST_VALUES:
        raise UserError(f"{name}: a tensor of {stored.shape} is larger than any prompt")
    if 0 in stored.shape:
        raise UserError(f"{name}: holds a tensor of {stored.shape}, which is empty")
    with foreign(f"{name}: its tensors cannot be read"):
        return torch.cat([chunk.to(torch.float32) for chunk in stored.chunks()]).reshape(stored.shape)


def read_array(file: Path, name: str) -> Adapter:
    """Read a NumPy file that holds a float matrix `[P, H]`.

    Raises:
        UserError: it is no such file.
    """
    problem = f"{name}: not a NumPy file of a float matrix [P, H]"
    require_plain_file(file, name)
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(12)
        wide = start[6:7] != b"\x01"  # from version 2 on, the length of the header has four bytes and not two
        length = int.from_bytes(start[8:12] if wide else start[8:10], "little")
        first = (12 if wide else 10) + length
        if start[:6] != ARRAY_MAGIC or length > MAX_ARRAY_HEADER or first > size:
            raise UserError(problem)
        opened.seek(first - length)
        with foreign(problem):
            header = ast.literal_eval(opened.read(length).decode("latin-1").strip())
        match header:
            case {"descr": str(dtype), "fortran_order": False, "shape": (int(count), int(width))} if (
                dtype in ARRAY_DTYPES and count > 0 and width > 0
            ):
                whole = count * width * ARRAY_DTYPES[dtype].itemsize
                if first + whole == size and count * width <= MOST_VALUES:
                    raw = bytearray(opened.read(whole))
                    weight = torch.frombuffer(raw, dtype=ARRAY_DTYPES[dtype]).reshape(count, width)
                    return Adapter(weight.to(torch.float32), ARRAY)
    raise UserError(problem)


def array_bytes(weight: Tensor) -> bytes:
    """A matrix `[P, H]` as the content of a NumPy file, in fp32 and format version 1."""
    raw = weight.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
    header = repr({"descr": "<f4", "fortran_order": False, "shape": tuple(weight.shape)}).encode()
    header += b" " * (-(len(ARRAY_MAGIC) + 5 + len(header)) % 64) + b"\n"  # the data begin at a multiple of 64
    return ARRAY_MAGIC + b"\x01\x00" + len(header).to_bytes(2, "little") + header + raw
