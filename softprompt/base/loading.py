"""Find the frozen base, load it in one precision on one device, and describe it for the prompt file."""

import functools
import json
import pickle
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from softprompt.base.device import DTYPES, resolve_precision
from softprompt.base.fingerprint import Fingerprint, fingerprint, tokenizer_sha256, weight_files
from softprompt.base.vocabulary import embedding_weight
from softprompt.errors import UserError
from softprompt.system import sources
from softprompt.tokens.encoding import require_eos

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Base:
    """A loaded base with its tokenizer.

    Attributes:
        name: `builtin:...`, a hub id or a folder, as it was given.
        revision: the commit on the hub, or "".
        precision: fp32, bf16 or fp16.
        notes: remarks for the user.
        pending_fingerprint: the checkpoint's hash, which a thread computes while the model is loaded and used.
    """

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
        """The fingerprint of the checkpoint; this waits until it is computed."""
        return self.pending_fingerprint.result()

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad id, or its eos id if it has none; pads are masked, so any id would do."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def end_ids(self) -> list[int]:
        """The ids with which the base's own generation config ends an answer; the tokenizer's eos may be another."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        return [ends] if isinstance(ends, int) else list(ends or [])

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """What a prompt file says about its base."""
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
        revision: the commit of a hub id; None is the newest.
        precision: fp32, bf16, fp16 or auto (see `resolve_precision`).

    Raises:
        UserError: there is no such model, it is not a causal LM, it needs Python code of its own, its tokenizer is
            missing or has no eos token, or its weights are missing, unreadable or incomplete.
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
    model = _load_model(folder, config, DTYPES[precision], name)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` is annotated without its self
    return Base(model, tokenizer, name, revision, precision, device, notes, pending)


def require_known_ids(base: Base, ids: Iterable[int]) -> None:
    """Raise `UserError` if one of `ids`, or the tokenizer's eos or pad id, has no row in the base's embedding."""
    size = len(embedding_weight(base.model.get_input_embeddings()))
    largest = max(base.tokenizer.eos_token_id, base.pad_token_id, *ids)
    if largest >= size:
        raise UserError(f"`model` {base.name}: its tokenizer gives id {largest}, its embedding has {size} rows")


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """Find the folder and the revision of a base; only a hub id has a revision, for all others it is ""."""
    if sources.is_builtin(name):
        return sources.model_folder(name), ""
    if not sources.is_path(name):
        return sources.model_snapshot(name, revision)
    folder = sources.local_path(name, "model")
    if not folder.is_dir():
        what = "is a file, not a model's folder" if folder.exists() else "no such folder"
        raise UserError(f"`model` {name}: {what}; give a folder with config.json and weights, or a hub id")
    return folder, ""


def _read_config(folder: Path, name: str) -> PretrainedConfig:
    """Read the config of a causal LM, without the attention kernel that it may name.

    transformers would fetch such a kernel from the hub. Without the name it chooses one of its own.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse_own_code(folder / "config.json", name)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"`model` {name}: no usable config.json ({reason})") from error
    config._attn_implementation = None
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")]
    if not causal.intersection(architectures):
        kind = config.architectures[0] if config.architectures else config.model_type
        raise UserError(f"`model` {name}: {kind} is not a causal language model; choose one such as BloomForCausalLM")
    return config


def _refuse_own_code(config_file: Path, name: str) -> None:
    """Raise `UserError` if a config file needs Python code beside it, which is then why transformers refused the file.

    Such code would run with the user's rights, so softprompt only loads architectures that transformers itself has.
    """
    try:
        own_code = json.loads(config_file.read_text("utf-8")).get("auto_map")
    except (OSError, ValueError, AttributeError):
        return
    if own_code:
        raise UserError(
            f"`model` {name}: needs Python code of its own ({config_file.name}: auto_map), which softprompt never runs;"
            " choose a base that transformers knows"
        )


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer and check that it has an eos token."""
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        raise UserError(f"`model` {name}: no tokenizer there (tokenizer.json); save one beside the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse_own_code(folder / "tokenizer_config.json", name)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"`model` {name}: its tokenizer cannot be read ({reason})") from error
    require_eos(tokenizer, name)
    return tokenizer


def _load_model(folder: Path, config: PretrainedConfig, dtype: torch.dtype, name: str) -> PreTrainedModel:
    """Load the model in eval mode and check that the checkpoint had every tensor, in the right shape."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
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
        raise UserError(f"`model` {name}: its weights cannot be loaded ({reason})") from error
    model, info = loaded  # `output_loading_info` makes it a pair, which transformers' annotation does not say
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise UserError(f"`model` {name}: its weights lack {len(lacking)} tensors, the first {lacking[0]}")
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(f"`model` {name}: {key} is {list(stored)}, its config.json says {list(wanted)}")
    return model.eval()
