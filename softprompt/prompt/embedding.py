"""The one thing that learns: P virtual tokens as a [P, H] tensor, and the ways to start it. No files here."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.base.vocabulary import embedding_weight
from softprompt.errors import UserError


class SoftPromptEmbedding(nn.Module):
    """P trainable vectors that stand in front of a text's token embeddings (Lester et al., 2021, section 2).

    Attributes:
        weight: fp32 `nn.Parameter` `[P, H]`, whatever the precision of the base.
    """

    weight: nn.Parameter

    def __init__(self, weight: Tensor) -> None:
        """Copy `weight`, any float tensor `[P, H]` with at least one row.

        Raises:
            UserError: `weight` is not a finite, non-empty matrix.
        """
        super().__init__()
        if weight.dim() != 2 or 0 in weight.shape:
            raise UserError(f"a prompt is a [P, H] matrix with P and H above 0, not {list(weight.shape)}")
        if not torch.isfinite(weight).all():
            raise UserError("a prompt must be finite; this one holds NaN or infinity")
        self.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True))

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Self:
        """Start from a `[P, H]` tensor, which is copied."""
        return cls(tensor)

    @classmethod
    def from_text(
        cls,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        token_embedding: nn.Module,
        num_virtual_tokens: int | None = None,
    ) -> Self:
        """Start from the embeddings of `text`, its ids cut or repeated to `num_virtual_tokens` (default: their count).

        Tokenised with the tokenizer's own special tokens, as PEFT does, and embedded by calling the module, since
        some embeddings scale their rows (Gemma).

        Raises:
            UserError: `text` gives no token, or `num_virtual_tokens` is below 1.
        """
        ids = tokenizer(text)["input_ids"]
        if not ids:
            raise UserError(f"`init_text` {text!r} gives no token; write some text or use `init` vocab")
        return cls.from_ids(ids, token_embedding, len(ids) if num_virtual_tokens is None else num_virtual_tokens)

    @classmethod
    def from_ids(cls, ids: Sequence[int], token_embedding: nn.Module, num_virtual_tokens: int) -> Self:
        """Start from the embeddings of `ids`, at least one, cut or repeated to `num_virtual_tokens`.

        Raises:
            UserError: `num_virtual_tokens` is below 1.
        """
        count = _at_least_one(num_virtual_tokens)
        repeated = (list(ids) * -(-count // len(ids)))[:count]
        return cls(_embed(torch.tensor(repeated), token_embedding))

    @classmethod
    def from_vocab(
        cls, token_embedding: nn.Module, num_virtual_tokens: int, generator: torch.Generator | None = None
    ) -> Self:
        """Start from the embeddings of distinct tokens drawn evenly from the vocabulary (Lester et al., section 3.2).

        Raises:
            UserError: more virtual tokens than the vocabulary has rows, or fewer than 1.
        """
        vocab_size = len(embedding_weight(token_embedding))
        if _at_least_one(num_virtual_tokens) > vocab_size:
            raise UserError(f"`virtual_tokens` {num_virtual_tokens}: the vocabulary has only {vocab_size} rows")
        ids = torch.randperm(vocab_size, generator=generator)[:num_virtual_tokens]
        return cls(_embed(ids, token_embedding))

    @classmethod
    def from_random(
        cls, token_embedding: nn.Module, num_virtual_tokens: int, generator: torch.Generator | None = None
    ) -> Self:
        """Start from normal noise with the RMS of the vocabulary's embeddings."""
        vocab_size = len(embedding_weight(token_embedding))
        sample = _embed(torch.arange(min(vocab_size, 4096)), token_embedding)
        shape = (_at_least_one(num_virtual_tokens), sample.shape[1])
        return cls(torch.randn(shape, generator=generator) * rms(sample).cpu())

    def forward(self, batch_size: int) -> Tensor:
        """The prompt for every row of a batch: `[batch_size, P, H]`, a view of `weight`."""
        return self.weight.expand(batch_size, -1, -1)

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        return f"num_virtual_tokens={self.num_virtual_tokens}, hidden_size={self.hidden_size}"


def rms(tensor: Tensor) -> Tensor:
    """Root mean square of all elements, the scale that the default learning rate is relative to."""
    return tensor.detach().float().square().mean().sqrt()


@torch.no_grad()
def _embed(ids: Tensor, token_embedding: nn.Module) -> Tensor:
    """Rows `[len(ids), H]` as the module gives them."""
    return token_embedding(ids.to(embedding_weight(token_embedding).device))


def _at_least_one(num_virtual_tokens: int) -> int:
    if num_virtual_tokens < 1:
        raise UserError(f"`virtual_tokens` {num_virtual_tokens}: must be at least 1")
    return num_virtual_tokens
