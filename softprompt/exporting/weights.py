"""A copy of a base's weight files in which a few tensors are others; a file without any of them is linked."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from softprompt.base.checkpoint import FLOATS, STORED, Stored, stored_tensors
from softprompt.errors import UserError
from softprompt.system.foreign import decode_json

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor `[V, ...]`.

    Attributes:
        rows: new values `[n, ...]` by the first dimension's index; a row that the tensor lacks is appended to it.
    """

    name: str
    ids: list[int]
    rows: Tensor


def stored_name(stored: dict[str, Stored], name: str, prefix: str) -> str | None:
    """The name under which a checkpoint holds a parameter of the model, with or without the model's prefix."""
    inner = name.removeprefix(f"{prefix}.")
    tail = ".".join(name.split(".")[-2:])
    alike = [each for each in stored if each.endswith(f".{tail}")]
    candidates = [name, inner, f"{prefix}.{inner}", *(alike if len(alike) == 1 else ())]
    return next((each for each in candidates if each in stored), None)


def copy_weights(files: list[Path], out: Path, changes: list[Change]) -> list[str]:
    """Write the weights to the folder `out`; returns the names of the files that are new and not links.

    Raises:
        UserError: a tensor that changes is not stored as floats.
    """
    by_name = {change.name: change for change in changes}
    if files[0].suffix == ".bin":
        _write(out / "model.safetensors", stored_tensors(files), by_name)
        return ["model.safetensors"]
    written, grown = [], 0
    for file in files:
        stored = stored_tensors([file])
        if by_name.keys() & stored.keys():
            grown += _write(out / file.name, stored, by_name)
            written.append(file.name)
        else:
            link_or_copy(file, out / file.name)
    index = files[0].parent / INDEX
    if index.exists():
        content = decode_json(index.read_text("utf-8"))
        if isinstance(content.get("metadata"), dict) and isinstance(content["metadata"].get("total_size"), int):
            content["metadata"]["total_size"] += grown
        (out / INDEX).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return written


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file, or what a link leads to, a second name; where the disk cannot do that, copy it."""
    real = file.resolve()
    try:
        os.link(real, target)
    except (OSError, NotImplementedError):
        shutil.copyfile(real, target)


def _write(target: Path, stored: dict[str, Stored], changes: dict[str, Change]) -> int:
    """Write a safetensors file of tensors, some of them changed; returns by how many bytes those have grown."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end, grown = 0, 0
    for name, tensor in stored.items():
        shape = list(tensor.shape)
        if name in changes:
            if tensor.dtype not in FLOATS.values():
                raise UserError(f"`to` baked: the base stores {name} as {tensor.dtype}, in which no prompt can be put")
            shape[0] = max(shape[0], max(changes[name].ids) + 1)
        if tensor.dtype not in STORED and tensor.dtype != "BOOL":
            raise UserError(f"`to` baked: {name} is stored as {tensor.dtype}, which cannot be copied; use another base")
        size = _item_size(tensor.dtype) * torch.Size(shape).numel()
        grown += size - _item_size(tensor.dtype) * torch.Size(tensor.shape).numel()
        header[name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with target.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, tensor in stored.items():
            _write_tensor(file, tensor, changes.get(name))
    return grown


def _write_tensor(file: BinaryIO, tensor: Stored, change: Change | None) -> None:
    """Append the bytes of a tensor; rows that a change adds without naming them are zero."""
    start = file.tell()
    for chunk in tensor.chunks():
        file.write(_bytes_of(chunk))
    if change is None:
        return
    end = file.tell()
    rows = change.rows.to(STORED[tensor.dtype])
    row_size = torch.Size(tensor.shape[1:]).numel() * _item_size(tensor.dtype)
    missing = start + (max(change.ids) + 1) * row_size - end
    if missing > 0:
        file.write(bytes(missing))
    after = file.tell()
    for id, row in zip(change.ids, rows, strict=True):
        file.seek(start + id * row_size)
        file.write(_bytes_of(row))
    file.seek(after)


def _item_size(dtype: str) -> int:
    return 1 if dtype == "BOOL" else STORED[dtype].itemsize


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
