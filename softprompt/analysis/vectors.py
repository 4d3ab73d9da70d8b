"""What a prompt is, beside its base: its nearest vocabulary tokens, its scale, and how far it moved in training.

The embedding module is asked for its rows a chunk of ids at a time, since some modules scale them (Gemma) and all of
them in fp32 may be larger than the base.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.base.vocabulary import embedding_weight
from softprompt.data.encoding import decode_text

CHUNK = 1 << 22  # elements widened to fp32 at a time


def nearest_tokens(weight: Tensor, token_embedding: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """The `count` vocabulary tokens of largest cosine with each row of `weight` `[P, H]`, the nearest first.

    Returns:
        their ids and cosines, both `[P, count]`.
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
    """Root mean square of all elements of the embeddings."""
    total, number = 0.0, 0
    for _, rows in embedding_chunks(token_embedding):
        total += rows.double().square().sum().item()
        number += rows.numel()
    return (total / number) ** 0.5


@torch.no_grad()
def embedding_chunks(token_embedding: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """First id and fp32 rows `[chunk, H]` of the embeddings, as the module gives them, on the CPU."""
    weight = embedding_weight(token_embedding)
    vocab_size, width = weight.shape
    length = max(1, CHUNK // width)
    for first in range(0, vocab_size, length):
        ids = torch.arange(first, min(first + length, vocab_size), device=weight.device)
        yield first, token_embedding(ids).float().cpu()


def token_text(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """One token so that spaces and line breaks show: quoted text, or its name where it is only a part of a text."""
    name = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if name is None:
        return f"id {token_id}"  # an embedding may have more rows than the tokenizer has tokens
    assert isinstance(name, str)  # a list only for a list of ids
    text = decode_text([token_id], tokenizer, clean_up_tokenization_spaces=False)
    if "\N{REPLACEMENT CHARACTER}" in text or not text:
        return f"<{name}>" if name.isprintable() else repr(name)  # some bytes of a character
    # sentencepiece drops the space in front of a text's first word
    return repr(" " + text if name.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text)
