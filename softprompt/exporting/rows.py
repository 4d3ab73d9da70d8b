"""Which token ids stand for the vectors of prompts in a copy of a base, what they are called, and what is stored."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.base.vocabulary import embedding_weight
from softprompt.errors import UserError
from softprompt.prompt.file import PromptFile
from softprompt.tokens.encoding import Encoder

# how bases call tokens that they keep for later use
RESERVED = re.compile(r"<\|?(?:reserved|unused|extra)[\w ]*\d+\|?>|\[unused\d+\]", re.IGNORECASE)


@dataclass(frozen=True)
class BakedPrompt:
    """A prompt whose vectors are tokens.

    Attributes:
        tokens, ids: the text and the id of each of its P tokens.
    """

    name: str
    file: PromptFile
    encoder: Encoder
    tokens: list[str]
    ids: list[int]

    @property
    def front(self) -> list[int]:
        """The ids that stand in front of every question."""
        return [*self.encoder.before_ids, *self.ids, *self.encoder.after_ids]


def baked_prompts(
    base_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, tuple[PromptFile, Encoder]]
) -> list[BakedPrompt]:
    """Give every vector of the prompts a token.

    These are tokens that the base reserves, if it has enough; otherwise new ones, which take the rows that the
    tokenizer leaves unused and then rows of their own.

    Args:
        prompts: by the names that the tokens get.
    """
    counts = {name: len(file.weight) for name, (file, _) in prompts.items()}
    total = sum(counts.values())
    vocabulary = tokenizer.get_vocab()
    rows = len(embedding_weight(base_model.get_input_embeddings()))
    written = f"{tokenizer.chat_template or ''}" + "".join(encoder.template.text for _, encoder in prompts.values())
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} - set(tokenizer.all_special_tokens)
    used = {id for _, encoder in prompts.values() for id in (*encoder.end_ids, *encoder.before_ids, *encoder.after_ids)}
    spare = sorted(
        (id, text)
        for text, id in vocabulary.items()
        if text in added and RESERVED.fullmatch(text) and text not in written and id < rows and id not in used
    )
    if len(spare) >= total:
        pairs = spare[:total]
    else:
        first = max(vocabulary.values()) + 1
        names = [f"<|{name}_{place + 1}|>" for name, count in counts.items() for place in range(count)]
        taken = next((each for each in names if each in vocabulary), None)
        if taken is not None:
            raise UserError(f"`to` baked: the base's tokenizer has a token {taken} already; rename the prompt file")
        pairs = [(first + place, each) for place, each in enumerate(names)]
    found, start = [], 0
    for name, (file, encoder) in prompts.items():
        own = pairs[start : start + counts[name]]
        found.append(BakedPrompt(name, file, encoder, [text for _, text in own], [id for id, _ in own]))
        start += counts[name]
    return found


def embedding_scale(base_model: PreTrainedModel) -> float:
    """The number by which a base multiplies the rows of its embedding (Gemma); a prompt is not multiplied by it.

    Raises:
        UserError: the base does something else with its rows, so that no row gives a wanted vector.
    """
    embedding = base_model.get_input_embeddings()
    weight = embedding_weight(embedding)
    sample = torch.arange(min(len(weight), 64), device=weight.device)
    with torch.no_grad():
        given, stored = embedding(sample).double(), weight[sample].double()
    factors = (given / stored)[stored.abs() > stored.abs().max() * 0.1]
    scale = factors.median().item() if len(factors) else 1.0
    config = base_model.config.get_text_config()
    if getattr(config, "hidden_size_per_layer_input", None):
        raise UserError("`to` baked: this base also embeds ids inside its layers, where a prompt has no vectors")
    precision = torch.finfo(weight.dtype).eps
    if given.shape != stored.shape or (given - stored * scale).abs().max() > 4 * precision * given.abs().max():
        raise UserError("`to` baked: this base does more to its embedding rows than to scale them")
    return scale


def stored_rows(weight: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """A prompt `[P, H]` as rows of the embedding in its dtype, and the largest rounding over the prompt's RMS."""
    rows = (weight.double() / scale).to(dtype)
    error = (rows.double() * scale - weight.double()).abs().max() / weight.double().square().mean().sqrt()
    return rows, error.item()


def unlikeliest(logits: Sequence[Tensor]) -> int:
    """The id whose largest logit over all positions `[N, V]` is the smallest."""
    return int(torch.cat(list(logits)).amax(dim=0).argmin())
