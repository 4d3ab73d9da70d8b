"""The prompt file: one safetensors file with the prompt and, as string metadata, all that `generate` needs to know.

The tensor has PEFT's name, `prompt_embeddings`, so the file also is a PEFT `adapter_model.safetensors`. Equal prompts
and metadata give equal bytes: the header is written here with sorted keys, since safetensors 0.8 writes metadata in
random order.
"""

import dataclasses
import hashlib
import io
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from softprompt.errors import UserError
from softprompt.prompt.adapter import TENSOR_NAME, Adapter, read_adapter, read_array, read_config, weight_file
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.metadata import MAX_HEADER_BYTES, PromptMetadata, is_count
from softprompt.system import sources
from softprompt.system.files import write_atomic
from softprompt.system.foreign import decode_json, reason_of, visible

FORMAT = "softprompt"
FORMAT_VERSION = "2"
READABLE_VERSIONS = ("1", "2")  # version 1 knows the tutorial's template only, in front of everything and without bos
MAX_TENSOR_BYTES = 1 << 33
MAX_VALUE = 1e15  # squares of larger numbers, summed over the hidden size, overflow in fp32


@dataclass(frozen=True)
class PromptFile:
    """A prompt read from disk: `weight`, fp32 `[P, H]`, the file's metadata as strings, and with the type of each.

    Attributes:
        adapter: what the prompt was read from, if that is no prompt file: PEFT's name of a method, or a NumPy array. It
            does not say on which weights, nor under which template it was trained.
    """

    weight: Tensor
    metadata: dict[str, str]
    facts: PromptMetadata
    adapter: str = ""


def save_prompt(path: str | os.PathLike, prompt: SoftPromptEmbedding, metadata: dict[str, str]) -> None:
    """Write `prompt` to `path` atomically, with shape, format and checksum added to `metadata`.

    Raises:
        OSError: the file cannot be written; a file that was at `path` is unchanged.
        UserError: `load_prompt` would refuse the file; nothing is written then either.
    """
    write_atomic(path, prompt_bytes(prompt, metadata))


def prompt_bytes(
    prompt: SoftPromptEmbedding, metadata: dict[str, str], *, name: str = "the prompt that was to be written"
) -> bytes:
    """The content of a prompt file. Equal prompts and metadata give equal bytes on every machine.

    Args:
        name: what messages call it.

    Raises:
        UserError: `load_prompt` would refuse the file.
    """
    raw = prompt.weight.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
    shape = list(prompt.weight.shape)
    metadata = {key: value for key, value in metadata.items() if key != "sha256"} | {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_virtual_tokens": str(shape[0]),
        "hidden_size": str(shape[1]),
    }
    metadata["sha256"] = _checksum(raw, metadata)
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(raw)]}
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), TENSOR_NAME: tensor}).encode()
    header += b" " * (-len(header) % 8)  # safetensors lets tensors start at a multiple of 8 bytes
    content = struct.pack("<Q", len(header)) + header + raw
    _read(io.BytesIO(content), len(content), name)
    return content


def load_prompt(path: str | os.PathLike, *, task: int | None = None) -> PromptFile:
    """Read and check a prompt: a prompt file, an adapter folder of PEFT, the hub id of one, or a `.npy` file.

    It may be a stranger's, so nothing is read that its own size does not allow.

    Args:
        task: the number of the task, for an adapter that holds the prompts of several.

    Raises:
        UserError: there is nothing of that name, or it is truncated, altered, no prompt, or of another format version;
            a key of its metadata does not have its type; or the prompt holds NaN, infinity or numbers that no base can
            compute with.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return _from_folder(Path(name), name, task)
    if not os.path.isfile(name):
        if sources.is_adapter_id(name):
            return _from_folder(sources.adapter_snapshot(name), name, task)
        raise UserError(f"{name}: no such prompt file; `softprompt train` writes one")
    if task is not None:
        raise UserError(f"`task` {task}: {name} holds one prompt; leave it out")
    if name.lower().endswith(".npy"):
        return _from_adapter(read_array(Path(name), name), name)
    with open(name, "rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size, name)


def _from_folder(folder: Path, name: str, task: int | None) -> PromptFile:
    """Read the prompt of an adapter folder; what `softprompt export` wrote there is a prompt file like any other."""
    file = weight_file(folder, name)
    if is_prompt_file(file):
        read_config(folder, name)
        return load_prompt(file, task=task)
    return _from_adapter(read_adapter(folder, name, task=task), name)


def _from_adapter(adapter: Adapter, name: str) -> PromptFile:
    """The prompt of an adapter as a prompt file has it, with all that the adapter says."""
    if not torch.isfinite(adapter.weight).all():
        raise UserError(f"{name}: the prompt holds NaN or infinity")
    stated = {"base": adapter.base, "base_revision": adapter.revision}
    return prompt_of(SoftPromptEmbedding.from_tensor(adapter.weight), stated, adapter=adapter.kind, name=name)


def prompt_of(
    prompt: SoftPromptEmbedding, metadata: dict[str, str], *, adapter: str = "", name: str = "the prompt"
) -> PromptFile:
    """A prompt as it would be read from the file that `prompt_bytes` makes of it.

    Raises:
        UserError: `load_prompt` would refuse the file; the message begins with `name`.
    """
    content = prompt_bytes(prompt, metadata, name=name)
    return dataclasses.replace(_read(io.BytesIO(content), len(content), name), adapter=adapter)


def is_prompt_file(file: Path) -> bool:
    """Whether a file says that it is a prompt file of ours; whether it is a whole one is not looked at."""
    if file.suffix != ".safetensors":
        return False
    with file.open("rb") as opened:
        try:
            header, _ = _header(opened, file.stat().st_size, file.name)
        except UserError:
            return False
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def _read(file: BinaryIO, size: int, name: str) -> PromptFile:
    """Read a prompt file of `size` bytes: first its header, then the tensor, whose size the header must state."""
    header, length = _header(file, size, name)
    metadata, entry = header.get("__metadata__") or {}, header.get(TENSOR_NAME)
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise UserError(f"{name}: not a prompt file, or cut short (its metadata are not all texts); train it again")
    if not isinstance(entry, dict):
        entry = {}
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if metadata.get("format") != FORMAT or shape is None or header.keys() - {"__metadata__", TENSOR_NAME}:
        beside = "; give the folder that it is in" if TENSOR_NAME in header else "; `softprompt train` writes those"
        raise UserError(f"{name}: a safetensors file, but not a softprompt prompt{beside}")
    version = metadata.get("format_version")
    if version not in READABLE_VERSIONS:
        readable = " and ".join(READABLE_VERSIONS)
        said = visible(str(version)[:80])
        raise UserError(f"{name}: format version {said}, this softprompt reads {readable}; update softprompt")
    stated = [metadata.get("num_virtual_tokens"), metadata.get("hidden_size")]
    counts = isinstance(shape, list) and len(shape) == 2 and all(map(is_count, shape)) and 0 not in shape
    if dtype != "F32" or not counts or stated != [str(each) for each in shape]:
        said = visible(f"{dtype} {shape}"[:80])
        raise UserError(f"{name}: holds {said}, its metadata says fp32 {stated}")
    whole = 4 * shape[0] * shape[1]
    if entry.get("data_offsets") != [0, whole] or size != 8 + length + whole or whole > MAX_TENSOR_BYTES:
        what = f"{size:,} bytes, where {shape} in fp32 needs {8 + length + whole:,}"
        raise UserError(f"{name}: not a prompt file, or cut short ({what}); train it again")
    raw = file.read(whole)
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if metadata.get("sha256") != _checksum(raw, rest):
        raise UserError(f"{name}: its checksum does not fit its content, so the file was altered; train it again")
    try:
        facts = PromptMetadata.from_strings(metadata)
    except UserError as error:
        raise UserError(f"{name}: its metadata cannot be used: {error}; train it again") from error
    return PromptFile(_numbers(raw, shape, name), metadata, facts)


def _header(file: BinaryIO, size: int, name: str) -> tuple[dict[str, Any], int]:
    """The parsed header and its length in bytes."""
    problem = f"{name}: not a prompt file, or cut short"
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise UserError(f"{problem} ({size:,} bytes, with a header of {length:,}); train it again")
    try:
        header = decode_json(file.read(length).decode())
    except ValueError as error:
        raise UserError(f"{problem} ({reason_of(error)}); train it again") from error
    if not isinstance(header, dict):
        raise UserError(f"{problem} (its header is no JSON object); train it again")
    return header, length


def _numbers(raw: bytes, shape: list[int], name: str) -> Tensor:
    """The tensor fp32 `[P, H]` of the file's bytes."""
    weight = torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(shape)
    if not torch.isfinite(weight).all():
        raise UserError(f"{name}: the prompt holds NaN or infinity; train it again with a lower `learning_rate`")
    largest = weight.abs().max().item()
    if largest > MAX_VALUE:
        raise UserError(f"{name}: the prompt holds numbers up to {largest:.2g}, with which no base can compute")
    return weight


def _checksum(raw: bytes, metadata: dict[str, str]) -> str:
    """The SHA-256 of the tensor's bytes followed by `metadata` as JSON with sorted keys."""
    digest = hashlib.sha256(raw)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()
