"""How rows are written for a prompt: chosen when it is trained, kept in its file, and taken from there ever after."""

from typing import Any

from softprompt.base.loading import Base
from softprompt.data.row import RowKinds
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import PromptFile, PromptMetadata, prompt_of
from softprompt.tokens.encoding import Encoder, bos_of
from softprompt.tokens.probe import require_harmless_once
from softprompt.tokens.template import Template, choose_template, own_template, template_of, with_date


def encoder_for(
    base: Base,
    kinds: RowKinds,
    *,
    template: str = "auto",
    system: str = "",
    last_turn_only: bool = False,
    placement: str = "front",
    date: str | None = None,
) -> Encoder:
    """The encoder for rows that are to be learnt.

    Args:
        kinds: of all rows of the run, which decide whether they can share what closes a system turn.
        template: auto, tutorial, chat, plain or the name of a Jinja file.
        system: the system text of rows that have none.
        date: the day for templates that ask for the date, as YYYY-MM-DD; None takes today.

    Raises:
        UserError: the template cannot be used with this base or these rows.
    """
    if kinds.ready:
        if template != "auto" or system:
            name = "template" if template != "auto" else "system"
            raise UserError(f"`{name}`: these rows are text or token ids already, which no template is put around")
        chosen = Template("text")
    else:
        chosen = choose_template(template, base.tokenizer, system=system, date=date)
    if chosen.is_chat:
        _require_harmless(base, chosen, what=f"`template` {template}", own=chosen.name == "chat")
    return Encoder(
        base.tokenizer,
        chosen,
        bos_id=bos_of(base.tokenizer),
        end_ids=base.end_ids,
        last_turn_only=last_turn_only,
        placement=placement,
        shares_close=not kinds.own_system,
    )


def bound_to(base: Base, file: PromptFile, *, template: str = "auto", system: str = "") -> PromptFile:
    """The prompt of an adapter with what a prompt file says of its base and of how rows are written.

    A prompt that was read from a prompt file says so already and is returned as it is.

    Args:
        template, system: as in `encoder_for`; the adapter itself does not say under which template it was trained.

    Raises:
        UserError: the template cannot be used with this base.
    """
    if not file.adapter:
        return file
    said: dict[str, Any] = metadata_of(encoder_for(base, RowKinds(), template=template, system=system))
    said |= base.metadata
    metadata = PromptMetadata(**said).to_strings()
    return prompt_of(SoftPromptEmbedding.from_tensor(file.weight), metadata, adapter=file.adapter)


def encoder_of(facts: PromptMetadata, base: Base, *, prompt_file: str) -> Encoder:
    """The encoder that a prompt was trained with, as its file states it.

    Raises:
        UserError: the file names a template that is not known or cannot be rendered, or a bos that the base lacks, or
            what stood around the prompt in training would not stand there now.
    """
    template = template_of(
        facts.template,
        text=facts.template_text,
        date=facts.template_date,
        system=facts.system,
        prompt_file=prompt_file,
    )
    own = with_date(own_template(base.tokenizer), facts.template_date or None)[0]
    if template.is_chat:
        _require_harmless(base, template, what=prompt_file, own=template.text == own)
    bos_id: Any = base.tokenizer.convert_tokens_to_ids(facts.bos_token) if facts.bos_token else None
    if facts.bos_token and (bos_id is None or base.tokenizer.convert_ids_to_tokens(bos_id) != facts.bos_token):
        raise UserError(f"{prompt_file}: its texts begin with {facts.bos_token!r}, which this base's tokenizer lacks")
    if facts.placement not in ("", "front", "system"):
        raise UserError(f"{prompt_file}: its placement {facts.placement!r} is not known; update softprompt")
    if facts.learnt_turns not in ("", "all", "last"):
        raise UserError(f"{prompt_file}: its learnt turns {facts.learnt_turns!r} are not known; update softprompt")
    try:
        encoder = Encoder(
            base.tokenizer,
            template,
            bos_id=bos_id,
            end_ids=[*facts.end_ids, *base.end_ids],  # those of the training, whatever the base's settings say now
            last_turn_only=facts.learnt_turns == "last",
            placement=facts.placement or "front",
            shares_close=bool(facts.after_ids),
        )
    except UserError as error:
        raise UserError(f"{prompt_file}: {error}") from error
    if [encoder.before_ids, encoder.after_ids] != [facts.before_ids, facts.after_ids]:
        raise UserError(f"{prompt_file}: this base's tokenizer writes other ids around the prompt than in training")
    return encoder


def _require_harmless(base: Base, template: Template, *, what: str, own: bool) -> None:
    """Raise `UserError` if a template does not end soon or fills the memory; a base's own may be a stranger's too."""
    if own:
        what = f"`model` {base.name}: its chat template cannot be used, and `template` takes another"
    require_harmless_once(template.text, base.tokenizer.special_tokens_map, what=what, own=own)


def metadata_of(encoder: Encoder) -> dict[str, Any]:
    """What a prompt file says about how its rows were written."""
    template, tokenizer = encoder.template, encoder.tokenizer
    return {
        "bos_token": "" if encoder.bos_id is None else tokenizer.convert_ids_to_tokens(encoder.bos_id),
        "end_ids": [id for id in encoder.end_ids if id != tokenizer.eos_token_id],
        "template": template.name,
        "template_text": template.text,
        "template_date": template.date,
        "system": template.system,
        "learnt_turns": "last" if encoder.last_turn_only else "all",
        "placement": encoder.placement,
        "before_ids": encoder.before_ids,
        "after_ids": encoder.after_ids,
    }
