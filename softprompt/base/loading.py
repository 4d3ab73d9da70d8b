"""Find the frozen base, load it in one precision on one device, and describe it for the prompt file."""

import functools
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from softprompt.base.checkpoint import stored_tensors, weight_files
from softprompt.base.configuration import check_agreement, read_config, refuse_own_code
from softprompt.base.device import DTYPES, resolve_precision
from softprompt.base.fingerprint import PROBE, Fingerprint, fingerprint, tokenizer_sha256
from softprompt.base.generation import own_generation_config
from softprompt.base.vocabulary import embedding_weight
from softprompt.errors import UserError
from softprompt.system import sources
from softprompt.system.foreign import foreign, read_json, require_plain_file
from softprompt.tokens.encoding import decode_text, encode_text, require_eos

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
            missing or has no eos token, its weights are missing, unreadable or incomplete, or it cannot answer.
    """
    folder, revision = base_folder(name, revision)
    config = read_config(folder, name)
    files = weight_files(folder)
    if not sources.is_builtin(name):
        check_agreement(config, stored_tensors(files), name)
    notes = []
    if files[0].suffix == ".bin":
        notes.append(f"{files[0].name}: no safetensors there, so the pickled weights are read with weights_only=True")
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fingerprint")
    pending = pool.submit(fingerprint, folder)
    pool.shutdown(wait=False)
    precision = resolve_precision(precision, device, config.get_text_config().hidden_size)
    tokenizer = _load_tokenizer(folder, name)
    model = _load_model(folder, config, DTYPES[precision], name)
    if model.can_generate():
        model.generation_config, remarks = own_generation_config(folder, config)
        notes += remarks
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` is annotated without its self
    if model.can_generate() and not sources.is_builtin(name):
        _try_answer(model, name)
    return Base(model, tokenizer, name, revision, precision, device, notes, pending)


def require_known_ids(base: Base, ids: Iterable[int], *, of: str = "its tokenizer") -> None:
    """Raise `UserError` if one of `ids`, or the tokenizer's eos or pad id, has no row in the base's embedding.

    Args:
        of: where the ids are from, for the message.
    """
    size = len(embedding_weight(base.model.get_input_embeddings()))
    own = max(base.tokenizer.eos_token_id, base.pad_token_id)
    for source, largest in (("its tokenizer", own), (of, max(ids, default=0))):
        if largest >= size:
            raise UserError(f"`model` {base.name}: {source} gives id {largest}, its embedding has {size} rows")


def base_folder(name: str, revision: str | None) -> tuple[Path, str]:
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


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer, and check that it has an eos token and that it encodes and decodes."""
    present = [folder / file for file in TOKENIZER_FILES if (folder / file).exists()]
    if not present:
        raise UserError(f"`model` {name}: no tokenizer there (tokenizer.json); save one beside the weights")
    what = f"`model` {name}: its tokenizer cannot be read"
    for file in present:
        require_plain_file(file, what)
    settings = folder / "tokenizer_config.json"
    raw = read_json(settings, what) if settings.exists() else {}
    try:
        with foreign(what):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except UserError:
        refuse_own_code(raw, settings.name, name)  # which is then why transformers refused it
        raise
    template = tokenizer.chat_template or ""
    if not all(isinstance(each, str) for each in (template.values() if isinstance(template, dict) else [template])):
        raise UserError(f"{what} (its chat template is no text)")
    require_eos(tokenizer, name)
    with foreign(what):
        decode_text(encode_text(PROBE, tokenizer), tokenizer)
    return tokenizer


def _load_model(folder: Path, config: PretrainedConfig, dtype: torch.dtype, name: str) -> PreTrainedModel:
    """Load the model in eval mode and check that the checkpoint had every tensor, in the right shape."""
    with foreign(f"`model` {name}: its weights cannot be loaded"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            generation_config=GenerationConfig(),  # the base's own is not read
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, info = loaded  # `output_loading_info` makes it a pair, which transformers' annotation does not say
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise UserError(f"`model` {name}: its weights lack {len(lacking)} tensors, the first {lacking[0]}")
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(f"`model` {name}: {key} is {list(stored)}, its config.json says {list(wanted)}")
    return model.eval()


def _try_answer(model: PreTrainedModel, name: str) -> None:
    """Let the model generate one token: a config may hold what `generate` alone reads, and cannot use.

    Raises:
        UserError: it cannot.
    """
    generate: Any = model.generate  # causal LMs have it, PreTrainedModel alone does not
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with foreign(f"`model` {name}: cannot answer as its config.json sets it up"):
        generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0)
