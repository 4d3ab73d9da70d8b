"""How a run is assembled, from options, base and rows to a `Trainer`, and what its run folder records of it.

`config.json` in the run folder holds every option, the versions of the packages and the fingerprints. With it, `resume`
needs only the name of the prompt file, and `evaluate` finds the rows that a prompt was not trained on.
"""

import datetime
import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.base.device import resolve_device
from softprompt.base.fingerprint import tokenizer_identity
from softprompt.base.known import remember_base
from softprompt.base.loading import Base, load_base, require_known_ids
from softprompt.config.commands import SweepConfig, TrainConfig
from softprompt.config.options import decisive, require_types
from softprompt.data.reading import Data
from softprompt.data.splits import load_splits
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import UserError
from softprompt.prompt.encoder import encoder_for, metadata_of
from softprompt.prompt.fit import require_room
from softprompt.prompt.start import initial_prompt
from softprompt.system import sources
from softprompt.system.files import write_atomic
from softprompt.system.foreign import decode_json
from softprompt.tokens.encoded_splits import EncodedSplits, encode_splits
from softprompt.tokens.row_cache import RowCache
from softprompt.tokens.template import ASKED_NAMES as TEMPLATE_NAMES
from softprompt.training.checkpoint import STATE_NAME, checkpoints, load_checkpoint, remove_checkpoint, step_of
from softprompt.training.objective import Objective
from softprompt.training.recipe import require_same_options
from softprompt.training.report import Report
from softprompt.training.run_folder import CONFIG_KIND, CONFIG_NAME, RECIPE_NAME
from softprompt.training.state_file import Damaged
from softprompt.training.trainer import Trainer

PACKAGES = ("torch", "transformers", "datasets", "safetensors", "tqdm")
IN_MEMORY = ""  # stands for the name of data that was given as rows in memory
DATA = ("data", "eval_data", "test_data")
# options of how the rows are read and drawn, which `load_splits` takes by these names
HOW_TO_READ = ("eval_fraction", "seed", "columns", "data_config", "data_split", "max_train_rows")
PATHS = (*DATA, "init_from", "template", "distill_text", "distill_replay")  # options that name input files
BASE = ("base", "base_revision", "base_sha256")  # the keys of the prompt file's metadata that name the base
LENGTHS = ("max_steps", "num_train_epochs")  # options that determine the number of steps


@dataclass(frozen=True)
class RunFacts:
    """The content of a run folder's `config.json`: options (`virtual_tokens` is never None), versions, fingerprints.

    `template_date` is the day that a chat template was given which asks for the date.
    """

    options: dict[str, Any]
    versions: dict[str, str]
    base: dict[str, str]
    data_sha256: str
    template_date: str = ""


def load_inputs(
    config: TrainConfig | SweepConfig, in_memory: Mapping[str, Data] | None = None
) -> tuple[Base, EncodedSplits]:
    """Load the base that the options name, and encode their rows with its tokenizer.

    Args:
        in_memory: data given as rows, by the name of the option that it replaces.

    Raises:
        UserError: the device, the data or the base is missing or cannot be read.
    """
    device = resolve_device(config.device)
    named: dict[str, Any] = {name: getattr(config, name) for name in DATA} | dict(in_memory or {})
    how = {name: getattr(config, name) for name in HOW_TO_READ}
    load = functools.cache(lambda: load_splits(**named, **how))
    cache = RowCache.of(named, how)
    known = None if cache is None else cache.kinds()
    kinds = known or load().kinds  # rows that are not known are read before the base, since they may be wrong
    base = load_base(config.model, device=device, precision=config.precision)
    encoder = encoder_for(
        base,
        kinds,
        template=config.template,
        system=config.system,
        last_turn_only=config.last_turn_only,
        placement=config.placement,
        date=date_of_run(config),
    )
    if cache is None:
        return base, encode_splits(load(), encoder, max_length=config.max_length)
    way = [tokenizer_identity(base.tokenizer), metadata_of(encoder)]
    return base, cache.encoded(load, encoder, way, max_length=config.max_length)


def prepare_run(
    config: TrainConfig,
    base: Base,
    rows: EncodedSplits,
    report: Report | None = None,
    objective: Objective | None = None,
) -> Trainer:
    """Assemble a run; with `resume`, restore the last checkpoint of its run folder that can be used.

    Args:
        objective: what the steps minimise; None is the cross-entropy.

    Raises:
        UserError: there are no rows to train on, the prompt or the rows do not fit the base, an option would have no
            effect, or the checkpoint is of another run.
    """
    trainer = _assemble(config, base, rows, report, objective)
    if config.resume:
        _restore_last([trainer])
    return trainer


def prepare_lanes(
    configs: Sequence[TrainConfig],
    base: Base,
    rows: EncodedSplits,
    reports: Sequence[Report],
    objective: Objective | None = None,
) -> list[Trainer]:
    """Assemble runs that take their steps together, for `run_lanes`; all or none of them have `resume`.

    With `resume` all go on from the last step of which every one has a checkpoint, and start anew if there is none. So
    a lane has the same lanes beside it in every step, and with them the same roundings.

    Raises:
        UserError: as `prepare_run`.
    """
    pairs = zip(configs, reports, strict=True)
    lanes = [_assemble(config, base, rows, report, objective) for config, report in pairs]
    if any(config.resume for config in configs):
        _restore_last(lanes)
    return lanes


def _assemble(
    config: TrainConfig,
    base: Base,
    rows: EncodedSplits,
    report: Report | None = None,
    objective: Objective | None = None,
) -> Trainer:
    """Make a trainer that has taken no step."""
    _require_rows(config, rows)
    require_known_ids(base, [rows.largest_id])
    # checked first with the option alone, before a prompt of that many virtual tokens is made
    require_room(base.model, config.virtual_tokens or 0, rows.longest, option="max_length")
    prompt = initial_prompt(config, base, rows.train_rows, objective.text_ids if objective else ())
    model = SoftPromptModel(base.model, prompt, rows.encoder.before_ids, rows.encoder.after_ids)
    require_room(base.model, len(model.front), rows.longest, option="max_length")
    trainer = Trainer(model, base, rows, config, report, objective)
    remember_base(base.name, base.revision, base.fingerprint.sha256)
    return trainer


def _restore_last(lanes: Sequence[Trainer]) -> None:
    """Restore the last step of which all lanes have a checkpoint that can be used; report those that cannot.

    If there is no such step, what checkpoints there are go, and nothing is restored.

    Raises:
        UserError: there are checkpoints of such a step and none can be used, or they are of another run.
    """
    found = [{step_of(path): path for path in checkpoints(lane.config.run_folder)} for lane in lanes]
    common, damaged = set(found[0]).intersection(*found), list[str]()
    for step in sorted(common, reverse=True):
        if all(_restored(lane, paths[step], damaged) for lane, paths in zip(lanes, found, strict=True)):
            for line in damaged:
                lanes[0].report.say(f"warning: {line}; the checkpoint before it is used")
            for lane, paths in zip(lanes, found, strict=True):
                lane.report.say(f"resumed from {paths[step]}")
            return
    if damaged:
        raise UserError(f"`resume`: {damaged[0]}, and no checkpoint before it can be used; start anew with `overwrite`")
    for paths in found:
        for path in paths.values():
            remove_checkpoint(path)


def _restored(lane: Trainer, checkpoint: Path, damaged: list[str]) -> bool:
    """Restore a checkpoint and return true, or add to `damaged` why it cannot be used."""
    try:
        lane.restore(load_checkpoint(checkpoint, lane.layout(), lane.recipe.require_same))
    except Damaged as error:
        damaged.append(f"{checkpoint / STATE_NAME}: {error}")
        return False
    return True


def note_run(trainer: Trainer) -> None:
    """Open the run folder and write `config.json` into it, which is done before the first step."""
    config, folder = trainer.config, trainer.open_folder()
    # `resume` and `overwrite` belong to the process and not to the run, so a resumed run writes the same file
    options = vars(config) | {"virtual_tokens": len(trainer.weight), "resume": False, "overwrite": False}
    for name in PATHS:  # absolute, since the next command may run in another folder
        value = options[name]
        named = name == "template" and value in TEMPLATE_NAMES  # a file of such a name does not count
        if value and not named and sources.is_path(value) and not sources.is_builtin(value):
            options[name] = str(sources.local_path(value, name).resolve())
    content = {
        "kind": CONFIG_KIND,
        "options": options,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "base": {name: trainer.base.metadata[name] for name in BASE},
        "data_sha256": trainer.recipe.data_sha256,
        "template_date": trainer.rows.encoder.template.date,
    }
    write_atomic(folder / CONFIG_NAME, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_run(run_folder: Path) -> RunFacts | None:
    """Return what a run folder records of its run, or None if it holds no readable `config.json` of softprompt."""
    try:
        content = decode_json((run_folder / CONFIG_NAME).read_text("utf-8"))
        if content["kind"] != CONFIG_KIND:
            return None
        known = vars(TrainConfig())
        options = {name: value for name, value in content["options"].items() if name in known}
        require_types(TrainConfig, options)
        base = {name: str(content["base"][name]) for name in BASE}
        date = _day(content.get("template_date"))
        return RunFacts(
            vars(TrainConfig(**options)), dict(content["versions"]), base, str(content["data_sha256"]), date
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def date_of_run(config: TrainConfig | SweepConfig) -> str | None:
    """The day that the chat template of a resumed run or sweep was given when it started; None for a new one."""
    if not config.resume:
        return None
    if isinstance(config, TrainConfig):
        known = read_run(config.run_folder)
        return known.template_date or None if known else None
    try:
        return _day(decode_json((config.sweep_folder / RECIPE_NAME).read_text("utf-8")).get("template_date")) or None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _day(written: Any) -> str:
    """A date as YYYY-MM-DD, or "" if none was written; raises `ValueError` or `TypeError` for what is no date."""
    return datetime.date.fromisoformat(written).isoformat() if written else ""


def options_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run from those given; with `resume`, the run folder supplies those left out.

    Nothing is loaded for this, so an option that contradicts the run is refused at once.

    Raises:
        UserError: an option that determines the result is given and differs from the run's, or rows that were in
            memory are not given again.
    """
    config = TrainConfig(**given)
    known = read_run(config.run_folder) if config.resume else None
    if known is None:
        return dict(given)
    now = {name: value for name, value in decisive(config).items() if name in given}
    if "auto" in (config.precision, known.options["precision"]):
        now.pop("precision", None)  # what auto means is known, and compared, once the base is loaded
    _require_same_base_name(given, known)
    _require_same_length(known.options, now)
    require_same_options(known.options, now)
    for name in DATA:
        if known.options[name] == IN_MEMORY and name not in given:
            raise UserError(f"`resume`: the rows of `{name}` were in memory when this run started; give them again")
    kept = {name: value for name, value in known.options.items() if name not in ("prompt_file", "run_dir", "overwrite")}
    return kept | dict(given)


def _require_same_base_name(given: Mapping[str, Any], known: RunFacts) -> None:
    """Refuse a base of another name. A folder may have moved, so its weights are compared once they are loaded."""
    name, before = given.get("model"), known.base["base"]
    if name is None or name == before:
        return
    if all(sources.is_path(each) and not sources.is_builtin(each) for each in (name, before)):
        return
    raise UserError(f"`resume`: `model` was {before} when this run started and is {name} now; leave it out to go on")


def _require_same_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another number of steps, since the rate of every step was planned for the number at the start."""
    for name in LENGTHS:
        if name in now and now[name] != before[name]:
            was = "not given" if before[name] in (None, -1) else before[name]
            raise UserError(
                f"`resume`: `{name}` was {was} when this run started and is {now[name]} now, and its rates were planned"
                " for that; to train more steps, start another run from its prompt with `init_from`"
            )


def _require_rows(config: TrainConfig, rows: EncodedSplits) -> None:
    """Raise `UserError` if there are no rows to train on, or if an option would have no effect."""
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
