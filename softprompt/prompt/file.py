"""The artifact: one safetensors file with the prompt and string metadata that lets `generate.py` need nothing else.

The tensor is called `prompt_embeddings`, PEFT's name, so the file also is a PEFT `adapter_model.safetensors`. Its
bytes are a function of the result alone: the header is written here with sorted keys, since safetensors 0.8 writes
metadata in random order.
"""

import hashlib
import json
import os
import struct
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.system.files import write_atomic

TENSOR_NAME = "prompt_embeddings"
FORMAT = "softprompt"
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class PromptFile:
    """A prompt read from disk: fp32 `weight` `[P, H]` and its string metadata."""

    weight: Tensor
    metadata: dict[str, str]


def save_prompt(path: str | os.PathLike, prompt: SoftPromptEmbedding, metadata: dict[str, str]) -> None:
    """Write `prompt` to `path`, atomically. Shape, format and checksum are added to `metadata`.

    Raises:
        OSError: the file cannot be written; whatever was at `path` is untouched.
    """
    write_atomic(path, prompt_bytes(prompt, metadata))


def prompt_bytes(prompt: SoftPromptEmbedding, metadata: dict[str, str]) -> bytes:
    """The content of a prompt file: equal for equal prompts and metadata, on every machine."""
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
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8, as safetensors writes them
    return struct.pack("<Q", len(header)) + header + raw


def load_prompt(path: str | os.PathLike) -> PromptFile:
    """Read and check a prompt file.

    Raises:
        UserError: not there, not safetensors, truncated, altered, not a prompt of ours, or of a newer format.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise UserError(f"{name}: no such prompt file; train.py writes one")
    try:
        with safe_open(name, "pt") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
            weight = file.get_tensor(TENSOR_NAME) if keys == [TENSOR_NAME] else None
    except SafetensorError as error:
        raise UserError(f"{name}: not a prompt file, or cut short ({error}); train it again") from error
    _check(name, weight, metadata)
    return PromptFile(weight, metadata)


def _check(name: str, weight: Tensor | None, metadata: dict[str, str]) -> None:
    """Raise `UserError` unless tensor and metadata are what `save_prompt` writes."""
    if metadata.get("format") != FORMAT or weight is None:
        raise UserError(f"{name}: a safetensors file, but not a softprompt prompt; train.py writes those")
    if metadata.get("format_version") != FORMAT_VERSION:
        version = metadata.get("format_version")
        raise UserError(f"{name}: format version {version}, this softprompt reads {FORMAT_VERSION}; update softprompt")
    stated = [metadata.get("num_virtual_tokens"), metadata.get("hidden_size")]
    if weight.dtype != torch.float32 or stated != [str(size) for size in weight.shape] or 0 in weight.shape:
        raise UserError(f"{name}: holds {weight.dtype} {list(weight.shape)}, its metadata says fp32 {stated}")
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if metadata.get("sha256") != _checksum(weight.numpy().astype("<f4").tobytes(), rest):
        raise UserError(f"{name}: its checksum does not fit its content, so the file was altered; train it again")
    if not torch.isfinite(weight).all():
        raise UserError(f"{name}: the prompt holds NaN or infinity; train it again with a lower --learning-rate")


def _checksum(raw: bytes, metadata: dict[str, str]) -> str:
    """SHA-256 over the tensor's bytes and every other key, sorted."""
    digest = hashlib.sha256(raw)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()
