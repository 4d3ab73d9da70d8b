"""softprompt: prompt tuning of frozen causal language models in pure PyTorch (Lester et al., 2021).

The public names are imported on first use, so a wrong command line is refused before PyTorch is imported.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "train": "softprompt.api",
    "load": "softprompt.api",
    "LoadedPrompt": "softprompt.api",
    "LoadedPrompts": "softprompt.api",
    "TrainedPrompt": "softprompt.api",
    "SoftPromptEmbedding": "softprompt.prompt.embedding",
    "SoftPromptModel": "softprompt.engine.model",
    "PromptFile": "softprompt.prompt.file",
    "load_prompt": "softprompt.prompt.file",
    "save_prompt": "softprompt.prompt.file",
    "UserError": "softprompt.errors",
    "Diverged": "softprompt.errors",
    "Interrupted": "softprompt.errors",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
