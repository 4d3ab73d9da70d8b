"""Prompt files that need no training."""

from pathlib import Path

import torch

from softprompt import SoftPromptEmbedding, save_prompt
from softprompt.base.loading import load_base


def save_for(base_name, path, *, count=4, seed=0, scale=1.0, **changes) -> Path:
    """Save a random prompt made for a base, its metadata with `changes`; returns the path."""
    base = load_base(str(base_name), device=torch.device("cpu"), precision="fp32")
    width = base.model.get_input_embeddings().weight.shape[1]
    weight = scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    save_prompt(path, SoftPromptEmbedding.from_tensor(weight), base.metadata | changes)
    return path
