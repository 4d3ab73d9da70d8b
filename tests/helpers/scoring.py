"""A model with or without a prompt, and what the untouched base says of one row behind that prompt."""

import torch

from helpers.models import HIDDEN_SIZE
from softprompt import SoftPromptEmbedding, SoftPromptModel

PAD = 3


def prompt_of(count=4):
    return torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(5))


def with_prompt(base, weight):
    """The model of both; the base alone for None."""
    return base if weight is None else SoftPromptModel(base, SoftPromptEmbedding.from_tensor(weight))


def logits_of(base, weight, ids):
    """Logits `[T, V]` at the places of the text, from the base's own forward on one row."""
    text = base.get_input_embeddings()(torch.tensor([ids]))
    front = text[:, :0] if weight is None else weight[None].to(text.dtype)
    with torch.no_grad():
        logits = base(inputs_embeds=torch.cat([front, text], dim=1), use_cache=False).logits[0]
    return logits[front.shape[1] :]
