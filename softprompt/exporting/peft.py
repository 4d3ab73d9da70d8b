"""A prompt as an adapter folder of PEFT, whose tensor file is the prompt file itself."""

import json
from pathlib import Path

from softprompt.errors import UserError
from softprompt.prompt.adapter import CONFIG_NAME, WEIGHT_NAMES
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import PromptFile, prompt_bytes
from softprompt.system import sources


def adapter_files(file: PromptFile, *, prompt_file: str, model: str | None = None) -> dict[str, bytes]:
    """The files of the adapter by their names.

    Args:
        model: the base that the adapter is to name; None takes the one that the prompt file names.

    Raises:
        UserError: the prompt does not stand in front of everything, which is the only place where PEFT puts one.
    """
    facts = file.facts
    if facts.placement not in ("", "front"):
        raise UserError(
            f"{prompt_file}: was trained in the {facts.placement} turn, and PEFT puts a prompt in front of everything;"
            " train one with `placement` front, or export this one with `to` baked"
        )
    count, width = file.weight.shape
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": place_of(model or facts.base) or None,
        "revision": (facts.base_revision or None) if model in (None, facts.base) else None,
        "num_virtual_tokens": count,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",  # any other would load a tokenizer
    }
    weight = prompt_bytes(SoftPromptEmbedding.from_tensor(file.weight), file.metadata)
    return {CONFIG_NAME: (json.dumps(config, indent=2) + "\n").encode(), WEIGHT_NAMES[0]: weight}


def place_of(base: str) -> str:
    """What transformers loads a base by: its name, or the folder of one that ships with softprompt."""
    return str(sources.model_folder(base)) if sources.is_builtin(base) else base


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder that is there."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
