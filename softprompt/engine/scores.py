"""How well rows are predicted, with the prompt or by the base alone: loss and token accuracy, by row and by split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from softprompt.data.encoding import EncodedRow
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import pass_scores

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
    model: SoftPromptModel | PreTrainedModel, rows: Sequence[EncodedRow], *, pad_token_id: int
) -> list[Score]:
    """The score of every row, in the order of `rows`.

    Args:
        model: a base with a prompt, or a base alone.
    """
    limits = {"max_tokens": TOKENS_PER_PASS, "rows_per_batch": ROWS_PER_BATCH}
    scores = {
        id(row): Score(math.fsum(losses.tolist()), int(hits.sum()), len(losses))
        for row, losses, hits in pass_scores(model, rows, pad_token_id=pad_token_id, **limits)
    }
    return [scores[id(row)] for row in rows]


def total_score(scores: Sequence[Score]) -> Score:
    """One score for all rows: sums, to be divided once."""
    return Score(
        math.fsum(score.loss_sum for score in scores),
        sum(score.num_correct for score in scores),
        sum(score.num_supervised for score in scores),
    )
