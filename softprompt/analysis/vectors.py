"""A prompt beside the vocabulary of its base: its nearest tokens, the scale of the vocabulary, and tokens as text.

The embedding module is called, since some modules scale the rows of their weight (Gemma). It gets a chunk of ids at a
time, since all rows in fp32 may take more memory than the base.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.base.vocabulary import embedding_weight
from softprompt.tokens.encoding import decode_text

CHUNK = 1 << 22  # elements that are converted to fp32 at a time


def nearest_tokens(weight: Tensor, token_embedding: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` vocabulary tokens with the largest cosine to each row of `weight` `[P, H]`.

    Returns:
        Their ids and cosines, both `[P, count]`, the nearest first.
    """
    prompt = nn.functional.normalize(weight.float(), dim=1)  # [P, H]
    best = torch.empty(len(weight), 0)
    ids = torch.empty(len(weight), 0, dtype=torch.long)
    for first, rows in embedding_chunks(token_embedding):
        cosines = prompt @ nn.functional.normalize(rows, dim=1).T  # [P, chunk]
        chunk_ids = torch.arange(first, first + len(rows)).expand(len(weight), -1)
        best, ids = torch.cat([best, cosines], dim=1), torch.cat([ids, chunk_ids], dim=1)
        best, places = best.topk(min(count, best.shape[1]), dim=1)  # [P, count]
        ids = ids.gather(1, places)
    return ids, best


def vocabulary_rms(token_embedding: nn.Module) -> float:
    """Return the root mean square of all elements of the embeddings."""
    total, number = 0.0, 0
    for _, rows in embedding_chunks(token_embedding):
        total += rows.double().square().sum().item()
        number += rows.numel()
    return (total / number) ** 0.5


@torch.no_grad()
def embedding_chunks(token_embedding: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """Yield the first id and the rows, fp32 `[chunk, H]` on the CPU, of every chunk of what the module returns."""
    weight = embedding_weight(token_embedding)
    vocab_size, width = weight.shape
    length = max(1, CHUNK // width)
    for first in range(0, vocab_size, length):
        ids = torch.arange(first, min(first + length, vocab_size), device=weight.device)
        yield first, token_embedding(ids).float().cpu()


def token_text(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a token as quoted text, in which spaces and line breaks show, or its name if it is no whole text."""
    name = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if name is None:
        return f"id {token_id}"  # an embedding may have more rows than the tokenizer has tokens
    assert isinstance(name, str)  # a list only for a list of ids
    text = decode_text([token_id], tokenizer, clean_up_tokenization_spaces=False)
    if "\N{REPLACEMENT CHARACTER}" in text or not text:
        return f"<{name}>" if name.isprintable() else repr(name)  # the token is only some bytes of a character
    # sentencepiece drops the space in front of a text's first word
    return repr(" " + text if name.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text)
