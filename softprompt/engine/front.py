"""What stands in front of every row: token ids, the prompt, and token ids again. Only the prompt is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Front:
    """The F positions that all rows begin with, F = len(before) + P + len(after); `Front()` is empty.

    Attributes:
        before: the ids in front of the prompt.
        prompt: `[P, H]`, any float dtype, not scaled as some bases scale the embeddings of ids; None means no prompt.
        after: the ids behind the prompt.
    """

    before: Sequence[int] = ()
    prompt: Tensor | None = None
    after: Sequence[int] = ()

    def __len__(self) -> int:
        """The number of positions, F."""
        return len(self.before) + (0 if self.prompt is None else len(self.prompt)) + len(self.after)

    def embeds(self, token_embedding: nn.Module, ids: Tensor) -> list[Tensor]:
        """Embed rows of `ids`, int64 `[B, T]`, behind this front: `[B, F + T, H]`, cut into the parts along dim 1.

        The cuts are around the prompt, so that what comes before and behind it needs no gradient. The prompt is cast
        row by row: its gradient is summed over the rows in the prompt's own dtype.
        """
        if self.prompt is None:
            return [token_embedding(_in_front([*self.before, *self.after], ids))]
        text = token_embedding(_in_front(self.after, ids))
        prompt = self.prompt.expand(len(ids), -1, -1).to(text)
        if not self.before:
            return [prompt, text]
        return [token_embedding(_in_front(self.before, ids[:, :0])), prompt, text]


def _in_front(front: Sequence[int], ids: Tensor) -> Tensor:
    """Put the ids `front` in front of every row of `ids`, `[B, T]`."""
    if not front:
        return ids
    return torch.cat([ids.new_tensor(front).expand(len(ids), -1), ids], dim=1)
