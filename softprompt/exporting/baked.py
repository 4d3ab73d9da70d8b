"""A copy of a base in which the vectors of prompts are ordinary tokens, so that whatever takes ids can run them."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from softprompt.base.checkpoint import STORED, Stored, stored_tensors, weight_files
from softprompt.base.loading import Base
from softprompt.base.vocabulary import embedding_weight
from softprompt.data.row import Row
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.exporting import wording
from softprompt.exporting.rows import BakedPrompt, baked_prompts, embedding_scale, stored_rows, unlikeliest
from softprompt.exporting.weights import Change, copy_weights, link_or_copy, stored_name
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import PromptFile
from softprompt.system.foreign import foreign, read_json
from softprompt.system.sources import SAMPLE_QUESTION
from softprompt.tokens.encoding import Encoder, bos_of

LIST = "prompts.json"  # which ids stand for which prompt
COPIED = (".json", ".txt", ".model", ".jinja")
ANSWER_TOKENS = 24  # of the answers on which copy and prompt are compared
MOST_KL = 0.1  # nats; a copy that differs more computes something else


@dataclass
class Measured:
    """One prompt in the copy.

    Attributes:
        rounding: the largest change of one of its numbers, relative to the prompt's RMS.
        divergence: the largest KL of the copy's next-token distribution from the prompt's, in nats, along an answer.
        same_choices: at how many of those positions both find the same token most probable.
        leak: the most probability that all prompts' tokens have together at one of them, without `suppress_tokens`.
        leaked_choices: at how many of them the most probable token would be one of those.
        template: the file with a chat template that writes the prompt's tokens; "" if none does.
    """

    prompt: BakedPrompt
    rounding: float
    divergence: float = 0.0
    positions: int = 0
    same_choices: int = 0
    leak: float = 0.0
    leaked_choices: int = 0
    template: str = ""


@dataclass
class Copy:
    """What was written: the prompts, the weight files that are new, and what else is to be said."""

    prompts: list[Measured]
    new_files: list[str]
    dtype: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """What the base computes behind a prompt: a question, its greedy answer, and the logits `[n, V]` that chose it."""

    question: list[int]
    answer: list[int]
    logits: Tensor


def token_name(prompt_file: str) -> str:
    """What the tokens of a prompt are called, from the name of its file."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", Path(prompt_file).name.removesuffix(".safetensors")).strip("_") or "prompt"


def bake(base: Base, folder: Path, prompts: dict[str, tuple[PromptFile, Encoder]], out: Path) -> Copy:
    """Write the copy to the folder `out`; `check` then compares it with the prompts.

    Args:
        folder: where the base is.
        prompts: the prompts with their encoders, by the names of their tokens.

    Raises:
        UserError: no row of this base's embedding can stand for a prompt's vector.
    """
    model, tokenizer = base.model, base.tokenizer
    scale = embedding_scale(model)
    baked = baked_prompts(model, tokenizer, prompts)
    files = weight_files(folder)
    stored = stored_tensors(files)
    name = _stored_parameter(model, stored, embedding_weight(model.get_input_embeddings()))
    if stored[name].dtype not in STORED or not STORED[stored[name].dtype].is_floating_point:
        raise UserError(f"`to` baked: the base stores its embedding as {stored[name].dtype}; bake an unquantised one")
    dtype = STORED[stored[name].dtype]
    found = [stored_rows(each.file.weight, scale, dtype) for each in baked]
    ids = [id for each in baked for id in each.ids]
    changes = [Change(name, ids, torch.cat([rows for rows, _ in found]))]
    changes += _head_changes(base, stored, changes[0], baked)
    new_files = copy_weights(files, out, changes)
    _copy_others(folder, out, tokenizer)
    _write_config(folder, out, rows=max(ids) + 1)
    _write_generation_config(folder, out, base, baked)
    measured = [Measured(each, rounding) for each, (_, rounding) in zip(baked, found, strict=True)]
    copy = Copy(measured, new_files, str(dtype).removeprefix("torch."))
    _write_texts(folder, out, tokenizer, copy)
    return copy


def references(base: Base, prompts: Sequence[BakedPrompt]) -> list[Reference]:
    """What the base computes behind each prompt, on a sample question."""
    found, width = [], len(embedding_weight(base.model.get_input_embeddings()))
    for each in prompts:
        embedding = SoftPromptEmbedding.from_tensor(each.file.weight)
        model = SoftPromptModel(base.model, embedding, each.encoder.before_ids, each.encoder.after_ids)
        (question,) = each.encoder.questions([Row.asked(SAMPLE_QUESTION)])
        ids = torch.tensor([question or [base.tokenizer.eos_token_id]], device=base.model.device)
        settings: dict[str, Any] = {
            "do_sample": False,
            "max_new_tokens": ANSWER_TOKENS,
            "eos_token_id": each.encoder.end_ids,
        }
        # a row of the base that a prompt takes is no answer in the copy
        hidden = [id for other in prompts for id in other.ids if id < width] or None
        whole = model.generate(ids, pad_token_id=base.pad_token_id, suppress_tokens=hidden, **settings)
        with torch.no_grad():
            logits = model(whole).logits[0, len(model.front) + ids.shape[1] - 1 : -1].float().cpu()
        found.append(Reference(ids[0].tolist(), whole[0, ids.shape[1] :].tolist(), logits))
    return found


def check(out: Path, copy: Copy, expected: Sequence[Reference], dtype: torch.dtype) -> None:
    """Load the copy as transformers' users do, and compare it with what the base computes behind the prompts.

    Raises:
        UserError: it computes something else.
    """
    with foreign("`to` baked: the copy cannot be loaded"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            out, dtype=dtype, local_files_only=True, trust_remote_code=False
        ).eval()
    hidden = [id for each in copy.prompts for id in each.prompt.ids]
    for each, reference in zip(copy.prompts, expected, strict=True):
        ids = torch.tensor([[*each.prompt.front, *reference.question, *reference.answer]])
        with torch.no_grad():
            logits = model(ids).logits[0, -len(reference.answer) - 1 : -1].float()
        probabilities = logits.softmax(-1)
        each.positions = len(logits)
        each.leak = probabilities[:, hidden].sum(-1).max().item()
        each.leaked_choices = sum(id in hidden for id in logits.argmax(-1).tolist())
        theirs, ours = (_without(side, hidden, reference.logits.shape[1]) for side in (logits, reference.logits))
        each.same_choices = int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        log_ratio = (ours.log_softmax(-1) - theirs.log_softmax(-1)).nan_to_num(0.0)
        each.divergence = (ours.softmax(-1) * log_ratio).sum(-1).max().item()
        if not each.divergence <= MOST_KL:
            raise UserError(
                f"`to` baked: the copy's answers behind {each.prompt.name} differ by {each.divergence:.2g} nats from"
                " the prompt's, so this base does not run prompts as tokens"
            )


def _without(logits: Tensor, ids: Sequence[int], width: int) -> Tensor:
    """The first `width` logits of each position in fp64, without those of `ids`."""
    kept = logits[:, :width].double()
    kept[:, [id for id in ids if id < width]] = float("-inf")
    return kept


def _stored_parameter(model: PreTrainedModel, stored: dict[str, Stored], parameter: Tensor) -> str:
    """The name under which the checkpoint holds a parameter: its own, or else that of the tensor with its values.

    Raises:
        UserError: it holds none.
    """
    name = next(name for name, each in model.named_parameters(remove_duplicate=False) if each is parameter)
    found = stored_name(stored, name, model.base_model_prefix)
    if found is None:
        alike = [other for other, each in stored.items() if each.shape == list(parameter.shape)]
        found = next((other for other in alike if _holds(stored[other], parameter)), None)
    if found is None:
        raise UserError(f"`to` baked: the base's files hold no {name}, under none of its usual names")
    return found


def _holds(stored: Stored, parameter: Tensor) -> bool:
    """Whether a stored tensor has the values of a parameter; its first chunk is looked at."""
    first = next(stored.chunks()).to(parameter)
    return torch.equal(first, parameter.detach().reshape(-1)[: len(first)])


def _head_changes(base: Base, stored: dict[str, Stored], change: Change, prompts: list[BakedPrompt]) -> list[Change]:
    """What becomes of the output head.

    A tied head is the embedding. Another one only has to grow; its new rows are those of the token that the base finds
    least likely, and the ids behind them are suppressed.
    """
    model, head = base.model, base.model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return []
    weight = embedding_weight(head)
    if weight is embedding_weight(model.get_input_embeddings()):
        names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is weight]
        copies = {stored_name(stored, name, model.base_model_prefix) for name in names} - {None, change.name}
        return [Change(str(name), change.ids, change.rows) for name in copies]
    new = [id for id in change.ids if id >= len(weight)]
    if not new:
        return []
    least = unlikeliest([each.logits for each in references(base, prompts)])
    return [
        Change(
            _stored_parameter(model, stored, each),
            new,
            each[least].detach().cpu().float().expand(len(new), *each.shape[1:]),
        )
        for each in head.parameters()
    ]


def _copy_others(folder: Path, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy what is neither weights nor written anew."""
    for file in sorted(folder.iterdir()):
        # an adapter beside the base would be loaded with the copy, and was not with the base
        other = file.name.endswith(".index.json") or file.name == "adapter_config.json"
        if file.is_file() and (file.suffix in COPIED or file.name.startswith("LICENSE")) and not other:
            link_or_copy(file, out / file.name) if file.suffix == "" else shutil.copyfile(file, out / file.name)
    if not (folder / "tokenizer.json").exists():
        tokenizer.save_pretrained(out)


def _write_config(folder: Path, out: Path, *, rows: int) -> None:
    """Write `config.json`, whose vocabulary grows if the new ids are beyond it."""
    config = read_json(folder / "config.json", str(folder))
    inner = config.get("text_config")
    place = inner if isinstance(inner, dict) and "vocab_size" in inner else config
    if "vocab_size" not in place or place["vocab_size"] < rows:
        place["vocab_size"] = rows
    _write_json(out / "config.json", config)


def _write_generation_config(folder: Path, out: Path, base: Base, prompts: Sequence[BakedPrompt]) -> None:
    """Write `generation_config.json`: the prompts' tokens are never answered, and what ended answers ends them."""
    path = folder / "generation_config.json"
    settings = read_json(path, str(folder)) if path.exists() else {}
    settings.pop("_from_model_config", None)  # transformers would make the settings anew from the config
    own = base.model.generation_config
    settings = {"bos_token_id": own.bos_token_id, "pad_token_id": base.pad_token_id} | settings
    hidden = {id for each in prompts for id in each.ids}
    settings["suppress_tokens"] = sorted({*(settings.get("suppress_tokens") or []), *hidden})
    settings["eos_token_id"] = list(dict.fromkeys(id for each in prompts for id in each.encoder.end_ids))
    _write_json(out / "generation_config.json", settings)


def _write_texts(folder: Path, out: Path, tokenizer: PreTrainedTokenizerBase, copy: Copy) -> None:
    """Write the tokenizer with the tokens' names, the templates, the texts in front, and the list of the prompts."""
    prompts = [each.prompt for each in copy.prompts]
    tokens = {text: id for each in prompts for text, id in zip(each.tokens, each.ids, strict=True)}
    wording.add_tokens(folder if (folder / "tokenizer.json").exists() else out, out, tokens)
    adds_bos = bos_of(tokenizer) is not None
    if adds_bos and any(each.encoder.placement == "front" for each in prompts):
        adds_bos = False
        copy.notes.append("the copy's tokenizer adds no bos by itself, which would come in front of the prompt")
    wording.set_tokenizer(out, tokens, None, adds_bos=adds_bos or bos_of(tokenizer) is None)
    theirs = _load_tokenizer(out)
    if [theirs.convert_tokens_to_ids(text) for text in tokens] != [*tokens.values()]:
        raise UserError("`to` baked: this base's tokenizer cannot be given tokens of chosen ids")
    if (bos_of(theirs) is not None) != adds_bos:
        copy.notes.append("the copy's tokenizer still adds a bos by itself; send ids, or `add_special_tokens` false")
    listed = {}
    for each in copy.prompts:
        prompt = each.prompt
        template = wording.working_template(theirs, prompt.encoder, prompt.tokens, prompt.front)
        if template:
            each.template = f"{prompt.name}.jinja"
            (out / each.template).write_text(template, "utf-8")
            if len(prompts) == 1:
                wording.set_tokenizer(out, tokens, template, adds_bos=True)
        prefix = wording.prefix_text(prompt, writes_bos=adds_bos)
        (out / f"{prompt.name}.prefix.txt").write_text(prefix, "utf-8")
        listed[prompt.name] = {
            "front_ids": prompt.front,
            "prompt_ids": prompt.ids,
            "tokens": prompt.tokens,
            "prefix": prefix,
            "chat_template": each.template or None,
            "end_ids": prompt.encoder.end_ids,
        }
    _write_json(out / LIST, listed)


def _load_tokenizer(out: Path) -> PreTrainedTokenizerBase:
    with foreign("`to` baked: the copy's tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(out, trust_remote_code=False, local_files_only=True)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
