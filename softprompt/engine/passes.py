"""A set of rows as few forward passes: packs where the base offers a way for them, else padded batches."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.base.vocabulary import embedding_weight
from softprompt.data.encoding import IGNORE_INDEX, EncodedRow
from softprompt.engine.batches import cut_passes, pack_rows, pad_rows
from softprompt.engine.families import can_pack, recomputed_layers
from softprompt.engine.forward import pack_loss, pack_scores
from softprompt.engine.loss import summed_cross_entropy
from softprompt.engine.model import SoftPromptModel

# numbers kept for the backward pass, per token and layer in units of H: BLOOM's 11, others up to about three times
KEPT_PER_LAYER = 32
# beyond these, longer passes multiply no faster and only cost memory
MOST_TOKENS = {"cpu": 4096, "cuda": 32768}
FEWEST_TOKENS = 256


def pass_losses(
    model: SoftPromptModel | PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    max_tokens: int,
    rows_per_batch: int,
    pad_token_id: int,
    recompute: bool = False,
) -> Iterator[Tensor]:
    """The summed cross-entropy of `rows`, pass by pass, each a scalar that can be differentiated and forgotten.

    Args:
        model: a base with a prompt, or a base alone.
        max_tokens: most places of a pack, prompt included; longer rows go alone.
        rows_per_batch: rows of a padded batch, for bases that cannot take packs.
        recompute: keep only the layers' inputs for the backward pass.
    """
    base_model, prompt = _base_and_prompt(model)
    if can_pack(base_model):
        count = 0 if prompt is None else len(prompt)
        for members in cut_passes(rows, num_virtual_tokens=count, max_tokens=max_tokens):
            pack = pack_rows(members, num_virtual_tokens=count)
            if pack.targets:
                yield pack_loss(base_model, prompt, pack, recompute=recompute)
        return
    for start in range(0, len(rows), rows_per_batch):
        batch = pad_rows(rows[start : start + rows_per_batch], pad_token_id=pad_token_id, device=base_model.device)
        with recomputed_layers(base_model) if recompute else contextlib.nullcontext():
            loss = summed_cross_entropy(*_label_logits(model, batch))
        yield loss


@torch.no_grad()
def pass_scores(
    model: SoftPromptModel | PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    max_tokens: int,
    rows_per_batch: int,
    pad_token_id: int,
) -> Iterator[tuple[EncodedRow, Tensor, Tensor]]:
    """Every row, in the order of the passes, with -log p of its labels, `[N]`, and which were the most probable ids.

    Arguments as for `pass_losses`. Without a prompt, a label on a row's first id is predicted by nothing and left out.
    """
    base_model, prompt = _base_and_prompt(model)
    if can_pack(base_model):
        count = 0 if prompt is None else len(prompt)
        for members in cut_passes(rows, num_virtual_tokens=count, max_tokens=max_tokens):
            pack = pack_rows(members, num_virtual_tokens=count)
            losses, hits = (scores.cpu().split(pack.counts) for scores in pack_scores(base_model, prompt, pack))
            yield from zip(members, losses, hits, strict=True)
        return
    for start in range(0, len(rows), rows_per_batch):
        together = rows[start : start + rows_per_batch]
        batch = pad_rows(together, pad_token_id=pad_token_id, device=base_model.device)
        for row, logits, targets in zip(together, *_label_logits(model, batch), strict=True):
            labelled = targets != IGNORE_INDEX
            wide = torch.promote_types(logits.dtype, torch.float32)
            logits, targets = logits[labelled].to(wide), targets[labelled]  # [N, V], [N]
            yield row, F.cross_entropy(logits, targets, reduction="none").cpu(), (logits.argmax(-1) == targets).cpu()


def tokens_that_fit(base_model: PreTrainedModel) -> int:
    """Most tokens of a training pass whose activations take at most half of the memory that is free now."""
    config, device = base_model.config.get_text_config(), base_model.device
    number = embedding_weight(base_model.get_input_embeddings()).element_size()
    per_token = config.num_hidden_layers * config.hidden_size * KEPT_PER_LAYER * number
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    return min(max(free // 2 // per_token, FEWEST_TOKENS), MOST_TOKENS[device.type])


def _free_memory() -> int:
    """Bytes of main memory that no process uses, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 32


def _base_and_prompt(model: SoftPromptModel | PreTrainedModel) -> tuple[PreTrainedModel, Tensor | None]:
    """The base, and the prompt `[P, H]` in front of it, if any."""
    return (model.base_model, model.soft_prompt.weight) if isinstance(model, SoftPromptModel) else (model, None)


def _label_logits(model: SoftPromptModel | PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and the labels that they are to predict, with the prompt or by the base alone: `[B, n, V]`, `[B, n]`."""
    if isinstance(model, SoftPromptModel):
        return model.label_logits(**batch)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits  # [B, T, V]
    return logits[:, :-1], batch["labels"][:, 1:]


# of one pass; fixed numbers, so that the figures do not depend on the training flags
TOKENS_PER_PASS = 2048


ROWS_PER_BATCH = 8


@dataclass(frozen=True)
class Score:
    """Of one row or of many: cross-entropy summed over the supervised tokens, and how many were the most probable."""

    loss_sum: float
    num_correct: int
    num_supervised: int

    @property
    def loss(self) -> float:
        """Cross-entropy per supervised token."""
        return self.loss_sum / self.num_supervised

    @property
    def accuracy(self) -> float:
        """Share of the supervised tokens that are the most probable id at their place."""
        return self.num_correct / self.num_supervised


def row_scores(
    model: SoftPromptModel | PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    pad_token_id: int,
    advance: Callable[[int, int], object] | None = None,
) -> list[Score]:
    """The score of every row, in the order of `rows`.

    Args:
        model: a base with a prompt, or a base alone.
        advance: told after every pass how many of the rows are scored, and how many there are.
    """
    scores: dict[int, Score] = {}
    settings = {"max_tokens": TOKENS_PER_PASS, "rows_per_batch": ROWS_PER_BATCH, "pad_token_id": pad_token_id}
    for row, losses, hits in pass_scores(model, rows, **settings):
        scores[id(row)] = Score(math.fsum(losses.tolist()), int(hits.sum()), len(losses))
        if advance is not None and (len(scores) % ROWS_PER_BATCH == 0 or len(scores) == len(rows)):
            advance(len(scores), len(rows))
    return [scores[id(row)] for row in rows]


def total_score(scores: Sequence[Score]) -> Score:
    """One score for all rows: sums, to be divided once."""
    return Score(
        math.fsum(score.loss_sum for score in scores),
        sum(score.num_correct for score in scores),
        sum(score.num_supervised for score in scores),
    )
