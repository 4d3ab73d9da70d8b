"""What the steps of a run minimise and what judges them: cross-entropy, or the divergence from a teacher."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from softprompt.config.commands import TrainConfig
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, base_and_front, pass_losses, row_scores
from softprompt.engine.teacher import Teacher, Teachers, divergence_losses, divergence_scores
from softprompt.tokens.encoding import EncodedRow

Model = SoftPromptModel | PreTrainedModel
Advance = Callable[[int, int], object] | None


class Objective:
    """The cross-entropy of the labels.

    Attributes:
        facts: what a prompt file says of the teacher; empty without one.
        text_ids: the ids of the teacher's text, from which a prompt may start.
        shares_passes: whether lanes may compute it in passes that they share.
    """

    facts: dict[str, Any] = {}
    text_ids: Sequence[int] = ()
    shares_passes = True

    def __init__(self, config: TrainConfig, *, pad_token_id: int) -> None:
        self.config, self.pad_token_id = config, pad_token_id

    def losses(self, model: SoftPromptModel, rows: Sequence[EncodedRow], *, max_tokens: int) -> Iterator[Tensor]:
        """The summed loss of `rows`, pass by pass, each a scalar that can be differentiated and forgotten."""
        return pass_losses(
            model,
            rows,
            max_tokens=max_tokens,
            rows_per_batch=self.config.per_device_train_batch_size,
            pad_token_id=self.pad_token_id,
            recompute=self.config.gradient_checkpointing,
        )

    def scores(
        self, model: Model, rows: Sequence[EncodedRow], *, of: Sequence[EncodedRow] = (), advance: Advance = None
    ) -> list[Score]:
        """The score of every row.

        Args:
            of: the same rows as the run has them, if `rows` are written in another way for the base alone.
            advance: told how many of the rows are scored, and how many there are.
        """
        return row_scores(model, rows, pad_token_id=self.pad_token_id, advance=advance)


class Divergence(Objective):
    """KL(teacher || student) at the answers' tokens; a token is correct where it is the teacher's most probable."""

    shares_passes = False

    def __init__(
        self,
        config: TrainConfig,
        teacher: Teacher | Teachers,
        facts: dict[str, Any],
        text_ids: Sequence[int],
        *,
        pad_token_id: int,
    ) -> None:
        super().__init__(config, pad_token_id=pad_token_id)
        self.teacher, self.facts, self.text_ids = teacher, facts, text_ids

    def losses(self, model: SoftPromptModel, rows: Sequence[EncodedRow], *, max_tokens: int) -> Iterator[Tensor]:
        return divergence_losses(
            model.base_model,
            model.front,
            rows,
            [self.teacher.states(row) for row in rows],
            max_tokens=max_tokens,
            temperature=self.config.distill_temperature,
            ce=self.config.distill_ce,
            recompute=self.config.gradient_checkpointing,
        )

    def scores(
        self, model: Model, rows: Sequence[EncodedRow], *, of: Sequence[EncodedRow] = (), advance: Advance = None
    ) -> list[Score]:
        return divergence_scores(
            *base_and_front(model), rows, [self.teacher.states(row) for row in of or rows], advance=advance
        )
