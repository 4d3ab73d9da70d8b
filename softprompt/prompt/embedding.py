"""The only tensor that is trained, `[P, H]` for P virtual tokens, and the ways to initialise it.

Reading and writing files is left to `prompt/file.py`.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.base.vocabulary import embedding_weight
from softprompt.errors import UserError


class SoftPromptEmbedding(nn.Module):
    """P trainable vectors that go in front of a text's token embeddings (Lester et al., 2021, section 2).

    Attributes:
        weight: fp32 `nn.Parameter` `[P, H]`, whatever the precision of the base.
    """

    weight: nn.Parameter

    def __init__(self, weight: Tensor) -> None:
        """Copy `weight`, a float tensor `[P, H]` of any dtype with at least one row, to fp32.

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
        """Start from a `[P, H]` tensor, which is copied to fp32.

        Raises:
            UserError: `tensor` is not a finite, non-empty matrix.
        """
        return cls(tensor)

    @classmethod
    def from_text(
        cls,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        token_embedding: nn.Module,
        num_virtual_tokens: int | None = None,
    ) -> Self:
        """Start from the embeddings of `text`, with its ids cut or repeated to `num_virtual_tokens` (default: all).

        The tokenizer adds its special tokens, as in PEFT, but no eos at the end. The module `token_embedding` is
        called, not indexed, since some modules scale their rows (Gemma).

        Raises:
            UserError: `text` gives no token, or `num_virtual_tokens` is below 1.
        """
        ids = start_ids(text, tokenizer)
        if not ids:
            raise UserError(f"`init_text` {text!r} gives no token; write some text or use `init` vocab")
        return cls.from_ids(ids, token_embedding, len(ids) if num_virtual_tokens is None else num_virtual_tokens)

    @classmethod
    def from_ids(cls, ids: Sequence[int], token_embedding: nn.Module, num_virtual_tokens: int) -> Self:
        """Start from the embeddings of `ids`, of which there is at least one, cut or repeated to `num_virtual_tokens`.

        Raises:
            UserError: `num_virtual_tokens` is below 1.
        """
        count = _at_least_one(num_virtual_tokens)
        repeated = (list(ids) * -(-count // len(ids)))[:count]  # repeated ceil(count / len(ids)) times
        return cls(_embed(torch.tensor(repeated), token_embedding))

    @classmethod
    def from_vocab(
        cls, token_embedding: nn.Module, num_virtual_tokens: int, generator: torch.Generator | None = None
    ) -> Self:
        """Start from the embeddings of distinct, uniformly drawn tokens (Lester et al., 2021, section 3.2).

        Raises:
            UserError: `num_virtual_tokens` is above the number of rows in the vocabulary, or below 1.
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
        """Start from normal noise with mean 0 and the RMS of the first 4,096 token embeddings.

        Raises:
            UserError: `num_virtual_tokens` is below 1.
        """
        vocab_size = len(embedding_weight(token_embedding))
        sample = _embed(torch.arange(min(vocab_size, 4096)), token_embedding)
        shape = (_at_least_one(num_virtual_tokens), sample.shape[1])
        return cls(torch.randn(shape, generator=generator) * rms(sample).cpu())

    def forward(self, batch_size: int) -> Tensor:
        """Return the prompt once per row of a batch: fp32 `[batch_size, P, H]`, a view of `weight`."""
        return self.weight.expand(batch_size, -1, -1)

    @property
    def num_virtual_tokens(self) -> int:
        """The number of virtual tokens, P."""
        return self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """The hidden size, H."""
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        return f"num_virtual_tokens={self.num_virtual_tokens}, hidden_size={self.hidden_size}"


def start_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a start text, without the eos that some tokenizers append: nothing follows a text that has ended."""
    ids = tokenizer(text)["input_ids"]
    eos = tokenizer.eos_token_id
    appended = len(ids) > 1 and ids[-1] == eos and not text.endswith(tokenizer.eos_token or " ")
    return ids[:-1] if appended and tokenizer(text, add_special_tokens=False)["input_ids"][-1:] != [eos] else ids


def rms(tensor: Tensor) -> Tensor:
    """The root mean square of all elements, an fp32 scalar; the default learning rate is relative to it."""
    return tensor.detach().float().square().mean().sqrt()


@torch.no_grad()
def _embed(ids: Tensor, token_embedding: nn.Module) -> Tensor:
    """The embeddings `[len(ids), H]` that the module computes for `ids`, in its own dtype.

    Raises:
        UserError: an id has no embedding.
    """
    weight = embedding_weight(token_embedding)
    outside = ids[(ids < 0) | (ids >= len(weight))]
    if len(outside):
        raise UserError(f"`model`: its tokenizer gives id {outside[0]}, its embedding has {len(weight)} rows")
    return token_embedding(ids.to(weight.device))


def _at_least_one(num_virtual_tokens: int) -> int:
    if num_virtual_tokens < 1:
        raise UserError(f"`virtual_tokens` {num_virtual_tokens}: must be at least 1")
    return num_virtual_tokens
