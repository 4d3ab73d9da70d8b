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
from softprompt.engine.forward import lane_losses, pack_loss, pack_scores
from softprompt.engine.front import Front
from softprompt.engine.loss import summed_cross_entropy
from softprompt.engine.model import SoftPromptModel
from softprompt.packs.batches import Pack, cut_passes, pack_rows, pad_rows
from softprompt.packs.cpu_kernels import multiplies_with_amx
from softprompt.packs.families import can_pack, recomputed_layers
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

# numbers kept for the backward pass, per token and layer in units of H: BLOOM's 11, others up to about three times
KEPT_PER_LAYER = 32
# beyond these, longer passes multiply no faster and only cost memory
MOST_TOKENS = {"cpu": 4096, "cuda": 32768}
FEWEST_TOKENS = 256
# Without AMX, a CPU multiplies passes of this many tokens about as fast as longer ones, as long as computing the front
# again in each of them is a small part of it; so they are not longer, unless what they keep is little anyway.
SHORT_PASS, FRONTS_PER_PASS, LITTLE_KEPT = 512, 16, 1 << 29
# Lanes share passes of this many tokens: longer ones save few calls more, and what they compute leaves the CPU's cache.
LANE_TOKENS = {"cpu": 1024, "cuda": 32768}
# limits of a pass that only scores; fixed numbers, so that the figures do not depend on the training options
TOKENS_PER_PASS = 2048
ROWS_PER_BATCH = 8
ROWS_PACKED_TOGETHER = 8192  # rows that are distributed over passes at once, so that many take no more memory

Scored = tuple[EncodedRow, Tensor, Tensor]  # a row, -log p of its labels `[N]`, which were the most probable ids `[N]`


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
        max_tokens: most positions of a pack, the front included; a longer row goes alone.
        rows_per_batch: rows of a padded batch, for bases that cannot take packs.
        recompute: keep only the layers' inputs for the backward pass.
    """
    return _route(model, max_tokens, rows_per_batch, pad_token_id).losses(rows, recompute=recompute)


def lane_passes(
    base_model: PreTrainedModel,
    lanes: Sequence[tuple[Front, Sequence[EncodedRow]]],
    *,
    max_tokens: int,
    recompute: bool = False,
) -> Iterator[list[tuple[int, Tensor]]]:
    """The summed cross-entropy of several lanes, which share passes: each lane's rows stand behind its own front.

    The rows of a lane are packed as `pass_losses` packs them; packs of different lanes then go into a pass together.

    Args:
        base_model: a base that takes packs.
        max_tokens: most positions of a pack, and of all packs of a pass; on a CPU a shared pass has fewer.

    Yields:
        For every pack of a pass that has labels the place of its lane and its loss, a scalar. Differentiate all losses
        of a pass at once.
    """
    most = min(max_tokens, LANE_TOKENS[base_model.device.type])
    together: list[tuple[int, Front, Pack]] = []
    length = 0
    for place, (front, rows) in enumerate(lanes):
        for members in cut_passes(rows, front_length=len(front), max_tokens=max_tokens):
            pack = pack_rows(members, front_length=len(front))
            if not pack.targets:
                continue
            if together and length + pack.bounds[-1] > most:
                yield _losses_of(base_model, together, recompute)
                together, length = [], 0
            together.append((place, front, pack))
            length += pack.bounds[-1]
    if together:
        yield _losses_of(base_model, together, recompute)


def _losses_of(
    base_model: PreTrainedModel, packs: Sequence[tuple[int, Front, Pack]], recompute: bool
) -> list[tuple[int, Tensor]]:
    losses = lane_losses(base_model, [(front, pack) for _, front, pack in packs], recompute=recompute)
    return [(place, loss) for (place, _, _), loss in zip(packs, losses, strict=True)]


@torch.no_grad()
def pass_scores(
    model: SoftPromptModel | PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    max_tokens: int,
    rows_per_batch: int,
    pad_token_id: int,
) -> Iterator[Scored]:
    """Every row, in the order of the passes, with -log p of its labels, `[N]`, and which were the most probable ids.

    Arguments as for `pass_losses`. For a base alone, a label on a row's first id is predicted by nothing and left out.
    """
    yield from _route(model, max_tokens, rows_per_batch, pad_token_id).scores(rows)


class _Packed:
    """Rows in packs: one sequence per pass, without pads."""

    def __init__(self, base_model: PreTrainedModel, front: Front, max_tokens: int) -> None:
        self.base_model, self.front, self.max_tokens = base_model, front, max_tokens

    def losses(self, rows: Sequence[EncodedRow], *, recompute: bool) -> Iterator[Tensor]:
        """As `pass_losses`."""
        for _, pack in self._packs(rows):
            if pack.targets:
                yield pack_loss(self.base_model, self.front, pack, recompute=recompute)

    def scores(self, rows: Sequence[EncodedRow]) -> Iterator[Scored]:
        """As `pass_scores`."""
        for members, pack in self._packs(rows):
            losses, hits = (each.cpu().split(pack.counts) for each in pack_scores(self.base_model, self.front, pack))
            yield from zip(members, losses, hits, strict=True)

    def _packs(self, rows: Sequence[EncodedRow]) -> Iterator[tuple[list[EncodedRow], Pack]]:
        for members in cut_passes(rows, front_length=len(self.front), max_tokens=self.max_tokens):
            yield members, pack_rows(members, front_length=len(self.front))


class _Padded:
    """Rows in padded batches, for a base that cannot take packs: the same result, slower."""

    def __init__(self, model: SoftPromptModel | PreTrainedModel, rows_per_batch: int, pad_token_id: int) -> None:
        self.model, self.rows_per_batch, self.pad_token_id = model, rows_per_batch, pad_token_id
        self.base_model = base_and_front(model)[0]

    def losses(self, rows: Sequence[EncodedRow], *, recompute: bool) -> Iterator[Tensor]:
        """As `pass_losses`."""
        for members in self._batches(rows):
            with recomputed_layers(self.base_model) if recompute else contextlib.nullcontext():
                loss = summed_cross_entropy(*self._label_logits(members))
            yield loss

    def scores(self, rows: Sequence[EncodedRow]) -> Iterator[Scored]:
        """As `pass_scores`."""
        for members in self._batches(rows):
            for row, logits, targets in zip(members, *self._label_logits(members), strict=True):
                labelled = targets != IGNORE_INDEX
                wide = torch.promote_types(logits.dtype, torch.float32)
                logits, targets = logits[labelled].to(wide), targets[labelled]  # [N, V], [N]
                losses, hits = F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
                yield row, losses.cpu(), hits.cpu()

    def _batches(self, rows: Sequence[EncodedRow]) -> Iterator[Sequence[EncodedRow]]:
        for start in range(0, len(rows), self.rows_per_batch):
            yield rows[start : start + self.rows_per_batch]

    def _label_logits(self, members: Sequence[EncodedRow]) -> tuple[Tensor, Tensor]:
        """Logits `[B, n, V]` and the labels `[B, n]` that they are to predict, behind the front, if any."""
        batch = pad_rows(members, pad_token_id=self.pad_token_id, device=self.base_model.device)
        if isinstance(self.model, SoftPromptModel):
            return self.model.label_logits(**batch)
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        logits = self.model(ids, attention_mask=mask, use_cache=False).logits  # [B, T, V]
        return logits[:, :-1], labels[:, 1:]


def _route(
    model: SoftPromptModel | PreTrainedModel, max_tokens: int, rows_per_batch: int, pad_token_id: int
) -> _Packed | _Padded:
    """How rows go through this base, chosen in this one place."""
    base_model, front = base_and_front(model)
    if can_pack(base_model):
        return _Packed(base_model, front, max_tokens)
    return _Padded(model, rows_per_batch, pad_token_id)


def base_and_front(model: SoftPromptModel | PreTrainedModel) -> tuple[PreTrainedModel, Front]:
    """The base, and the front of its rows, which is empty for a base alone."""
    return (model.base_model, model.front) if isinstance(model, SoftPromptModel) else (model, Front())


def tokens_that_fit(base_model: PreTrainedModel, front_length: int) -> int:
    """Most tokens of a training pass: as many as are fast, and keep at most half of the memory that is free now."""
    config, device = base_model.config.get_text_config(), base_model.device
    number = embedding_weight(base_model.get_input_embeddings()).element_size()
    per_token = config.num_hidden_layers * config.hidden_size * KEPT_PER_LAYER * number
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    most = MOST_TOKENS[device.type]
    if device.type == "cpu" and not multiplies_with_amx(base_model.dtype):
        most = min(most, max(SHORT_PASS, FRONTS_PER_PASS * front_length, LITTLE_KEPT // per_token))
    return min(max(free // 2 // per_token, FEWEST_TOKENS), most)


def free_memory() -> int:
    """Bytes of main memory that no process uses, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 32


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
    found: list[Score] = []
    settings = {"max_tokens": TOKENS_PER_PASS, "rows_per_batch": ROWS_PER_BATCH, "pad_token_id": pad_token_id}
    for start in range(0, len(rows), ROWS_PACKED_TOGETHER):
        some, scores = list(rows[start : start + ROWS_PACKED_TOGETHER]), dict[int, Score]()
        for row, losses, hits in pass_scores(model, some, **settings):
            scores[id(row)] = Score(math.fsum(losses.tolist()), int(hits.sum()), len(losses))
            done = start + len(scores)
            if advance is not None and (done % ROWS_PER_BATCH == 0 or done == len(rows)):
                advance(done, len(rows))
        found += [scores[id(row)] for row in some]
    return found


def total_score(scores: Sequence[Score]) -> Score:
    """One score for all rows: sums, to be divided once."""
    return Score(
        math.fsum(score.loss_sum for score in scores),
        sum(score.num_correct for score in scores),
        sum(score.num_supervised for score in scores),
    )
