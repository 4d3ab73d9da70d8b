"""The frozen base: find it, load it in one precision on one device, and say which base it is."""

import functools
import hashlib
import json
import pickle
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from softprompt.base.fingerprint import Fingerprint, describe_difference, fingerprint, weight_files
from softprompt.data.encoding import encode_text, require_eos
from softprompt.errors import UserError
from softprompt.system import builtin, sources

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
# Narrower bases are faster in fp32 on a CPU, whose bf16 kernels are made anew for every shape that a step brings: a
# whole default run on the shipped base, 192 wide, took 8.6 s in fp32 and 13.8 in bf16
BF16_HIDDEN_SIZE = 512
PROBE = "Human: 1 + 2 = 3？\n你好, tokenizer! été\n\nAssistant: "


@dataclass(frozen=True)
class Base:
    """A loaded base. `fingerprint` may still be at work: large checkpoints are hashed beside the loading."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    precision: str
    device: torch.device
    notes: list[str]
    pending_fingerprint: Future[Fingerprint]

    @property
    def fingerprint(self) -> Fingerprint:
        """Waits for the hash if it is not done."""
        return self.pending_fingerprint.result()

    @property
    def pad_token_id(self) -> int:
        """Any id will do behind a text; the eos id where the tokenizer has no pad token."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """What a prompt file says of its base."""
        return {
            "base": self.name,
            "base_revision": self.revision,
            "base_sha256": self.fingerprint.sha256,
            "base_sketch": self.fingerprint.sketch,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "eos_token": self.tokenizer.eos_token,
        }


def load_base(name: str, *, device: torch.device, precision: str, revision: str | None = None) -> Base:
    """Load `builtin:...`, a folder or a hub id as a causal LM in eval mode.

    Args:
        revision: commit of a hub id; None is the newest.
        precision: fp32, bf16, fp16 or auto (see `resolve_precision`).

    Raises:
        UserError: nothing there, no weights, tensors missing, no tokenizer, or not a causal LM.
    """
    folder, revision = _locate(name, revision)
    config = _read_config(folder, name)
    files = weight_files(folder)
    notes = []
    if files[0].suffix == ".bin":
        notes.append(f"{files[0].name}: no safetensors there, so the pickled weights are read with weights_only=True")
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fingerprint")
    pending = pool.submit(fingerprint, folder)
    pool.shutdown(wait=False)
    precision = resolve_precision(precision, device, config.get_text_config().hidden_size)
    tokenizer = _load_tokenizer(folder, name)
    model = _load_model(folder, config, DTYPES[precision], name).to(device)
    return Base(model, tokenizer, name, revision, precision, device, notes, pending)


def load_prompt_base(
    metadata: dict[str, str], *, prompt_file: str, model: str | None, device: torch.device, precision: str
) -> Base:
    """The base that `model` names, or else the very one that a prompt file does.

    Raises:
        UserError: neither names one, or as `load_base`.
    """
    if model:
        return load_base(model, device=device, precision=precision)
    name = metadata.get("base")
    if not name:
        raise UserError(f"{prompt_file}: does not say which base it was made for; pass --model")
    try:
        return load_base(name, device=device, precision=precision, revision=metadata.get("base_revision") or None)
    except UserError as error:
        raise UserError(f"{prompt_file} was trained on {name}: {error}; or pass --model") from error


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one, else the CPU.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: softprompt runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def resolve_precision(precision: str, device: torch.device, hidden_size: int) -> str:
    """`auto` is bf16 where the hardware computes in it and it pays, fp16 on older CUDA cards, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() and hidden_size >= BF16_HIDDEN_SIZE else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices itself; emulated, they are hundreds of times slower than fp32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def context_limit(model: PreTrainedModel) -> int | None:
    """Most positions, virtual and text, that the config states; None if it states none (BLOOM's ALiBi)."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "seq_length"))
    return next((limit for limit in limits if limit), None)


def require_room(model: PreTrainedModel, num_virtual_tokens: int, text_tokens: int, *, flag: str) -> None:
    """Raise `UserError` if P virtual tokens and `text_tokens` exceed the base's context, naming all three numbers."""
    limit = context_limit(model)
    if limit is None:
        vocab_size = model.get_input_embeddings().weight.shape[0]
        if num_virtual_tokens > vocab_size:
            raise UserError(f"--virtual-tokens {num_virtual_tokens}: more than the base's {vocab_size} vocabulary rows")
    elif num_virtual_tokens + text_tokens > limit:
        raise UserError(
            f"{flag}: {num_virtual_tokens} virtual tokens + {text_tokens} text tokens exceed the base's context"
            f" of {limit}; use fewer virtual tokens or a smaller {flag}"
        )


def require_known_ids(base: Base, ids: Iterable[int]) -> None:
    """Raise `UserError` if the tokenizer gives ids, or an eos id, that the base has no embedding for."""
    size = base.model.get_input_embeddings().weight.shape[0]
    largest = max(base.tokenizer.eos_token_id, base.pad_token_id, *ids)
    if largest >= size:
        raise UserError(f"--model {base.name}: its tokenizer gives id {largest}, its embedding has {size} rows")


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary and of how it cuts a sample; unlike the files', it survives saving by another version."""
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    content = [vocab, tokenizer.eos_token_id, encode_text(PROBE, tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_same_base(metadata: dict[str, str], base: Base, *, prompt_file: str, allow_other: bool) -> str:
    """Refuse a prompt that was trained on another base; returns a remark worth printing, or "".

    Raises:
        UserError: the width differs, or the base or tokenizer does and `allow_other` is false.
    """
    width = base.model.get_input_embeddings().weight.shape[1]
    if metadata["hidden_size"] != str(width):
        trained = f"{metadata.get('base', 'an unknown base')} (hidden size {metadata['hidden_size']})"
        raise UserError(f"{prompt_file}: trained on {trained}, which does not fit {base.name} (hidden size {width})")
    if "base_sha256" not in metadata and not allow_other:
        raise UserError(f"{prompt_file}: does not say which weights it was trained on; try --allow-other-base")
    stored = Fingerprint(metadata.get("base_sha256", ""), metadata.get("base_sketch", "{}"))
    difference = describe_difference(base.fingerprint, stored)
    same_tokens = metadata.get("tokenizer_sha256") == tokenizer_sha256(base.tokenizer)
    if difference is not None and same_tokens:
        return difference
    what = "another base" if difference is None else "another tokenizer"
    sides = f"trained on {metadata.get('base', 'an unnamed base')} [{stored.sha256[:12]}]"
    sides += f", this is {base.name} [{base.fingerprint.sha256[:12]}]"
    if not allow_other:
        raise UserError(f"{prompt_file}: made for {what} ({sides}); pass --model, or --allow-other-base to try anyway")
    return f"{what} ({sides}), allowed by --allow-other-base"


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """Folder and revision of a base; local folders have no revision."""
    if builtin.is_builtin(name):
        return builtin.model_folder(name), ""
    if not sources.is_path(name):
        return sources.model_snapshot(name, revision)
    folder = sources.local_path(name, "--model")
    if not folder.is_dir():
        what = "is a file, not a model's folder" if folder.exists() else "no such folder"
        raise UserError(f"--model {name}: {what}; give a folder with config.json and weights, or a hub id")
    return folder, ""


def _read_config(folder: Path, name: str) -> PretrainedConfig:
    """The config of a causal LM, whose attention is transformers' own choice.

    A config may name an attention kernel, and transformers would fetch one from the hub, so that name is dropped.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse_own_code(folder / "config.json", name)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model {name}: no usable config.json ({reason})") from error
    config._attn_implementation = None
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")]
    if not causal.intersection(architectures):
        kind = config.architectures[0] if config.architectures else config.model_type
        raise UserError(f"--model {name}: {kind} is not a causal language model; choose one such as BloomForCausalLM")
    return config


def _refuse_own_code(config_file: Path, name: str) -> None:
    """Raise `UserError` if a config file points to Python code beside it: the reason why transformers gave up on it.

    Such code would run with the user's rights, so softprompt loads only what transformers itself knows.
    """
    try:
        own_code = json.loads(config_file.read_text("utf-8")).get("auto_map")
    except (OSError, ValueError, AttributeError):
        return
    if own_code:
        raise UserError(
            f"--model {name}: needs Python code of its own ({config_file.name}: auto_map), which softprompt never runs;"
            " choose a base that transformers knows"
        )


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer, with an eos token."""
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        raise UserError(f"--model {name}: no tokenizer there (tokenizer.json); save one beside the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse_own_code(folder / "tokenizer_config.json", name)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model {name}: its tokenizer cannot be read ({reason})") from error
    require_eos(tokenizer, name)
    return tokenizer


def _load_model(folder: Path, config: PretrainedConfig, dtype: torch.dtype, name: str) -> PreTrainedModel:
    """The model with every tensor from the checkpoint, in eval mode."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if isinstance(error, RuntimeError) and "out of memory" in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--model {name}: its weights cannot be loaded ({reason})") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise UserError(f"--model {name}: its weights lack {len(lacking)} tensors, the first {lacking[0]}")
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(f"--model {name}: {key} is {list(stored)}, its config.json says {list(wanted)}")
    return model.eval()
