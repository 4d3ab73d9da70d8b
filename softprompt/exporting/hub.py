"""An adapter on the hub, with a card that says what it is and how it is loaded."""

from pathlib import Path
from typing import Any

from softprompt.prompt.file import PromptFile
from softprompt.system import sources
from softprompt.system.foreign import foreign, visible

CARD = "README.md"


def model_card(file: PromptFile, *, name: str, base: str) -> bytes:
    """The card of an adapter: its base, its data, its figures, and how it is loaded.

    Args:
        name: the hub id that it gets.
        base: the hub id of its base.
    """
    count, width = file.weight.shape
    head = ["---", "library_name: peft", "tags: [softprompt, prompt-tuning]"]
    head += [f"base_model: {base}", "pipeline_tag: text-generation"]
    lines = [
        f"# {name}",
        f"A soft prompt of {count} virtual tokens (hidden size {width}) for `{base}`, in front of every input.",
        "| | |\n|---|---|\n" + "\n".join(f"| {title} | {value} |" for title, value in _figures(file)),
        "Questions are written as in training by softprompt, which keeps the template in the file:",
        "```\nimport softprompt\n\n"
        f'prompt = softprompt.load("{name}", model="{base}")\nprint(prompt.answer("..."))\n```',
        "PEFT loads it too; write the questions in the template of the training:",
        "```\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")\n```',
    ]
    return ("\n".join([*head, "---", ""]) + "\n".join(f"\n{line}" for line in lines) + "\n").encode()


def push(folder: Path, name: str) -> str:
    """Upload the files of a folder to the repository `name` of the hub, which is made if it is missing.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached or refuses; what was there is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with foreign(f"`push_to_hub` {name}: the hub does not take it; is there a token (`hf auth login`)?"):
        api.create_repo(name, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a prompt of softprompt")
    return done.commit_url


def is_hub_base(base: str) -> bool:
    """Whether a base's name is a hub id, so that others can load it."""
    return sources.is_adapter_id(base) and not sources.is_path(base)


def _figures(file: PromptFile) -> list[tuple[str, str]]:
    """What the card says of the training, as far as the file does."""
    facts, training = file.facts, file.facts.training
    found: list[tuple[str, Any]] = [("template", facts.template)]
    found += [("data", facts.data), ("steps", training.get("steps")), ("rows", training.get("rows"))]
    for key, title in (("held_out_loss", "held-out loss"), ("test_loss", "test loss")):
        losses = training.get(key) or {}
        for side in ("without_prompt", "trained_prompt"):
            if losses.get(side) is not None:
                found.append((f"{title}, {side.replace('_', ' ')}", f"{losses[side]:.4g} nats per token"))
    return [(title, _plain(str(value))) for title, value in found if value not in (None, "", 0)]


def _plain(text: str) -> str:
    """A text of the file for a cell of a table: on one line, and without marks that end the cell."""
    return visible(text).replace("|", "\\|")
