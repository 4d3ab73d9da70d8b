"""Which base a prompt belongs to: an exact hash of the checkpoint's tensors, and a sketch to compare after rounding.

No hash of loaded weights is equal in fp32, bf16 and fp16 and still differs between bases, so both are computed from the
files. The hash covers every value, converted to fp32. The sketch holds the norm and a few values of each tensor: 256
values over all tensors, but at least 4 of each.
"""

import base64
import enum
import functools
import hashlib
import json
import math
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
)

from softprompt.errors import UserError
from softprompt.system.files import write_atomic
from softprompt.tokens.encoding import encode_text

SKETCH_VALUES, MIN_PER_TENSOR = 256, 4
CHUNK = 1 << 22  # so many elements are read and converted to fp32 at a time
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
STORED = {name: dtype for dtype, name in (FLOATS | INTEGERS).items()}
# the relative rounding error of one stored value, coarsest dtype first
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
TINY = 2.0**-24  # the absolute rounding error near zero


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a checkpoint.

    Attributes:
        sha256: the hash of every tensor's name, shape and values (as fp32), in the order of the names.
        sketch: JSON: tensor name -> [dtype, shape, base64 of fp32 values]. The values are the tensor's L2 norm and then
            its entries at indices that a seed draws.
    """

    sha256: str
    sketch: str


def fingerprint(folder: Path) -> Fingerprint:
    """Fingerprint the checkpoint in `folder`; the result is cached under the files' paths, sizes and times.

    Raises:
        UserError: as `weight_files`.
    """
    files = weight_files(folder)
    cache = _cache_file(files)
    try:
        return Fingerprint(**json.loads(cache.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    result = _compute(files)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, json.dumps(vars(result)).encode())
    except OSError:
        pass  # the cache only saves time
    return result


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's weight files: `model*.safetensors` if there are any, else `pytorch_model*.bin`.

    Raises:
        UserError: there are no weight files, or an index of shards is damaged or names a file that is missing.
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
    try:
        return sorted({index.parent / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of weight files; fetch the model again") from error


class Likeness(enum.Enum):
    """How similar two bases are."""

    SAME = "equal checkpoints"
    ROUNDED = "equal up to the rounding of the coarser precision"
    QUANTISED = "one is quantised, and what is not quantised is equal"
    OTHER = "different bases"


def compare_fingerprints(mine: Fingerprint, theirs: Fingerprint) -> Likeness:
    """Tell from two fingerprints how similar their bases are.

    If the hashes are equal, so are the bases. Otherwise every tensor that both store as floats must have the same shape
    and the same sketch, up to the rounding of both dtypes. A difference below the rounding goes unnoticed, and so does
    one outside the sketched values that leaves the norm alike.
    """
    if mine.sha256 == theirs.sha256:
        return Likeness.SAME
    left, right = json.loads(mine.sketch), json.loads(theirs.sketch)
    quantised = any(not _is_float(side) for side in (left, right))
    shared = [name for name in left.keys() & right.keys() if _is_float({0: left[name], 1: right[name]})]
    # a checkpoint may store a tied LM head or leave it out
    unmatched = (left.keys() ^ right.keys()) - {"lm_head.weight"}
    if not shared or (unmatched and not quantised) or not all(_agree(left[n], right[n]) for n in shared):
        return Likeness.OTHER
    return Likeness.QUANTISED if quantised else Likeness.ROUNDED


def _compute(files: list[Path]) -> Fingerprint:
    """Read all tensors once, in the order of their names, for the hash and the sketch.

    The sketch drops the prefix that saving with transformers adds to names: BLOOM's original files have `h.0...`.
    """
    whole, sketch = hashlib.sha256(), {}
    stored = _stored_tensors(files)
    per_tensor = max(MIN_PER_TENSOR, SKETCH_VALUES // len(stored))
    for name, tensor in sorted(stored.items()):
        whole.update(json.dumps([name, tensor.shape]).encode())
        plain_name = name.removeprefix("transformer.").removeprefix("model.")
        places = _places(plain_name, math.prod(tensor.shape), per_tensor)
        square, start, values = 0.0, 0, torch.zeros(len(places), dtype=torch.float32)
        for chunk in tensor.chunks():
            wide = chunk.float()
            whole.update(wide.numpy().tobytes())
            square += wide.double().square().sum().item()
            here = (places >= start) & (places < start + len(wide))
            values[here] = wide[places[here] - start]
            start += len(wide)
        numbers = [square**0.5, *values.tolist()]
        packed = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        sketch[plain_name] = [tensor.dtype, tensor.shape, packed]
    return Fingerprint(whole.hexdigest(), json.dumps(sketch, sort_keys=True, separators=(",", ":")))


def _places(name: str, numel: int, count: int) -> Tensor:
    """Indices into a flat tensor, int64 `[min(count, numel)]`, equal for all checkpoints of an architecture."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randint(max(numel, 1), (min(count, numel),), generator=generator)


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: its dtype as safetensors spells it, its shape, and a function that reads it in chunks."""

    dtype: str
    shape: list[int]
    chunks: Callable[[], Iterator[Tensor]]


def _stored_tensors(files: list[Path]) -> dict[str, _Stored]:
    """Every tensor of a checkpoint by its name; values are read only when `chunks` is called."""
    return {
        name: tensor
        for file in files
        for name, tensor in (_safetensors(file) if file.suffix == ".safetensors" else _pickled(file)).items()
    }


def _safetensors(file: Path) -> dict[str, _Stored]:
    """The tensors of a safetensors file, which is read and not mapped.

    The pages of a mapped file would count as memory of the process for as long as the file is open.
    """
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(size))
    stored = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            chunks = functools.partial(_read_chunks, file, name, entry["dtype"], begin, end)
            stored[name] = _Stored(entry["dtype"], entry["shape"], chunks)
    return stored


def _read_chunks(file: Path, name: str, dtype: str, begin: int, end: int) -> Iterator[Tensor]:
    """Read the values between two byte offsets of a file in chunks; safetensors reads dtypes that are not `STORED`."""
    if dtype not in STORED:
        with safe_open(file, "pt") as opened:
            yield from opened.get_tensor(name).reshape(-1).split(CHUNK)
        return
    step = CHUNK * STORED[dtype].itemsize
    with file.open("rb") as opened:
        opened.seek(begin)
        for start in range(begin, end, step):
            yield torch.frombuffer(bytearray(opened.read(min(step, end - start))), dtype=STORED[dtype])


def _pickled(file: Path) -> dict[str, _Stored]:
    """The tensors of a `.bin` file."""
    return {
        name: _Stored(FLOATS.get(t.dtype, str(t.dtype)), list(t.shape), functools.partial(t.reshape(-1).split, CHUNK))
        for name, t in _load_bin(file).items()
    }


def _load_bin(file: Path) -> dict[str, Tensor]:
    """Load a pickled checkpoint, tensors only; a file in torch's zip format is mapped and read when it is used."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _cache_file(files: list[Path]) -> Path:
    """The path of the cached fingerprint of exactly these files."""
    stats = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = hashlib.sha256(json.dumps([2, stats]).encode()).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if root.startswith("~"):  # the user has no home folder
        root = tempfile.gettempdir()
    return Path(root) / "softprompt" / f"fingerprint-{key[:32]}.json"


def _is_float(sketch: dict) -> bool:
    return all(dtype in FLOATS.values() for dtype, _, _ in sketch.values())


def _agree(left: list, right: list) -> bool:
    """Whether two sketches of one tensor have the same shape, and values equal up to the rounding of both dtypes."""
    if left[1] != right[1]:
        return False
    a, b = _unpack(left[2]), _unpack(right[2])
    rounding = _rounding(a[1:]) + _rounding(b[1:])  # two ways of rounding to bf16 may differ by a whole step
    # the values per tensor depend on the number of tensors, which a stored tied head changes: zip stops at the shorter
    return all(abs(x - y) <= rounding * max(abs(x), abs(y)) + TINY for x, y in zip(a, b, strict=False))


def _rounding(values: tuple[float, ...]) -> float:
    """The rounding error of the coarsest dtype that holds all values exactly.

    The file's own dtype does not tell, since an fp32 file may hold the values of a bf16 one.
    """
    exact = torch.tensor(values)
    return next(step for dtype, step in ROUNDING.items() if torch.equal(exact.to(dtype).float(), exact))


def _unpack(packed: str) -> tuple[float, ...]:
    raw = base64.b64decode(packed)
    return struct.unpack(f"<{len(raw) // 4}f", raw)


PROBE = "Human: 1 + 2 = 3？\n你好, tokenizer! été\n\nAssistant: "


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of the vocabulary, the eos id and the ids of a sample text.

    Unlike a hash of the tokenizer's files, it stays the same when another version of transformers saves them.
    """
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    content = [vocab, tokenizer.eos_token_id, encode_text(PROBE, tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
