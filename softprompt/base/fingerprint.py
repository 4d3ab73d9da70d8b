"""Which base a prompt belongs to: an exact hash of the checkpoint's tensors, and a sketch to compare after rounding.

No hash of loaded weights is equal in fp32, bf16 and fp16 and still differs between bases, so both are computed from the
files. The hash covers every value, converted to fp32. The sketch holds the norm and a few values of each tensor: 256
values over all tensors, but at least 4 of each.
"""

import base64
import enum
import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
)

from softprompt.base.checkpoint import FLOATS, stored_tensors, weight_files
from softprompt.errors import UserError
from softprompt.system.cache import read_cached, write_cached
from softprompt.system.foreign import parse_json, visible
from softprompt.tokens.encoding import encode_text

SKETCH_VALUES, MIN_PER_TENSOR = 256, 4
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
    """Fingerprint the checkpoint in `folder`; the result is cached for exactly these files.

    Raises:
        UserError: as `weight_files` and `stored_tensors`.
    """
    files = weight_files(folder)
    name = _cache_name(files)
    cached = read_cached(name)
    if isinstance(cached, dict) and cached.keys() == {"sha256", "sketch"}:
        sha256, sketch = cached["sha256"], cached["sketch"]
        if isinstance(sha256, str) and isinstance(sketch, str):
            return Fingerprint(sha256, sketch)
    result = _compute(files)
    write_cached(name, vars(result))
    return result


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

    Raises:
        UserError: as `parse_sketch`.
    """
    if mine.sha256 == theirs.sha256:
        return Likeness.SAME
    left, right = parse_sketch(mine.sketch), parse_sketch(theirs.sketch)
    quantised = any(not _is_float(side) for side in (left, right))
    shared = [name for name in left.keys() & right.keys() if _is_float({0: left[name], 1: right[name]})]
    # a checkpoint may store a tied LM head or leave it out
    unmatched = (left.keys() ^ right.keys()) - {"lm_head.weight"}
    if not shared or (unmatched and not quantised) or not all(_agree(left[n], right[n]) for n in shared):
        return Likeness.OTHER
    return Likeness.QUANTISED if quantised else Likeness.ROUNDED


def parse_sketch(text: str) -> dict[str, tuple[str, list[int], tuple[float, ...]]]:
    """Read the sketch of a fingerprint, which may stand in a stranger's file: dtype, shape and values of each tensor.

    Raises:
        UserError: it is not a sketch; the message begins with `base_sketch`.
    """
    content = parse_json(text or "{}", "base_sketch")
    if not isinstance(content, dict):
        raise UserError("base_sketch is not an object of tensors")
    return {name: _entry(name, value) for name, value in content.items()}


def _entry(name: str, value: object) -> tuple[str, list[int], tuple[float, ...]]:
    """One tensor of a sketch. Every tensor has its norm and at least `MIN_PER_TENSOR` of its entries."""
    match value:
        case [str(dtype), list(shape), str(packed)]:
            try:
                raw = base64.b64decode(packed, validate=True)
            except ValueError:
                raw = b"?"
            count, rest = divmod(len(raw), 4)
            sizes = all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape)
            if sizes and not rest and 1 + min(MIN_PER_TENSOR, math.prod(shape)) <= count <= 1 + SKETCH_VALUES:
                return dtype, shape, struct.unpack(f"<{count}f", raw)
    raise UserError(f"base_sketch has no usable values of {visible(name)[:80]!r}")


def _compute(files: list[Path]) -> Fingerprint:
    """Read all tensors once, in the order of their names, for the hash and the sketch.

    The sketch drops the prefix that saving with transformers adds to names: BLOOM's original files have `h.0...`.
    """
    whole, sketch = hashlib.sha256(), {}
    stored = stored_tensors(files)
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
        norm = torch.tensor([square**0.5], dtype=torch.float64).float()  # infinite where fp32 cannot hold it
        packed = base64.b64encode(torch.cat([norm, values]).numpy().astype("<f4").tobytes()).decode()
        sketch[plain_name] = [tensor.dtype, tensor.shape, packed]
    return Fingerprint(whole.hexdigest(), json.dumps(sketch, sort_keys=True, separators=(",", ":")))


def _places(name: str, numel: int, count: int) -> Tensor:
    """Indices into a flat tensor, int64 `[min(count, numel)]`, equal for all checkpoints of an architecture."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randint(max(numel, 1), (min(count, numel),), generator=generator)


def _cache_name(files: list[Path]) -> str:
    """The name of the cached fingerprint of exactly these files, as they are now.

    A file that is replaced, even by one of the same size and time, has another inode or another time of change.
    """
    facts = [[str(file.resolve()), *_state(file)] for file in files]
    key = hashlib.sha256(json.dumps([3, facts]).encode()).hexdigest()
    return f"fingerprint-{key[:32]}.json"


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _is_float(sketch: dict) -> bool:
    return all(dtype in FLOATS.values() for dtype, _, _ in sketch.values())


def _agree(left: tuple, right: tuple) -> bool:
    """Whether two sketches of one tensor have the same shape, and values equal up to the rounding of both dtypes."""
    (_, left_shape, a), (_, right_shape, b) = left, right
    if left_shape != right_shape or not all(map(math.isfinite, (*a, *b))):
        return a == b and left_shape == right_shape
    rounding = _rounding(a[1:]) + _rounding(b[1:])  # two ways of rounding to bf16 may differ by a whole step
    # the values per tensor depend on the number of tensors, which a stored tied head changes: zip stops at the shorter,
    # which has its norm and a few values at least (`parse_sketch`)
    return all(abs(x - y) <= rounding * max(abs(x), abs(y)) + TINY for x, y in zip(a, b, strict=False))


def _rounding(values: tuple[float, ...]) -> float:
    """The rounding error of the coarsest dtype that holds all values exactly.

    The file's own dtype does not tell, since an fp32 file may hold the values of a bf16 one.
    """
    exact = torch.tensor(values)
    return next(step for dtype, step in ROUNDING.items() if torch.equal(exact.to(dtype).float(), exact))


PROBE = "Human: 1 + 2 = 3？\n你好, tokenizer! été\n\nAssistant: "


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of the vocabulary, the eos id and the ids of a sample text.

    Unlike a hash of the tokenizer's files, it stays the same when another version of transformers saves them.
    """
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    content = [vocab, tokenizer.eos_token_id, encode_text(PROBE, tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of everything that decides how a tokenizer turns text into ids, as this version writes it.

    It may differ between versions of transformers and tokenizers that give the same ids.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        rules = fast.to_str()
    else:  # a tokenizer in Python: its class and what it was made from
        rules = [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items()), str(tokenizer.init_kwargs)]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    content = [rules, tokenizer_sha256(tokenizer), special]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
