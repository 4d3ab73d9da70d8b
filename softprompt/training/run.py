"""A run assembled once: from options, base and rows to a `Trainer`, and what the run folder knows of it.

`config.json` in the run folder holds every option, the versions and the fingerprints, so that `resume` needs nothing
but the prompt file's name, and `evaluate` finds the rows that a prompt was not trained on.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.base.device import resolve_device
from softprompt.base.loading import Base, load_base, require_known_ids
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.config.options import decisive, require_types
from softprompt.data.reading import Data
from softprompt.data.splits import EncodedSplits, encode_splits, load_splits
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.prompt.fit import require_room
from softprompt.prompt.start import initial_prompt
from softprompt.system import sources
from softprompt.system.files import write_atomic
from softprompt.training.checkpoint import CONFIG_KIND, CONFIG_NAME, last_checkpoint, load_checkpoint
from softprompt.training.recipe import require_same_options
from softprompt.training.report import Report
from softprompt.training.trainer import Trainer

PACKAGES = ("torch", "transformers", "datasets", "safetensors", "tqdm")
IN_MEMORY = ""  # the name of data that has none
DATA = ("data", "eval_data", "test_data")
PATHS = (*DATA, "init_from")  # options that name files, besides those of the run itself
BASE = ("base", "base_revision", "base_sha256")  # what is noted of the base, from the prompt file's metadata
LENGTHS = ("max_steps", "num_train_epochs")


@dataclass(frozen=True)
class RunFacts:
    """What `config.json` of a run folder says: the options, with `virtual_tokens` as a number, and fingerprints."""

    options: dict[str, Any]
    versions: dict[str, str]
    base: dict[str, str]
    data_sha256: str


def load_inputs(
    config: TrainConfig | SweepConfig, in_memory: Mapping[str, Data] | None = None
) -> tuple[Base, EncodedSplits]:
    """The base that the options name, and their rows as its token ids.

    Args:
        in_memory: rows that are here already, by the option that they stand for.

    Raises:
        UserError: a device, data or a base that is not there or cannot be read.
    """
    device = resolve_device(config.device)
    named: dict[str, Any] = {name: getattr(config, name) for name in DATA} | dict(in_memory or {})
    splits = load_splits(**named, eval_fraction=config.eval_fraction, seed=config.seed)
    base = load_base(config.model, device=device, precision=config.precision)
    return base, encode_splits(splits, base.tokenizer, max_length=config.max_length)


def prepare_run(config: TrainConfig, base: Base, rows: EncodedSplits, report: Report | None = None) -> Trainer:
    """Assemble a run; with `resume`, go back to the last checkpoint of its run folder if there is one.

    Raises:
        UserError: nothing to train on, a prompt or rows that do not fit the base, an option that would do nothing, or
            a run folder of another recipe.
    """
    _require_rows(config, rows)
    require_known_ids(base, (id for row in rows.all_rows for id in row.input_ids))
    # before so many virtual tokens are made
    require_room(base.model, config.virtual_tokens or 0, rows.longest, option="max_length")
    prompt = initial_prompt(config, base, rows.train_rows)
    require_room(base.model, prompt.num_virtual_tokens, rows.longest, option="max_length")
    trainer = Trainer(SoftPromptModel(base.model, prompt), base, rows, config, report)
    checkpoint = last_checkpoint(config.run_folder) if config.resume else None
    if checkpoint is not None:
        trainer.restore(load_checkpoint(checkpoint))
        trainer.report.say(f"resumed from {checkpoint}")
    return trainer


def note_run(trainer: Trainer) -> None:
    """Write `config.json` into the run folder, before the first step."""
    config, folder = trainer.config, trainer.config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    # how a process began is nothing of the run, whose file is the same after a stop
    options = vars(config) | {"virtual_tokens": len(trainer.weight), "resume": False, "overwrite": False}
    for name in PATHS:  # whole, since the next command may be typed elsewhere
        value = options[name]
        if value and sources.is_path(value) and not sources.is_builtin(value):
            options[name] = str(sources.local_path(value, name).resolve())
    content = {
        "kind": CONFIG_KIND,
        "options": options,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "base": {name: trainer.base.metadata[name] for name in BASE},
        "data_sha256": trainer.recipe.data_sha256,
    }
    write_atomic(folder / CONFIG_NAME, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_run(run_folder: Path) -> RunFacts | None:
    """What a run folder knows of its run; None if it holds no readable `config.json` of ours."""
    try:
        content = json.loads((run_folder / CONFIG_NAME).read_text("utf-8"))
        if content["kind"] != CONFIG_KIND:
            return None
        known = vars(TrainConfig())
        options = {name: value for name, value in content["options"].items() if name in known}
        require_types(TrainConfig, options)
        base = {name: str(content["base"][name]) for name in BASE}
        return RunFacts(vars(TrainConfig(**options)), dict(content["versions"]), base, str(content["data_sha256"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def options_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run from those given; with `resume`, those left out are the run folder's.

    Nothing is loaded for this, so an option that contradicts the run is refused at once.

    Raises:
        UserError: an option that decides what is learnt is given and differs from the run's, or rows that were in
            memory are not given again.
    """
    config = TrainConfig(**given)
    known = read_run(config.run_folder) if config.resume else None
    if known is None:
        return dict(given)
    now = {name: value for name, value in decisive(config).items() if name in given}
    if "auto" in (config.precision, known.options["precision"]):
        now.pop("precision", None)  # what it stands for is compared once the base is loaded
    _require_same_base_name(given, known)
    _require_same_length(known.options, now)
    require_same_options(known.options, now)
    for name in DATA:
        if known.options[name] == IN_MEMORY and name not in given:
            raise UserError(f"`resume`: the rows of `{name}` were in memory when this run started; give them again")
    kept = {name: value for name, value in known.options.items() if name not in ("prompt_file", "run_dir", "overwrite")}
    return kept | dict(given)


def _require_same_base_name(given: Mapping[str, Any], known: RunFacts) -> None:
    """Refuse another base by its name. A folder may have moved, so its weights are compared once they are loaded."""
    name, before = given.get("model"), known.base["base"]
    if name is None or name == before:
        return
    if all(sources.is_path(each) and not sources.is_builtin(each) for each in (name, before)):
        return
    raise UserError(f"`resume`: `model` was {before} when this run started and is {name} now; leave it out to go on")


def _require_same_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another number of steps: the rate of every step, and its end at 0, was planned for the first one."""
    for name in LENGTHS:
        if name in now and now[name] != before[name]:
            was = "not given" if before[name] in (None, -1) else before[name]
            raise UserError(
                f"`resume`: `{name}` was {was} when this run started and is {now[name]} now, and its rates were planned"
                " for that; to train more steps, start another run from its prompt with `init_from`"
            )


def _require_rows(config: TrainConfig, rows: EncodedSplits) -> None:
    """Raise `UserError` if there is nothing to train on, or for an option that would do nothing."""
    if not rows.train_rows:
        name = f"`data` {config.data}" if config.data else "`data`"
        raise UserError(f"{name}: no row has a response within `max_length` {config.max_length}")
    for name, split in (("eval_data", rows.held_out), ("test_data", rows.test)):
        if getattr(config, name) is not None and not split.rows:
            raise UserError(
                f"`{name}` {getattr(config, name)}: no row is left to score: {len(split.skipped)} have no response"
                f" within `max_length` {config.max_length}, {split.copies} are rows of another split"
            )
    for name in ("early_stopping_patience", "eval_steps", "save_last", "eval_generate"):
        scored = rows.eval_rows or (name == "eval_generate" and rows.test_rows)
        if getattr(config, name) and not scored:
            raise UserError(f"`{name}`: there are no held-out rows to look at; give `eval_data`")
