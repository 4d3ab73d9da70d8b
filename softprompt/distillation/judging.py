"""Finished prompt files beside a text: what each of them is worth on the same questions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_NEW_TOKENS, EvaluateConfig
from softprompt.data.row import Row
from softprompt.data.splits import Splits
from softprompt.distillation.answers import answered_now
from softprompt.distillation.report import Worth, judge
from softprompt.distillation.text import Text, place_text, read_text, require_room_for_text, teacher_model
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.encoder import encoder_of
from softprompt.prompt.file import PromptFile
from softprompt.prompt.fit import check_same_base
from softprompt.prompt.start import start_of, why_no_start
from softprompt.tokens.encoded_splits import encode_splits


def judge_files(
    files: Mapping[str, PromptFile], base: Base, rows: Sequence[Row], config: EvaluateConfig, *, answered: bool
) -> Iterator[tuple[str, Worth, list[str]]]:
    """Judge every prompt file; yields its name, its figures and notes.

    Args:
        answered: whether the rows hold the teacher's answers, so that it need not give them.

    Raises:
        UserError: a prompt does not fit the base, or the text or a question has no room.
    """
    assert config.distill_text is not None
    written = read_text(config.distill_text)
    new_tokens = config.max_new_tokens or DEFAULT_NEW_TOKENS
    for name, file in files.items():
        remark = check_same_base(file, base, prompt_file=name, allow_other=config.allow_other_base)
        encoder = encoder_of(file.facts, base, prompt_file=name)
        text = place_text(config.distill_text, written, encoder, base)
        teacher = teacher_model(text, encoder, base)
        if not answered:
            settings = {"new_tokens": new_tokens, "seed": config.seed}
            rows = answered_now(rows, teacher, encoder, base, text, **settings)
        splits = encode_splits(Splits([], list(rows)), encoder, max_length=config.max_length)
        split = splits.held_out
        if not split.rows:
            raise UserError(f"`data`: no row has an answer within `max_length` {config.max_length}")
        require_room_for_text(base, len(teacher.front), splits.longest, text)
        initial: Tensor | None = None
        if _source(file).get("sha256") == text.sha256 and file.facts.init == "text" and not file.facts.init_text:
            initial = SoftPromptEmbedding.from_ids(text.ids, base.model.get_input_embeddings(), len(file.weight)).weight
        elif not why_no_start(file.facts) and not remark:
            initial = start_of(file.facts, base, len(file.weight))
        worth = judge(
            base,
            encoder,
            text,
            split,
            file.weight,
            name="scored",
            initial=initial,
            new_tokens=new_tokens,
        )
        yield name, worth, [*filter(None, [remark and f"{name}: {remark}", _note_on(name, file, text)])]


def _note_on(name: str, file: PromptFile, text: Text) -> str:
    """Say if the prompt was not distilled from this text."""
    source = _source(file)
    if not source:
        return f"{name}: was not distilled from a text"
    return "" if source.get("sha256") == text.sha256 else f"{name}: was distilled from another text than this one"


def _source(file: PromptFile) -> dict[str, Any]:
    """What a prompt file says of the text that it was distilled from; empty if it says nothing."""
    source = file.facts.training.get("distilled_from")
    return source if isinstance(source, dict) else {}
