"""Write the prompt of an adapter of PEFT, or of a NumPy file, as a prompt file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from softprompt.cli.program import settle, typed
from softprompt.config.command_line import parse
from softprompt.config.commands import ImportConfig
from softprompt.config.options import flags_in
from softprompt.errors import UserError
from softprompt.system.files import check_output_file, write_atomic
from softprompt.system.foreign import visible


def main(argv: Sequence[str] | None = None, prog: str = "softprompt import") -> None:
    """Write the prompt file, and print what is known of it on stderr."""
    config = parse(ImportConfig, argv, prog=prog, description=__doc__, positional="adapter")
    path = Path(config.prompt_file)
    check_output_file(path, option="prompt_file", replace=config.overwrite)

    import torch

    from softprompt.prompt.embedding import SoftPromptEmbedding
    from softprompt.prompt.encoder import bound_to
    from softprompt.prompt.file import load_prompt, prompt_bytes
    from softprompt.prompt.fit import check_same_base, load_prompt_base

    settle()
    name = str(config.adapter)
    file = load_prompt(name, task=config.task)
    if not file.adapter and (config.template != "auto" or config.system):
        raise UserError(f"`template`: {name} says under which it was trained; leave `template` and `system` out")
    base = load_prompt_base(
        file.facts, prompt_file=name, model=config.model, device=torch.device("cpu"), precision="auto"
    )
    check_same_base(file, base, prompt_file=name, allow_other=False)
    file = bound_to(base, file, template=config.template, system=config.system)
    for note in base.notes:
        print(visible(flags_in(f"note: {note}")), file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, prompt_bytes(SoftPromptEmbedding.from_tensor(file.weight), file.metadata))
    print(f"prompt written to {path}, for the base {base.name} and the template {file.facts.template or 'tutorial'}")
    if file.adapter:
        print("an adapter says neither on which weights nor under which template it was trained")
    print(f"try it: {typed('generate')} --prompt-file {path}")
