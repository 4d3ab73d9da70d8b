"""Train a prompt and use one from Python: `train` and `load`, which take the options of the commands by their names.

Nothing is printed here, no process ends, and wrong input is a `UserError`.
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
from softprompt.answering.batch import draw_seed, generate_batch, new_token_budget, text_of
from softprompt.base.device import resolve_device
from softprompt.base.loading import Base, require_known_ids
from softprompt.config.command_line import nearest_option
from softprompt.config.commands import DEFAULT_PROMPT_FILE, Hardware, Sampling, TrainConfig
from softprompt.config.options import require_types
from softprompt.data.encoding import encode_text
from softprompt.data.reading import Data
from softprompt.data.splits import EncodedSplits
from softprompt.data.template import template_named
from softprompt.engine.batches import plan_batches
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import Interrupted, UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import PromptFile, load_prompt, prompt_bytes
from softprompt.prompt.fit import check_same_base, load_prompt_base, require_room
from softprompt.system.files import check_output_file, write_atomic
from softprompt.system.process import quiet_libraries
from softprompt.training.checkpoint import check_outputs
from softprompt.training.report import BarReport, Report
from softprompt.training.run import DATA, IN_MEMORY, load_inputs, note_run, options_of_run, prepare_run
from softprompt.training.selection import Losses, Result

ANSWERED_TOGETHER = 8  # questions of one batch


class LoadedPrompt:
    """A prompt on its base, ready to answer.

    Attributes:
        model: the base with the prompt in front, a `SoftPromptModel`.
        tokenizer: the base's.
        prompt: the `SoftPromptEmbedding`.
        metadata: what the prompt file says, by its keys.
    """

    def __init__(self, model: SoftPromptModel, base: Base, file: PromptFile, name: str) -> None:
        self.model, self.tokenizer, self.prompt, self.metadata = model, base.tokenizer, model.soft_prompt, file.metadata
        self._base, self._template = base, template_named(file.facts.template, prompt_file=name)

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.model.device

    @property
    def config(self) -> PretrainedConfig:
        """The base's config."""
        return self.model.config

    @overload
    def answer(self, question: str, *, seed: int | None = None, **sampling: Any) -> str: ...

    @overload
    def answer(self, question: Sequence[str], *, seed: int | None = None, **sampling: Any) -> list[str]: ...

    def answer(self, question: str | Sequence[str], *, seed: int | None = None, **sampling: Any) -> str | list[str]:
        """Answer a question, or several in batches of rows of like length.

        Args:
            question: text, or texts; the template that the prompt was trained with is put around each.
            seed: of the sampling; drawn where it is not given.
            sampling: `max_new_tokens`, `do_sample`, `temperature` and the like, as `generate` has them. Without a
                length, a question and its answer have 128 text tokens together.

        Returns:
            The text of the answer, or a list in the order of the questions.

        Raises:
            UserError: an option that is not there, or a question that leaves no room for an answer.
        """
        if isinstance(question, str):
            return self.answer([question], seed=seed, **sampling)[0]
        if not isinstance(question, Sequence) or not all(isinstance(text, str) for text in question):
            raise UserError(f"`question` {question!r}: must be text, or a list of texts")
        if not isinstance(seed, int | None) or isinstance(seed, bool):
            raise UserError(f"`seed` {seed!r}: must be int, not {type(seed).__name__}")
        settings = _options(Sampling, sampling)
        if settings.num_return_sequences != 1:
            raise UserError("`num_return_sequences`: `answer` gives one answer to each question; ask it several times")
        questions = [encode_text(self._template.question(text), self.tokenizer) for text in question]
        self._check(questions, settings)
        seed = draw_seed() if seed is None else seed
        answers: dict[int, str] = {}
        # the caller's random state is left alone
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), quiet_libraries():
            for places in plan_batches([len(ids) for ids in questions], ANSWERED_TOGETHER):
                torch.manual_seed((seed + places[0]) % 2**63)
                batch = generate_batch(
                    self.model, self.tokenizer, settings, questions=[questions[place] for place in places]
                )
                answers |= {place: text_of(ids, self.tokenizer) for place, (ids,) in zip(places, batch, strict=True)}
        return [answers[place] for place in range(len(questions))]

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **generation_kwargs: Any) -> Tensor:
        """`SoftPromptModel.generate`: ids `[B, T]` to ids `[B, T + new]`, with transformers' arguments."""
        return self.model.generate(input_ids, attention_mask, **generation_kwargs)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write the prompt to `path`, which `generate` and `load` take; returns the path.

        Raises:
            UserError: something is there and `overwrite` is false, or nothing can be written there.
        """
        path = Path(_path(path, "path"))
        check_output_file(path, option="path", replace=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, prompt_bytes(self.prompt, self.metadata))
        return path

    def _check(self, questions: Sequence[list[int]], settings: Sampling) -> None:
        """Raise `UserError` for ids that the base does not know, or questions and answers that leave its context."""
        require_known_ids(self._base, (id for ids in questions for id in ids))
        limit = "max_new_tokens" if settings.max_new_tokens else "max_length"
        for ids in questions:
            tokens = len(ids) + new_token_budget(settings, len(ids))
            require_room(self._base.model, self.prompt.num_virtual_tokens, tokens, option=limit)


class TrainedPrompt(LoadedPrompt):
    """What `train` returns: a prompt that answers, and how it came about.

    Attributes:
        result: the held-out and test losses, and the step of the prompt that was kept.
        curve: losses over steps.
        rows: the rows that were used, and which were left out.
        file: the prompt file, or None if the run was to keep none.
    """

    def __init__(
        self, model: SoftPromptModel, base: Base, name: str, *, result: Result, curve: Curve | None, rows: EncodedSplits
    ) -> None:
        super().__init__(model, base, load_prompt(name), name)
        self.result, self.curve, self.rows = result, curve, rows
        self.file: Path | None = Path(name)

    @property
    def losses(self) -> Losses:
        """Held-out losses per supervised token: without a prompt, with the initial and with the trained one."""
        return self.result.held_out

    @property
    def test_losses(self) -> Losses:
        """The same on rows that chose nothing."""
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
    """Train a prompt.

    Args:
        data: a file, a folder, a hub id or what ships as `builtin:...`; or a list of dicts with `instruction`, `output`
            and perhaps `input`; or a data set of `datasets`. By default what ships, or with `resume` the run's own.
        model: the frozen base: a folder, a hub id or `builtin:...`; by default as for `data`.
        virtual_tokens: P; by default the token count of the init text.
        prompt_file: where the prompt is kept, with its run folder beside it, as the command does. Without it the run
            lives in a temporary folder that goes with the object returned, and `.save(path)` keeps the prompt.
        eval_data, test_data: held-out rows and rows for a last figure, as `data`.
        progress: show a bar, as tqdm draws it in a terminal or a notebook.
        options: every other option of the command, by its name: `max_steps=100`, `optim="adamw"`, `resume=True`.

    Raises:
        UserError: wrong input, named by its option; `Diverged`, which is one, if the loss is no longer finite.
        Interrupted: a KeyboardInterrupt; with a `prompt_file`, the last whole step is saved and `resume=True` goes on.
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
        if isinstance(error, Interrupted):  # what it says was saved has gone
            raise Interrupted(error.signum, "stopped; without a `prompt_file` nothing is kept") from None
        raise
    trained.file = None
    weakref.finalize(trained, shutil.rmtree, temporary, ignore_errors=True)
    return trained


def load(
    prompt_file: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_other_base: bool = False,
) -> LoadedPrompt:
    """Load a prompt file and the base that it was made for.

    Args:
        model: the base to run it on; by default the one that the file names.
        device: cpu, cuda, cuda:N or auto.
        precision: fp32, bf16, fp16 or auto.
        allow_other_base: accept a base that the prompt was not trained on.

    Raises:
        UserError: the file or the base is not there or cannot be read, or they do not belong together.
    """
    name = _path(prompt_file, "prompt_file")
    hardware = _options(Hardware, {"device": device, "precision": precision})
    model = None if model is None else _path(model, "model")
    file = load_prompt(name)
    place = resolve_device(hardware.device)
    with _torch_as_it_was(place), quiet_libraries():
        base = load_prompt_base(file.facts, prompt_file=name, model=model, device=place, precision=hardware.precision)
    check_same_base(file, base, prompt_file=name, allow_other=allow_other_base)
    return LoadedPrompt(SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(file.weight)), base, file, name)


def _train(given: dict[str, Any], in_memory: dict[str, Any], progress: bool) -> TrainedPrompt:
    """A run from options; `in_memory` holds the rows that are no names."""
    _options(TrainConfig, given)
    config = TrainConfig(**options_of_run(given))
    check_outputs(config)
    with _torch_as_it_was(resolve_device(config.device)):
        with quiet_libraries():
            base, rows = load_inputs(config, in_memory)
        trainer = prepare_run(config, base, rows, BarReport() if progress else Report())
        note_run(trainer)
        result = trainer.run()
    training = load_prompt(config.prompt_file).facts.training
    curve = load_curve(config.prompt_file, config.run_dir, training)
    return TrainedPrompt(trainer.model, base, config.prompt_file, result=result, curve=curve, rows=rows)


def _options(config_class: type, given: dict[str, Any]) -> Any:
    """A command's options from keyword arguments.

    Raises:
        UserError: one that is not there, with the one that was meant if there is one like it, or a value refused.
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
    """A path as text, with its `~` expanded.

    Raises:
        UserError: it is no path, with the option that it was given for.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"`{option}` {value!r}: must be a path, not {type(value).__name__}")
    return os.path.expanduser(os.fspath(value))


@contextlib.contextmanager
def _torch_as_it_was(device: torch.device) -> Iterator[None]:
    """Random states and thread count of the caller are the same after the block; a run that goes on sets its own."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
