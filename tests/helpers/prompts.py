"""Prompt files that need no training."""

from pathlib import Path

import torch

from softprompt import SoftPromptEmbedding, save_prompt
from softprompt.base.known import remember_base
from softprompt.base.loading import load_base


def save_for(base_name, path, *, count=4, seed=0, scale=1.0, known=True, **changes) -> Path:
    """Save a random prompt made for a base, its metadata with `changes`; returns the path.

    With `known` the base counts as one that prompts were trained on here.
    """
    base = load_base(str(base_name), device=torch.device("cpu"), precision="fp32")
    width = base.model.get_input_embeddings().weight.shape[1]
    weight = scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    metadata = base.metadata | changes
    if known:
        remember_base(metadata["base"], metadata["base_revision"], metadata["base_sha256"])
    save_prompt(path, SoftPromptEmbedding.from_tensor(weight), metadata)
    return path
