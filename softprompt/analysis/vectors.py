"""What a prompt is, beside its base: its nearest vocabulary tokens, its scale, and how far it moved in training.

The embedding module is asked for its rows a chunk of ids at a time, since some modules scale them (Gemma) and all of
them in fp32 may be larger than the base.
"""

import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.start import initial_prompt

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
    total = number = 0
    for _, rows in embedding_chunks(token_embedding):
        total += rows.double().square().sum().item()
        number += rows.numel()
    return (total / number) ** 0.5


@torch.no_grad()
def embedding_chunks(token_embedding: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """First id and fp32 rows `[chunk, H]` of the embeddings, as the module gives them, on the CPU."""
    vocab_size, width = token_embedding.weight.shape
    device = token_embedding.weight.device
    length = max(1, CHUNK // width)
    for first in range(0, vocab_size, length):
        ids = torch.arange(first, min(first + length, vocab_size), device=device)
        yield first, token_embedding(ids).float().cpu()


def why_no_start(metadata: dict[str, str], seed: object) -> str:
    """Why the prompt that training started from cannot be made again; "" if it can."""
    init = metadata.get("init")
    if init == "text":
        return "" if metadata.get("init_text") else "the file does not say the text that it started from"
    if init == "file":
        return "it started from another prompt file (--init-from)"
    if init == "answers":
        return "" if _init_ids(metadata) else "the file does not say the tokens of the answers that it started from"
    if init in ("vocab", "random"):
        return "" if _is_seed(seed) else f"the file does not say the seed of its {init} start"
    return "the file does not say what it started from"


def start_of(metadata: dict[str, str], seed: object, base: Base, num_virtual_tokens: int) -> Tensor:
    """The prompt `[P, H]` that training started from, where `why_no_start` finds nothing.

    Its embeddings are rounded to the precision that the base is loaded in, which may not be that of the training.
    """
    if metadata["init"] == "answers":
        embedding = base.model.get_input_embeddings()
        return SoftPromptEmbedding.from_ids(_init_ids(metadata), embedding, num_virtual_tokens).weight.detach().cpu()
    settings = {"init": metadata["init"], "virtual_tokens": num_virtual_tokens}
    settings |= {"init_text": metadata["init_text"]} if metadata["init"] == "text" else {"seed": seed}
    return initial_prompt(TrainConfig(**settings), base).weight.detach().cpu()


def token_text(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """One token so that spaces and line breaks show: quoted text, or its name where it is only a part of a text."""
    name = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if name is None:
        return f"id {token_id}"  # an embedding may have more rows than the tokenizer has tokens
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    if "\N{REPLACEMENT CHARACTER}" in text or not text:
        return f"<{name}>" if name.isprintable() else repr(name)  # some bytes of a character
    # sentencepiece drops the space in front of a text's first word
    return repr(" " + text if name.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text)


def _init_ids(metadata: dict[str, str]) -> list[int]:
    """The ids that an answers' start was made of; empty if the file does not say them."""
    try:
        ids = json.loads(metadata.get("init_ids") or "[]")
    except ValueError:
        return []
    return ids if isinstance(ids, list) and all(map(_is_id, ids)) else []


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seed(seed: object) -> bool:
    return isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
