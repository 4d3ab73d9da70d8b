"""Train a prompt and use one from Python: `train` and `load` take the options of the commands by their names.

Nothing here ends the process or prints, apart from the progress bar; wrong input raises `UserError`.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PretrainedConfig

from softprompt.analysis.curve import Curve, load_curve
from softprompt.answering.batch import (
    ANSWERED_TOGETHER,
    draw_seed,
    front_of,
    generate_batch,
    kind_of,
    limit_of,
    new_token_budget,
    text_of,
)
from softprompt.base.device import resolve_device
from softprompt.base.loading import Base, require_known_ids
from softprompt.config.command_line import nearest_option
from softprompt.config.commands import DEFAULT_PROMPT_FILE, Hardware, Sampling, TrainConfig
from softprompt.config.options import require_types
from softprompt.data.reading import Data
from softprompt.data.row import Row
from softprompt.distillation.inputs import load_all_inputs
from softprompt.engine.front import Front
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import Diverged, Interrupted, UserError
from softprompt.packs.batches import plan_batches
from softprompt.prompt.bank import BankedPrompt, PromptBank
from softprompt.prompt.file import PromptFile, load_prompt, prompt_bytes
from softprompt.prompt.fit import load_prompt_base, require_room
from softprompt.system.files import check_output_file, write_atomic
from softprompt.system.process import quiet_libraries
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.tokens.encoding import Encoder
from softprompt.training.report import BarReport, Report
from softprompt.training.run import DATA, IN_MEMORY, note_run, options_of_run, prepare_run
from softprompt.training.run_folder import reserved_run
from softprompt.training.selection import Losses, Result

COMMAND_ONLY = ("eval_generate", "verbose")  # options of the command that only print


class LoadedPrompt:
    """A trained prompt on its base, ready to answer questions.

    Attributes:
        model: `SoftPromptModel`, the base with the prompt in front.
        tokenizer: `PreTrainedTokenizerBase`, the tokenizer of the base.
        prompt: `SoftPromptEmbedding`, whose `weight` is the tensor `[P, H]`.
        metadata: `dict[str, str]`, the metadata of the prompt file.
    """

    def __init__(self, model: SoftPromptModel, base: Base, file: PromptFile, encoder: Encoder) -> None:
        self.model, self.tokenizer, self.prompt, self.metadata = model, base.tokenizer, model.soft_prompt, file.metadata
        self._base, self._encoder = base, encoder

    @property
    def device(self) -> torch.device:
        """The device on which the base runs."""
        return self.model.device

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the base, as transformers has it."""
        return self.model.config

    @overload
    def answer(self, question: str, *, seed: int | None = None, **sampling: Any) -> str: ...

    @overload
    def answer(self, question: Sequence[str], *, seed: int | None = None, **sampling: Any) -> list[str]: ...

    def answer(self, question: str | Sequence[str], *, seed: int | None = None, **sampling: Any) -> str | list[str]:
        """Answer one question, or several in batches of questions of similar length.

        Args:
            question: one text or several. The template that the prompt was trained with is put around each.
            seed: seed of the sampling, an int; None draws one.
            sampling: options of the command `generate`, such as `max_new_tokens`, `do_sample` and `temperature`.
                Without a length, an answer has at most 128 tokens; under the tutorial's template, its question counts
                as well.

        Returns:
            The text of the answer; for several questions, a list of texts in the same order.

        Raises:
            UserError: an option does not exist, a value is refused, a question leaves no room for an answer, or it
                has ids that the base has no embedding for.
        """
        if isinstance(question, str):
            return self.answer([question], seed=seed, **sampling)[0]
        settings = _settings_of(question, seed, sampling)
        ids = self._encoder.questions([Row.asked(text) for text in question])
        asked = [_Asked(self._encoder, each, self.model.front) for each in ids]
        return _answers(self.model, self._base, asked, settings, seed, mixed=False)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **generation_kwargs: Any) -> Tensor:
        """Call `SoftPromptModel.generate`, which takes the arguments of transformers' `generate`.

        Args:
            input_ids: int64 `[B, T]`, the text without the virtual tokens.
            attention_mask: `[B, T]`; None means that no id is a pad.

        Returns:
            int64 `[B, T + new]`: `input_ids` followed by the new ids.
        """
        return self.model.generate(input_ids, attention_mask, **generation_kwargs)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write the prompt file, which `load` and the commands read, to `path` and return the path.

        Args:
            path: where to write; missing folders are made.
            overwrite: whether an existing file may be replaced.

        Raises:
            UserError: a file is there and `overwrite` is false, or `path` is no place for a file.
            OSError: the file cannot be written, for instance on a full disk; what was there is then unchanged.
        """
        path = Path(_path(path, "path"))
        check_output_file(path, option="path", replace=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, prompt_bytes(self.prompt, self.metadata))
        return path


class LoadedPrompts:
    """Several trained prompts on one base. Questions of different prompts share a batch.

    Attributes:
        names: `list[str]`, the prompt files as they were given to `load`.
        model: `SoftPromptModel`, the base with the first prompt in front.
        tokenizer: `PreTrainedTokenizerBase`, the tokenizer of the base.
    """

    def __init__(self, base: Base, prompts: Sequence[BankedPrompt]) -> None:
        self._base, self._prompts = base, {prompt.name: prompt for prompt in prompts}
        self.names, self.tokenizer = list(self._prompts), base.tokenizer
        self.model = self[0].model

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.names)

    def __getitem__(self, prompt: str | int) -> LoadedPrompt:
        """One of the prompts alone, by its name or its place.

        Raises:
            UserError: there is no such prompt.
        """
        found = self._of(prompt)
        model = SoftPromptModel(self._base.model, found.prompt, found.encoder.before_ids, found.encoder.after_ids)
        return LoadedPrompt(model, self._base, found.file, found.encoder)

    def answer(
        self,
        question: Sequence[str],
        *,
        prompts: Sequence[str | int | None],
        seed: int | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Answer questions in batches, each with a prompt of its own; a greedy answer is that of the prompt alone.

        Args:
            question: the texts. The template that its prompt was trained with is put around each.
            prompts: for every question the name or the place of its prompt, or None for the base without a prompt.
            seed, sampling: as in `LoadedPrompt.answer`.

        Returns:
            The texts of the answers in the order of the questions.

        Raises:
            UserError: as `LoadedPrompt.answer`; or there is no such prompt, or not one for each question.
        """
        settings = _settings_of(question, seed, sampling)
        if isinstance(question, str) or len(prompts) != len(question):
            raise UserError("`prompts`: give one for each question of a list of questions")
        asked = []
        for text, prompt in zip(question, prompts, strict=True):
            encoder = self._of(0).encoder.baseline if prompt is None else self._of(prompt).encoder
            (ids,) = encoder.questions([Row.asked(text)])
            asked.append(_Asked(encoder, ids, self._front(prompt)))
        return _answers(self.model, self._base, asked, settings, seed, mixed=True)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompts: Sequence[str | int | None],
        **generation_kwargs: Any,
    ) -> Tensor:
        """Call `SoftPromptModel.generate` with a prompt for each row, by its name or its place; None is the base alone.

        Shapes are as in `LoadedPrompt.generate`.
        """
        fronts = [self._front(prompt) for prompt in prompts]
        return self.model.generate(input_ids, attention_mask, prompts=fronts, **generation_kwargs)

    def _of(self, prompt: str | int) -> BankedPrompt:
        if isinstance(prompt, int) and 0 <= prompt < len(self.names):
            prompt = self.names[prompt]
        if not isinstance(prompt, str) or prompt not in self._prompts:
            raise UserError(f"`prompts` {prompt!r}: no such prompt; there are {', '.join(self.names)}")
        return self._prompts[prompt]

    def _front(self, prompt: str | int | None) -> Front:
        return Front() if prompt is None else front_of(self._of(prompt))


class TrainedPrompt(LoadedPrompt):
    """What `train` returns: a prompt that answers questions, and the record of its training.

    Attributes:
        result: `Result`, the held-out and test losses and the step of the prompt that was kept.
        curve: `Curve`, the losses over the steps; None if there are none.
        rows: `EncodedSplits`, the rows that were used, and which were left out.
        file: `Path` of the prompt file; None if `train` was called without `prompt_file`. If another file came to that
            place during the run, it is a free name beside it.
    """

    def __init__(
        self, model: SoftPromptModel, base: Base, name: str, *, result: Result, curve: Curve | None, rows: EncodedSplits
    ) -> None:
        super().__init__(model, base, load_prompt(name), rows.encoder)
        self.result, self.curve, self.rows = result, curve, rows
        self.file: Path | None = Path(name)

    @property
    def losses(self) -> Losses:
        """Losses on the held-out rows, in nats per supervised token.

        They are `without_prompt`, `initial_prompt` and `trained_prompt`; each is None if there are no held-out rows.
        """
        return self.result.held_out

    @property
    def test_losses(self) -> Losses:
        """The same on the test rows, which neither trained nor chose the prompt; `initial_prompt` is not measured."""
        return self.result.test


def train(
    data: Data | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    virtual_tokens: int | None = None,
    *,
    prompt_file: str | os.PathLike | None = None,
    eval_data: Data | os.PathLike | None = None,
    test_data: Data | os.PathLike | None = None,
    progress: bool = True,
    **options: Any,
) -> TrainedPrompt:
    """Train a prompt on a frozen base, as the command `train` does.

    Args:
        data: the rows to train on: a file, a folder, a hub id or a `builtin:...` name; or a list of dicts with
            `instruction`, `output` and optionally `input`; or a `datasets.Dataset` or `DatasetDict`. The default is
            the data that ships with softprompt or, with `resume`, the data of the run.
        model: the frozen base: a folder, a hub id or a `builtin:...` name. The default is as for `data`.
        virtual_tokens: number of virtual tokens P. The default is the token count of the init text.
        prompt_file: where the prompt file is written; the run folder is put beside it. Without it, the run folder is
            temporary and is deleted with the returned object; `.save(path)` keeps the prompt.
        eval_data, test_data: held-out rows, which choose the prompt, and rows that only report; given like `data`.
        progress: whether tqdm shows a progress bar, in a terminal or a notebook.
        options: every other option of the command by its name, as `max_steps=100`, `optim="adamw"`, `resume=True`; but
            for `eval_generate` and `verbose`, which only print.

    Raises:
        UserError: the input is wrong; the message names the option. `Diverged`, a subclass, says that the loss, the
            gradient or the prompt is no longer finite.
        Interrupted: SIGINT, SIGTERM or SIGHUP stopped the run; it is a `KeyboardInterrupt`. With a `prompt_file`, the
            last whole step is saved, and `resume=True` continues from it.
    """
    named = {"data": data, "eval_data": eval_data, "test_data": test_data, "model": model}
    named |= {"virtual_tokens": virtual_tokens}
    named = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in named.items()
        if value is not None
    }
    in_memory = {name: named[name] for name in DATA if name in named and not isinstance(named[name], str)}
    given = named | dict.fromkeys(in_memory, IN_MEMORY) | options
    if prompt_file is not None:
        return _train(given | {"prompt_file": _path(prompt_file, "prompt_file")}, in_memory, progress)
    if given.get("resume"):
        raise UserError("`resume`: name the `prompt_file` of the run; without one, nothing of a run is kept")
    temporary = tempfile.mkdtemp(prefix="softprompt-")
    try:
        given["prompt_file"] = os.path.join(temporary, DEFAULT_PROMPT_FILE)
        trained = _train(given, in_memory, progress)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, Interrupted):  # its message names a checkpoint that was just deleted
            raise Interrupted(error.signum, "stopped; without a `prompt_file` nothing is kept") from None
        if isinstance(error, Diverged):  # likewise
            raise Diverged(error.cause) from None
        raise
    trained.file = None
    weakref.finalize(trained, shutil.rmtree, temporary, ignore_errors=True)
    return trained


@overload
def load(
    prompt_file: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_other_base: bool = False,
) -> LoadedPrompt: ...


@overload
def load(
    prompt_file: list[str] | list[os.PathLike] | tuple[str | os.PathLike, ...],
    *,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_other_base: bool = False,
) -> LoadedPrompts: ...


def load(
    prompt_file: str | os.PathLike | list[str] | list[os.PathLike] | tuple[str | os.PathLike, ...],
    *,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_other_base: bool = False,
) -> LoadedPrompt | LoadedPrompts:
    """Load a prompt file together with the base that it was trained on; or several files on one base.

    Args:
        prompt_file: path of a file that `train`, `LoadedPrompt.save` or a command wrote; or an adapter of PEFT, as a
            folder or a hub id, which needs `model`; or a list of such names, of which the first says what the base is.
        model: the base to run the prompt on: a folder, a hub id or a `builtin:...` name; None takes the one that the
            file names.
        device: cpu, cuda, cuda:N or auto.
        precision: fp32, bf16, fp16 or auto, for the base; the prompt stays fp32.
        allow_other_base: whether to accept a base that the prompt was not trained on.

    Raises:
        UserError: the file or the base is missing or cannot be read, they do not belong together, or the device or
            the precision is not available.
    """
    given = list(prompt_file) if isinstance(prompt_file, list | tuple) else [prompt_file]
    names = [_path(each, "prompt_file") for each in given]
    if not names:
        raise UserError("`prompt_file`: the list is empty; name at least one file")
    hardware = _options(Hardware, {"device": device, "precision": precision})
    model = None if model is None else _path(model, "model")
    first = load_prompt(names[0])
    place = resolve_device(hardware.device)
    with _torch_as_it_was(place), quiet_libraries():
        base = load_prompt_base(
            first.facts, prompt_file=names[0], model=model, device=place, precision=hardware.precision
        )
    bank = PromptBank(base, allow_other=allow_other_base)
    prompts = LoadedPrompts(base, [bank.load(name) for name in names])
    return prompts if isinstance(prompt_file, list | tuple) else prompts[0]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question: how it was written, its ids, and what stands in front of them."""

    encoder: Encoder
    ids: list[int]
    front: Front

    def check(self, base: Base, settings: Sampling) -> None:
        """Raise `UserError` if the base has no embedding for an id, or no room in its context for an answer."""
        require_known_ids(base, self.ids)
        tokens = len(self.ids) + new_token_budget(settings, len(self.ids), self.encoder)
        require_room(base.model, len(self.front), tokens, option=limit_of(settings, self.encoder))


def _settings_of(question: object, seed: object, sampling: dict[str, Any]) -> Sampling:
    """Return the options of `answer`; raises `UserError` if an argument of it is refused."""
    if not isinstance(question, Sequence) or not all(isinstance(text, str) for text in question):
        raise UserError(f"`question` {question!r}: must be text, or a list of texts")
    if not isinstance(seed, int | None) or isinstance(seed, bool):
        raise UserError(f"`seed` {seed!r}: must be int, not {type(seed).__name__}")
    settings: Sampling = _options(Sampling, sampling)
    if settings.num_return_sequences != 1:
        raise UserError("`num_return_sequences`: `answer` gives one answer to each question; ask it several times")
    return settings


def _answers(
    model: SoftPromptModel, base: Base, asked: Sequence[_Asked], settings: Sampling, seed: int | None, *, mixed: bool
) -> list[str]:
    """Answer questions in batches of similar length, whose answers end alike; `mixed` if their fronts differ."""
    for each in asked:
        each.check(base, settings)
    seed = draw_seed() if seed is None else seed
    answers: dict[int, str] = {}
    # the caller's random state is left alone
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quiet_libraries():
        for kind in dict.fromkeys(kind_of(each.encoder) for each in asked):
            alike = [place for place, each in enumerate(asked) if kind_of(each.encoder) == kind]
            for batch in plan_batches([len(asked[place].ids) for place in alike], ANSWERED_TOGETHER):
                places = [alike[place] for place in batch]
                torch.manual_seed((seed + places[0]) % 2**63)
                encoder, fronts = asked[places[0]].encoder, [asked[place].front for place in places]
                questions = [asked[place].ids for place in places]
                batch_answers = generate_batch(
                    model, encoder, settings, questions=questions, fronts=fronts if mixed else None
                )
                answers |= {p: text_of(ids, asked[p].encoder) for p, (ids,) in zip(places, batch_answers, strict=True)}
    return [answers[place] for place in range(len(asked))]


def _train(given: dict[str, Any], in_memory: dict[str, Any], progress: bool) -> TrainedPrompt:
    """Train from options; `in_memory` holds the data that was given as rows and not by a name."""
    _options(TrainConfig, given)
    for name in COMMAND_ONLY:
        if given.get(name):
            raise UserError(f"`{name}`: only the command prints; ask the object that `train` returns")
    config = TrainConfig(**options_of_run(given))
    report = BarReport() if progress else Report()
    with reserved_run(config, report.say) as replaces, _torch_as_it_was(resolve_device(config.device)):
        with quiet_libraries():
            config, base, rows, objective = load_all_inputs(config, in_memory)
        trainer = prepare_run(config, base, rows, report, objective)
        trainer.replaces = replaces
        note_run(trainer)
        result = trainer.run()
    file = str(trainer.written)
    curve = load_curve(file, str(config.run_folder), load_prompt(file).facts.training)
    return TrainedPrompt(trainer.model, base, file, result=result, curve=curve, rows=rows)


def _options(config_class: type, given: dict[str, Any]) -> Any:
    """Make a command's options from keyword arguments.

    Raises:
        UserError: an option does not exist, or its value is refused; the message suggests an option of similar name.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name in given:
        if name not in fields:
            meant = nearest_option(name, list(fields))
            raise UserError(f"{name}: no such option" + (f"; did you mean `{meant}`?" if meant else ""))
    require_types(config_class, given)
    for name, value in given.items():
        choices = fields[name].metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"`{name}` {value!r}: must be one of {', '.join(choices)}")
    return config_class(**given)


def _path(value: object, option: str) -> str:
    """Return a path as text, with a leading `~` expanded.

    Raises:
        UserError: `value` is not a path; the message names `option`.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"`{option}` {value!r}: must be a path, not {type(value).__name__}")
    return os.path.expanduser(os.fspath(value))


@contextlib.contextmanager
def _torch_as_it_was(device: torch.device) -> Iterator[None]:
    """Restore the caller's random states and thread count after the block, in which a resumed run sets its own."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
