"""The file of a training state: tensors and one JSON value in safetensors' format, with one checksum over all of it.

A file is read in this order, so that nothing in it costs more than it should: the length of the header and the size of
the file, the header, the dtypes and shapes that it claims, and only then the tensors.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from softprompt.errors import UserError
from softprompt.system.foreign import decode_json

FORMAT = "softprompt-state"
STATE_VERSION = 6
DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER = 1 << 22  # bytes; options, hashes and a file name are a few kilobytes
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# which tensors a state may have: for each its dtype and the sizes that every dimension may have
Layout = Mapping[str, tuple[torch.dtype, tuple[range, ...]]]


class Damaged(Exception):
    """A state cannot be used; the message says why."""


def state_bytes(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a state file; equal states give equal bytes."""
    raw, header, end = [], {}, 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        raw.append(tensor.numpy().tobytes())
        start, end = end, end + len(raw[-1])
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    data = b"".join(raw)
    metadata = {"format": FORMAT, "version": str(STATE_VERSION), "state": json.dumps(content, sort_keys=True)}
    metadata["sha256"] = _checksum(header | {"__metadata__": metadata}, data)
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-len(text) % 8)  # safetensors lets tensors start at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data


def read_state(
    path: Path, layout: Layout, compare: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON value and the tensors of a state file.

    Args:
        layout: the tensors that the state may have. One with more elements than that is refused before it is read.
        compare: called with the JSON value, which nothing has checked yet, if the tensors are others. It may raise a
            `UserError` that says why, which is that the state is of a run with other options.

    Raises:
        Damaged: the file cannot be read, was cut short or altered, or holds other tensors.
        UserError: another version of softprompt wrote the file.
    """
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            raise Damaged("it is missing" if not os.path.lexists(path) else "it is no plain file")
        with path.open("rb") as file:
            header, size = _read_header(file)
            metadata = header["__metadata__"]
            if metadata.get("version") != str(STATE_VERSION):
                raise UserError(f"{path}: written by another version of softprompt; start anew with `overwrite`")
            specs = {name: spec for name, spec in header.items() if name != "__metadata__"}
            try:
                places = _places(specs, layout, size)
            except Damaged:
                compare(_parsed(metadata["state"]))
                raise
            data = bytearray(file.read(size))
    except OSError as error:
        raise Damaged(error.strerror or str(error)) from error
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if len(data) != size or metadata.get("sha256") != _checksum(specs | {"__metadata__": rest}, data):
        raise Damaged("its checksum does not fit its content")
    return _parsed(metadata["state"]), {name: _tensor(place, data) for name, place in places.items()}


def to_number(value: float) -> float | str:
    """Return a float as JSON can hold it: one that is not finite becomes its name."""
    return value if math.isfinite(value) else str(value)


def from_number(value: object) -> float:
    """Return the float that `to_number` wrote; raises `Damaged` for anything else."""
    if isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise Damaged("a number in it is none")


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header and how many bytes of tensors follow it."""
    total = os.fstat(file.fileno()).st_size
    first = file.read(8)
    (length,) = struct.unpack("<Q", first) if len(first) == 8 else (total,)
    if length > min(total - 8, MOST_HEADER):
        raise Damaged("it is cut short, or is no state")
    header = _parsed(file.read(length))
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged("it is no state of softprompt")
    if metadata.get("format") != FORMAT or "state" not in metadata:
        raise Damaged("it is no state of softprompt")
    return header, total - 8 - length


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor begin, and what they are."""

    dtype: torch.dtype
    shape: list[int]
    start: int


def _places(specs: Mapping[str, Any], layout: Layout, size: int) -> dict[str, _Place]:
    """Return where the tensors are; raise `Damaged` unless they are among those of `layout` and fill `size` bytes."""
    places, end = {}, 0
    for name in sorted(specs):
        spec = specs[name]
        if name not in layout or not isinstance(spec, dict) or spec.keys() != {"dtype", "shape", "data_offsets"}:
            raise Damaged("it holds other tensors than a state of this run")
        dtype, sizes = layout[name]
        shape = spec["shape"]
        fits = isinstance(shape, list) and len(shape) == len(sizes)
        fits = fits and all(
            type(count) is int and count in allowed for count, allowed in zip(shape, sizes, strict=True)
        )
        if not fits or spec["dtype"] != NAMES[dtype]:
            raise Damaged(f"its tensor {name} has another shape or dtype than in this run")
        places[name] = _Place(dtype, shape, end)
        start, end = end, end + math.prod(shape) * dtype.itemsize
        if spec["data_offsets"] != [start, end]:
            raise Damaged(f"its tensor {name} is not where it should be")
    if end != size:
        raise Damaged("it is cut short, or longer than its tensors")
    return places


def _tensor(place: _Place, data: bytearray) -> Tensor:
    """Return a tensor of its own, copied out of `data`."""
    count = math.prod(place.shape)
    if count == 0:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(data, dtype=place.dtype, count=count, offset=place.start).reshape(place.shape).clone()


def _parsed(text: bytes | str) -> dict[str, Any]:
    """Parse a JSON object; raises `Damaged` for anything else."""
    try:
        value = decode_json(text)
    except ValueError as error:
        raise Damaged("its header is no JSON") from error
    if not isinstance(value, dict):
        raise Damaged("its header is no JSON object")
    return value


def _checksum(header: Mapping[str, Any], data: bytes | bytearray) -> str:
    """The SHA-256 of the header as JSON with sorted keys, without the checksum itself, followed by the tensors."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
