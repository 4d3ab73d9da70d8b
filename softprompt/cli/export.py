"""Write a prompt in the form that another program takes: for PEFT, for servers, or a NumPy array."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import ExportConfig
from softprompt.config.options import flags_in
from softprompt.errors import UserError
from softprompt.system import sources
from softprompt.system.files import atomic_folder, check_output_file, check_output_folder, write_atomic
from softprompt.system.foreign import visible

if TYPE_CHECKING:
    from softprompt.base.loading import Base
    from softprompt.exporting.baked import Copy
    from softprompt.prompt.file import PromptFile

# a file by which an earlier export is known, without which no folder is replaced
MARKS = {
    "peft": "adapter_config.json",
    "baked": "prompts.json",
    "gguf": "prompts.json",
    "vllm": "request-completions.json",
}


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
    if config.push_to_hub is not None and not sources.is_adapter_id(config.push_to_hub):
        raise UserError(f"`push_to_hub` {config.push_to_hub}: is no hub id (OWNER/NAME)")
    if name == "npy":
        check_output_file(where, option="to", replace=config.overwrite)
        return
    check_output_folder(where, option="to")
    if where.is_dir() and any(where.iterdir()):
        if not _is_export(where, name):
            raise UserError(f"`to` {name} {where}: the folder holds other files; name another")
        if not config.overwrite:
            raise UserError(f"`to` {name} {where}: already there; name another, or replace it with `overwrite`")


def _is_export(folder: Path, name: str) -> bool:
    """Whether a folder holds an export and nothing else; a folder of a training run may hold an adapter as well."""
    names = {path.name for path in folder.iterdir()}
    alone = name != "peft" or names <= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    return MARKS[name] in names and alone and not any(path.is_dir() for path in folder.iterdir())


def to_peft(config: ExportConfig, files: "dict[str, PromptFile]") -> None:
    """Write an adapter folder, and upload it if it is asked for."""
    from softprompt.exporting.hub import CARD, is_hub_base, model_card, push
    from softprompt.exporting.peft import adapter_files, write_files

    ((name, file),) = files.items()
    base, pushed = config.model or file.facts.base, config.push_to_hub
    if pushed is not None and not is_hub_base(base):
        raise UserError(f"`push_to_hub` {pushed}: others cannot load the base {base}; name its hub id with `model`")
    content = adapter_files(file, prompt_file=name, model=config.model)
    if pushed is not None:
        content[CARD] = model_card(file, name=pushed, base=base)
    folder = Path(config.to[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        write_files(temporary, content)
    print(f"adapter of PEFT written to {folder}: PeftModel.from_pretrained(base, {str(folder)!r}) loads it")
    if pushed is not None:
        print(f"uploaded: {push(folder, pushed)}")


def to_npy(config: ExportConfig, files: "dict[str, PromptFile]") -> None:
    """Write a NumPy file."""
    from softprompt.prompt.adapter import array_bytes

    (file,) = files.values()
    path = Path(config.to[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, array_bytes(file.weight))
    print(f"fp32 {list(file.weight.shape)} written to {path}; it says nothing of its base and its template")


def to_baked(config: ExportConfig, files: "dict[str, PromptFile]") -> None:
    """Write a copy of the base in which the prompts are tokens."""
    from softprompt.base.loading import base_folder
    from softprompt.exporting.baked import bake, check, references, token_name
    from softprompt.prompt.encoder import bound_to, encoder_of

    base = load_base_of(config, files)
    prompts = {}
    for name, file in files.items():
        token = token_name(name)
        if token in prompts:
            raise UserError(f"`prompt_file` {name}: its tokens would be called {token}, as another's are; rename it")
        file = bound_to(base, file)
        prompts[token] = (file, encoder_of(file.facts, base, prompt_file=name))
    folder = Path(config.to[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        copy = bake(base, base_folder(base.name, base.revision or None)[0], prompts, temporary)
        expected = references(base, [each.prompt for each in copy.prompts])
        dtype = base.model.dtype
        name = base.name
        del base, prompts  # the copy is loaded next, and both may not fit into memory
        check(temporary, copy, expected, dtype)
    for line in describe_copy(copy, name, folder):
        print(visible(flags_in(line)))
    if config.to[0] == "gguf":
        target = shlex.quote(str(folder.with_suffix(".gguf")))
        print("llama.cpp's own converter makes the GGUF file of the copy; in a clone of llama.cpp:")
        print(f"  python convert_hf_to_gguf.py {shlex.quote(str(folder.resolve()))} --outfile {target} --outtype f32")
        print(f"  llama-server -m {target} --jinja")


def describe_copy(copy: "Copy", base_name: str, folder: Path) -> Iterator[str]:
    """The lines that say what a copy holds, how near it is to the prompts, and how it is used."""
    yield f"copy of {base_name} written to {folder}; new: {', '.join(copy.new_files)}; the other weights are linked"
    for each in copy.prompts:
        prompt = each.prompt
        ids = f"ids {prompt.ids[0]} to {prompt.ids[-1]}, {prompt.tokens[0]} to {prompt.tokens[-1]}"
        yield f"{prompt.name}: {len(prompt.ids)} tokens, {ids}"
        yield (
            f"  stored in {copy.dtype}, which rounds the prompt by at most {each.rounding:.2g} of its RMS; along an"
            f" answer the largest KL is {each.divergence:.2g} nats, and {each.same_choices} of {each.positions} greedy"
            " tokens are the same"
        )
        yield (
            f"  without `suppress_tokens` of generation_config.json, its tokens would get up to {each.leak:.2g} of the"
            f" probability and be chosen at {each.leaked_choices} of {each.positions} positions; a server that does not"
            " read it needs a logit bias of -100 on the ids in prompts.json"
        )
        if each.template:
            yield f"  chat template: {each.template}" + (", also the tokenizer's own" if len(copy.prompts) == 1 else "")
        else:
            yield "  no chat template writes the ids of training; send ids, with those of prompts.json in front"
    yield from copy.notes


def load_base_of(config: ExportConfig, files: "dict[str, PromptFile]") -> "Base":
    """Return the base that all the prompts were trained on; notes go to stderr."""
    import torch

    from softprompt.prompt.fit import check_same_base, load_prompt_base

    (first, file), *_ = files.items()
    cpu = torch.device("cpu")
    base = load_prompt_base(file.facts, prompt_file=first, model=config.model, device=cpu, precision="auto")
    remarks = [
        check_same_base(each, base, prompt_file=name, allow_other=config.allow_other_base)
        for name, each in files.items()
    ]
    for note in filter(None, (*base.notes, *remarks)):
        print(visible(flags_in(f"note: {note}")), file=sys.stderr)
    return base


def to_vllm(config: ExportConfig, files: "dict[str, PromptFile]") -> None:
    """Write the tensor, requests and a client for vLLM."""
    from softprompt.base.loading import base_folder
    from softprompt.exporting.baked import token_name
    from softprompt.exporting.peft import place_of, write_files
    from softprompt.exporting.rows import embedding_scale
    from softprompt.exporting.vllm import dtype_of, vllm_files
    from softprompt.prompt.encoder import bound_to, encoder_of

    ((name, file),) = files.items()
    base = load_base_of(config, files)
    file = bound_to(base, file)
    encoder = encoder_of(file.facts, base, prompt_file=name)
    dtype, served = dtype_of(base_folder(base.name, base.revision or None)[0], base), place_of(base.name)
    content = vllm_files(base, file, encoder, name=token_name(name), model_name=served, dtype=dtype)
    folder = Path(config.to[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        write_files(temporary, content)
    print(f"written to {folder}: {', '.join(content)}")
    print(f"start: vllm serve {shlex.quote(served)} --enable-prompt-embeds --dtype {str(dtype).removeprefix('torch.')}")
    print("it then unpickles tensors of its clients, so let only clients that you trust reach it")
    if encoder.placement == "front":
        print(
            "no chat request: there vLLM writes the chat template around the prompt, which stands in front of it here"
        )
    if embedding_scale(base.model) != 1.0:
        print(flags_in("note: this base scales its embeddings, and vLLM may scale the prompt too; `to` baked is safe"))


WRITERS = {"peft": to_peft, "baked": to_baked, "gguf": to_baked, "vllm": to_vllm, "npy": to_npy}
