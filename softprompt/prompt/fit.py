"""Whether a prompt fits a base: it was trained on that base, and the context has room for the prompt and the text."""

import shlex

import torch
from transformers import PreTrainedModel

from softprompt.base.fingerprint import Fingerprint, Likeness, compare_fingerprints, tokenizer_sha256
from softprompt.base.known import is_known_base
from softprompt.base.loading import Base, load_base, require_known_ids
from softprompt.base.vocabulary import embedding_weight
from softprompt.errors import UserError
from softprompt.prompt.file import PromptFile
from softprompt.prompt.metadata import PromptMetadata

REMARKS = {
    Likeness.SAME: "",
    Likeness.ROUNDED: "the same base in another precision",
    Likeness.QUANTISED: "the same base, one of them quantised (only unquantised tensors compared)",
}


def load_prompt_base(
    facts: PromptMetadata, *, prompt_file: str, model: str | None, device: torch.device, precision: str
) -> Base:
    """Load the base that `model` names, or else the base and revision that the prompt file names.

    The file may be a stranger's, so the base that it names must be one that ships with softprompt or one that this user
    trained on (`base/known.py`); any other has to be named by `model`.

    Raises:
        UserError: neither names a base, the one in the file has to be named by `model`, or `load_base` raises it.
    """
    if model:
        return load_base(model, device=device, precision=precision)
    if not facts.base:
        raise UserError(f"{prompt_file}: does not say which base it was made for; pass `model`")
    if not is_known_base(facts.base, facts.base_revision, facts.base_sha256):
        raise UserError(
            f"{prompt_file}: names the base {facts.base}, on which nothing was trained here; if you trust it, add"
            f" `model` {shlex.quote(facts.base)}"
        )
    try:
        return load_base(facts.base, device=device, precision=precision, revision=facts.base_revision or None)
    except UserError as error:
        raise UserError(f"{prompt_file} was trained on {facts.base}: {error}; or pass `model`") from error


def check_same_base(file: PromptFile, base: Base, *, prompt_file: str, allow_other: bool) -> str:
    """Refuse a prompt that was trained on another base; returns a remark for the user, or "" if the bases are equal.

    Raises:
        UserError: the hidden size differs; or `allow_other` is false, and the base or the tokenizer differs or the file
            does not say which base it was trained on.
    """
    facts, width = file.facts, embedding_weight(base.model.get_input_embeddings()).shape[1]
    trained, own_width = facts.base or "an unknown base", file.weight.shape[1]
    if own_width != width:
        raise UserError(
            f"{prompt_file}: trained on {trained} (hidden size {own_width}), which does not fit {base.name}"
            f" (hidden size {width})"
        )
    if file.adapter:
        return (
            f"{file.adapter}: it does not say on which weights and under which template it was trained; rows"
            " are written as `softprompt train` writes them for this base, and `softprompt import` takes another"
            " `template`"
        )
    if not facts.base_sha256 and not allow_other:
        raise UserError(f"{prompt_file}: does not say which weights it was trained on; try `allow_other_base`")
    stored = Fingerprint(facts.base_sha256, facts.base_sketch or "{}")
    likeness = compare_fingerprints(base.fingerprint, stored)
    require_known_ids(base, (*facts.before_ids, *facts.after_ids, *facts.end_ids), of=prompt_file)
    if likeness is not Likeness.OTHER and facts.tokenizer_sha256 == tokenizer_sha256(base.tokenizer):
        require_known_ids(base, facts.init_ids, of=prompt_file)
        return REMARKS[likeness]
    what = "another base" if likeness is Likeness.OTHER else "another tokenizer"
    sides = f"trained on {trained} [{stored.sha256[:12]}], this is {base.name} [{base.fingerprint.sha256[:12]}]"
    if not allow_other:
        raise UserError(f"{prompt_file}: made for {what} ({sides}); pass `model`, or `allow_other_base` to try anyway")
    return f"{what} ({sides}), allowed by `allow_other_base`"


def context_limit(model: PreTrainedModel) -> int | None:
    """How many positions, virtual and text tokens together, the config allows; None if it has no limit (BLOOM)."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "seq_length"))
    return next((limit for limit in limits if limit), None)


def require_room(model: PreTrainedModel, num_virtual_tokens: int, text_tokens: int, *, option: str) -> None:
    """Check that P virtual tokens and `text_tokens` fit into the base's context.

    Args:
        option: the option that sets `text_tokens`, for the message.

    Raises:
        UserError: together they exceed the context; or the base has no limit and P is above its vocabulary size.
    """
    limit = context_limit(model)
    if limit is None:
        vocab_size = len(embedding_weight(model.get_input_embeddings()))
        if num_virtual_tokens > vocab_size:
            raise UserError(f"`virtual_tokens` {num_virtual_tokens}: more than the base's {vocab_size} vocabulary rows")
    elif num_virtual_tokens + text_tokens > limit:
        raise UserError(
            f"`{option}`: {num_virtual_tokens} virtual tokens + {text_tokens} text tokens exceed the base's context"
            f" of {limit}; use fewer virtual tokens or a smaller `{option}`"
        )
