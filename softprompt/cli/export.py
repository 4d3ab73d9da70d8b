"""Write a prompt in the form that another program takes: an adapter of PEFT, or a NumPy array."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import ExportConfig
from softprompt.errors import UserError
from softprompt.system.files import atomic_folder, check_output_file, check_output_folder, write_atomic

if TYPE_CHECKING:
    from softprompt.prompt.file import PromptFile

# a file by which an earlier export is known, without which no folder is replaced
MARKS = {"peft": "adapter_config.json"}


def main(argv: Sequence[str] | None = None, prog: str = "softprompt export") -> None:
    """Write the export, and print where it is and how it is used."""
    config = parse(ExportConfig, argv, prog=prog, description=__doc__, positional="prompt_file")
    check_output(config)

    from softprompt.prompt.file import load_prompt

    settle()
    files = {name: load_prompt(name) for name in config.prompt_file}
    WRITERS[config.to[0]](config, files)


def check_output(config: ExportConfig) -> None:
    """Raise `UserError`, before anything is loaded, if the export cannot be written or would replace something."""
    name, where = config.to[0], Path(config.to[1])
    if name == "npy":
        check_output_file(where, option="to", replace=config.overwrite)
        return
    check_output_folder(where, option="to")
    if where.is_dir() and any(where.iterdir()):
        if not (where / MARKS[name]).exists():
            raise UserError(f"`to` {name} {where}: the folder holds other files; name another")
        if not config.overwrite:
            raise UserError(f"`to` {name} {where}: already there; name another, or replace it with `overwrite`")


def to_peft(config: ExportConfig, files: "dict[str, PromptFile]") -> None:
    """Write an adapter folder."""
    from softprompt.exporting.peft import adapter_files, write_files

    ((name, file),) = files.items()
    content = adapter_files(file, prompt_file=name, model=config.model)
    folder = Path(config.to[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        write_files(temporary, content)
    print(f"adapter of PEFT written to {folder}: PeftModel.from_pretrained(base, {str(folder)!r}) loads it")


def to_npy(config: ExportConfig, files: "dict[str, PromptFile]") -> None:
    """Write a NumPy file."""
    from softprompt.prompt.adapter import array_bytes

    (file,) = files.values()
    path = Path(config.to[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, array_bytes(file.weight))
    print(f"fp32 {list(file.weight.shape)} written to {path}; it says nothing of its base and its template")


WRITERS = {"peft": to_peft, "npy": to_npy}
