"""The weight files of a base: which they are, and what their headers say before a value is read.

A header is checked against the size of its file, so nothing larger than the file is ever allocated for it.
"""

import functools
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from softprompt.errors import UserError
from softprompt.system.foreign import decode_json, foreign, read_json, reason_of, require_plain_file, visible

CHUNK = 1 << 22  # so many elements are read and converted to fp32 at a time
MAX_HEADER_BYTES = 100_000_000  # as in safetensors itself
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
STORED = {name: dtype for dtype, name in (FLOATS | INTEGERS).items()}
COMPLEX = re.compile("C[0-9]|.*complex", re.IGNORECASE)  # as safetensors or torch spells the dtype
WHOLE_NUMBERS = {*INTEGERS.values(), "BOOL", "U16", "U32", "U64"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype as safetensors spells it, its shape, and a function that reads it in chunks."""

    dtype: str
    shape: list[int]
    chunks: Callable[[], Iterator[Tensor]]


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's weight files: `model*.safetensors` if there are any, else `pytorch_model*.bin`.

    Raises:
        UserError: there are no weight files, or an index of shards is damaged or names a file that is missing or that
            lies outside the folder.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        files = _indexed_files(index) if index.exists() else [folder / f"{stem}.{suffix}"]
        missing = [file.name for file in files if not file.exists()]
        if index.exists() and missing:
            raise UserError(f"{folder}: {index.name} names {missing[0]}, which is not there; fetch the model again")
        if not missing:
            return files
    raise UserError(f"{folder}: no weights (model.safetensors or pytorch_model.bin); is it a model's folder?")


def _indexed_files(index: Path) -> list[Path]:
    """The files that an index of shards names; raises `UserError` if it is not an index."""
    named = read_json(index, str(index.parent)).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index}: not an index of weight files; fetch the model again")
    if outside := next((name for name in named.values() if name != Path(name).name), None):
        raise UserError(f"{index}: names {outside!r}, which is not the name of a file beside it")
    return sorted({index.parent / name for name in named.values()})


def stored_tensors(files: list[Path]) -> dict[str, Stored]:
    """Every tensor of a checkpoint by its name; values are read only when `chunks` is called.

    Raises:
        UserError: a file is no checkpoint, is cut short, or holds nothing or complex numbers.
    """
    stored = {
        name: tensor
        for file in files
        for name, tensor in (_safetensors(file) if file.suffix == ".safetensors" else _pickled(file)).items()
    }
    if not stored:
        raise UserError(f"{files[0]}: holds no tensor")
    for name, tensor in stored.items():
        if COMPLEX.match(tensor.dtype):
            raise UserError(f"{files[0].parent}: {visible(name)} holds complex numbers, which no base has")
    return stored


def _safetensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, which is read and not mapped.

    The pages of a mapped file would count as memory of the process for as long as the file is open.
    """
    require_plain_file(file, str(file.parent))
    header, start, size = _header(file)
    stored, end_of_all = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(file, name, entry)
        whole = math.prod(shape)
        if dtype in STORED and whole * STORED[dtype].itemsize != end - begin:
            raise UserError(f"{file}: its header gives {name} {shape} {dtype} and {end - begin} bytes; it is damaged")
        chunks = functools.partial(_read_chunks, file, name, dtype, start + begin, start + end)
        stored[name] = Stored(dtype, shape, chunks)
        end_of_all = max(end_of_all, end)
    if start + end_of_all != size:
        what = "cut short" if start + end_of_all > size else "longer than its header says"
        raise UserError(f"{file}: {what}: {size:,} bytes, and its header says {start + end_of_all:,}; fetch it again")
    return stored


def _header(file: Path) -> tuple[dict, int, int]:
    """The header of a safetensors file, the offset at which its tensors start, and the size of the file."""
    problem = f"{file}: not a safetensors file, or cut short"
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise UserError(
                f"{problem} (its header would have {length:,} bytes, the file has {size:,}); fetch it again"
            )
        raw = opened.read(length)
    try:
        header = decode_json(raw)
    except ValueError as error:
        raise UserError(f"{problem} ({reason_of(error)}); fetch it again") from error
    if not isinstance(header, dict):
        raise UserError(f"{problem} (its header is no JSON object); fetch it again")
    return header, 8 + length, size


def _entry(file: Path, name: str, entry: object) -> tuple[str, list[int], int, int]:
    """Dtype, shape and the two offsets of one tensor of a header."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            if all(map(_is_size, (*shape, begin, end))) and begin <= end:
                return dtype, shape, begin, end
    raise UserError(f"{file}: its header says nothing usable of {name!r}; fetch it again")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _read_chunks(file: Path, name: str, dtype: str, begin: int, end: int) -> Iterator[Tensor]:
    """Read the values between two byte offsets of a file in chunks; safetensors reads dtypes that are not `STORED`."""
    if dtype not in STORED:
        with foreign(f"{file}: {name} cannot be read"), safe_open(file, "pt") as opened:
            whole = opened.get_tensor(name).reshape(-1)
        yield from whole.split(CHUNK)
        return
    step = CHUNK * STORED[dtype].itemsize
    with file.open("rb") as opened:
        opened.seek(begin)
        for start in range(begin, end, step):
            yield torch.frombuffer(bytearray(opened.read(min(step, end - start))), dtype=STORED[dtype])


def _pickled(file: Path) -> dict[str, Stored]:
    """The tensors of a `.bin` file.

    They may be views of a small storage, or share one, so their sizes are compared with the file's.
    """
    require_plain_file(file, str(file.parent))
    with foreign(f"{file}: its weights cannot be loaded"):
        # torch's zip format is mapped and read when it is used; pickled code is refused
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(loaded, dict) or not all(isinstance(each, str) for each in loaded):
        raise UserError(f"{file}: not a checkpoint, which is a dict of tensors by name")
    other = next((name for name, each in loaded.items() if not isinstance(each, Tensor)), None)
    if other is not None:
        raise UserError(f"{file}: {other!r} is not a tensor")
    if sum(each.numel() * each.element_size() for each in loaded.values()) > 4 * file.stat().st_size + (1 << 20):
        raise UserError(f"{file}: its tensors are several times larger than the file; it is damaged")
    names = FLOATS | INTEGERS | {torch.bool: "BOOL"}
    return {
        name: Stored(names.get(t.dtype, str(t.dtype)), list(t.shape), functools.partial(_split, t))
        for name, t in loaded.items()
    }


def _split(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.reshape(-1).split(CHUNK)
