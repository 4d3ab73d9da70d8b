"""Whether a prompt fits: the base that it was made for, and the room that a base has for prompt and text."""

import torch
from transformers import (
    PreTrainedModel,
)

from softprompt.base.fingerprint import Fingerprint, describe_difference, tokenizer_sha256
from softprompt.base.loading import Base, load_base
from softprompt.errors import UserError


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
