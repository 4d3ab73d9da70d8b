"""The prompt file: one safetensors file with the prompt and, as string metadata, all that `generate` needs to know.

The tensor has PEFT's name, `prompt_embeddings`, so the file also is a PEFT `adapter_model.safetensors`. Equal prompts
and metadata give equal bytes: the header is written here with sorted keys, since safetensors 0.8 writes metadata in
random order.
"""

import dataclasses
import functools
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.system.files import write_atomic

TENSOR_NAME = "prompt_embeddings"
FORMAT = "softprompt"
FORMAT_VERSION = "2"
READABLE_VERSIONS = ("1", "2")  # version 1 knows the tutorial's template only, in front of everything and without bos


@dataclass(frozen=True, kw_only=True)
class PromptMetadata:
    """What a prompt file says besides its tensor, with the type of every key. A key that the file lacks is empty here.

    Attributes:
        base: the name of the base as it was given: `builtin:...`, a hub id or a folder.
        base_revision: the commit on the hub, if `base` is a hub id.
        base_sha256: the hash of the base's checkpoint.
        base_sketch: a sketch of the checkpoint that stays comparable after rounding (`base/fingerprint.py`).
        tokenizer_sha256: the hash of the vocabulary and of how the tokenizer splits a sample text.
        eos_token: the token that ends an answer.
        init: what the prompt started from: text, answers, vocab, random or file.
        init_text: the text, if `init` is text.
        init_ids: the token ids, if `init` is answers.
        bos_token: the token that begins every text behind the prompt; empty if there is none.
        end_ids: the ids that end an answer, besides eos: those that close an assistant turn.
        template: the name of the template that wrote the questions: tutorial, chat, plain, file or text.
        template_text: the Jinja text of the template, unless its name says all.
        template_date: the day, as YYYY-MM-DD, that a template which asks for the date was given.
        system: the system text of rows that have none.
        placement: where the prompt stands: `front` of everything, or within the `system` turn.
        before_ids: the token ids in front of the prompt, which all rows share.
        after_ids: the token ids that follow the prompt in all rows.
        data: the last component of the data's name.
        data_sha256: the hash of all encoded rows.
        rows_sketch: hashes of a few of the rows that trained the prompt (`train`) and that chose it (`held_out`).
        training: steps, rows, learning rate, losses and the curve, as parsed from JSON.
    """

    base: str = ""
    base_revision: str = ""
    base_sha256: str = ""
    base_sketch: str = ""
    tokenizer_sha256: str = ""
    eos_token: str = ""
    init: str = ""
    init_text: str = ""
    init_ids: list[int] = field(default_factory=list)
    bos_token: str = ""
    end_ids: list[int] = field(default_factory=list)
    template: str = ""
    template_text: str = ""
    template_date: str = ""
    system: str = ""
    placement: str = ""
    before_ids: list[int] = field(default_factory=list)
    after_ids: list[int] = field(default_factory=list)
    data: str = ""
    data_sha256: str = ""
    rows_sketch: dict[str, list[str]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def to_strings(self) -> dict[str, str]:
        """Return every key as a string: text unchanged, every other value as JSON, and an empty value as ""."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value if isinstance(value, str) else _as_json(value) for name, value in values.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Self:
        """Read the strings of a file; a value that does not have its key's type counts as absent."""
        found: dict[str, Any] = {}
        for each in dataclasses.fields(cls):
            text = strings.get(each.name, "")
            found[each.name] = text if each.type is str else _from_json(text, cls._empty(each))
        for name in ("init_ids", "end_ids", "before_ids", "after_ids"):
            if not all(map(is_count, found[name])):
                found[name] = []
        found["rows_sketch"] = {name: each for name, each in found["rows_sketch"].items() if _is_texts(each)}
        return cls(**found)

    @staticmethod
    def _empty(each: dataclasses.Field) -> Any:
        make = each.default_factory
        assert make is not dataclasses.MISSING  # every key that is not a string has one
        return make()


@dataclass(frozen=True)
class PromptFile:
    """A prompt read from disk: `weight`, fp32 `[P, H]`, and the file's metadata as strings."""

    weight: Tensor
    metadata: dict[str, str]

    @functools.cached_property
    def facts(self) -> PromptMetadata:
        """The metadata with the type of every key."""
        return PromptMetadata.from_strings(self.metadata)


def save_prompt(path: str | os.PathLike, prompt: SoftPromptEmbedding, metadata: dict[str, str]) -> None:
    """Write `prompt` to `path` atomically, with shape, format and checksum added to `metadata`.

    Raises:
        OSError: the file cannot be written; a file that was at `path` is unchanged.
    """
    write_atomic(path, prompt_bytes(prompt, metadata))


def prompt_bytes(prompt: SoftPromptEmbedding, metadata: dict[str, str]) -> bytes:
    """The content of a prompt file. Equal prompts and metadata give equal bytes on every machine."""
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
    return struct.pack("<Q", len(header)) + header + raw


def load_prompt(path: str | os.PathLike) -> PromptFile:
    """Read and check a prompt file.

    Raises:
        UserError: the file is missing, truncated, altered, not safetensors, not a softprompt prompt, or of another
            format version; or the prompt holds NaN or infinity.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise UserError(f"{name}: no such prompt file; `softprompt train` writes one")
    try:
        with safe_open(name, "pt") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
            weight = file.get_tensor(TENSOR_NAME) if keys == [TENSOR_NAME] else None
    except SafetensorError as error:
        raise UserError(f"{name}: not a prompt file, or cut short ({error}); train it again") from error
    return PromptFile(_checked(name, weight, metadata), metadata)


def _checked(name: str, weight: Tensor | None, metadata: dict[str, str]) -> Tensor:
    """Return `weight`, or raise `UserError` unless it and the metadata are what `save_prompt` writes."""
    if metadata.get("format") != FORMAT or weight is None:
        raise UserError(f"{name}: a safetensors file, but not a softprompt prompt; `softprompt train` writes those")
    version = metadata.get("format_version")
    if version not in READABLE_VERSIONS:
        readable = " and ".join(READABLE_VERSIONS)
        raise UserError(f"{name}: format version {version}, this softprompt reads {readable}; update softprompt")
    stated = [metadata.get("num_virtual_tokens"), metadata.get("hidden_size")]
    if weight.dtype != torch.float32 or stated != [str(size) for size in weight.shape] or 0 in weight.shape:
        raise UserError(f"{name}: holds {weight.dtype} {list(weight.shape)}, its metadata says fp32 {stated}")
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if metadata.get("sha256") != _checksum(weight.numpy().astype("<f4").tobytes(), rest):
        raise UserError(f"{name}: its checksum does not fit its content, so the file was altered; train it again")
    if not torch.isfinite(weight).all():
        raise UserError(f"{name}: the prompt holds NaN or infinity; train it again with a lower `learning_rate`")
    return weight


def _checksum(raw: bytes, metadata: dict[str, str]) -> str:
    """The SHA-256 of the tensor's bytes followed by `metadata` as JSON with sorted keys."""
    digest = hashlib.sha256(raw)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value from JSON is an integer from 0 to 2^63 - 1."""
    # a bool is an int for Python
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def _from_json(text: str, empty: Any) -> Any:
    """Parse the JSON in `text`; returns `empty` unless the value has the type of `empty`."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):  # thousands of nested brackets exceed Python's recursion limit
        return empty
    return value if isinstance(value, type(empty)) else empty
