"""The loss of a training run over its steps, read from `metrics.jsonl` or, without it, from the prompt file.

Nothing is drawn here.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.config.commands import run_folder_of
from softprompt.errors import UserError
from softprompt.prompt.file import is_count
from softprompt.training.run_log import INITIAL, METRICS_NAME, NO_PROMPT, read_records


@dataclass(frozen=True)
class Point:
    """A loss after `step` steps; `supervised_tokens` were seen until then (None: not known)."""

    step: int
    loss: float
    supervised_tokens: float | None = None


@dataclass(frozen=True)
class Curve:
    """Loss per supervised token: windows of training steps, and the held-out rows. `source` is what was read."""

    source: str
    train: tuple[Point, ...] = ()
    held_out: tuple[Point, ...] = ()
    without_prompt: float | None = None
    initial_prompt: float | None = None
    skipped_lines: int = 0


def metrics_file_of(prompt_file: str, run_dir: str | None) -> Path:
    """Where `train` puts the metrics of this prompt file."""
    return run_folder_of(prompt_file, run_dir) / METRICS_NAME


def load_curve(prompt_file: str, run_dir: str | None, training: dict[str, object]) -> Curve | None:
    """The curve of the run folder, or else the one in the metadata `training`, or else None.

    Raises:
        UserError: `run_dir` is given and has no metrics, or the metrics are not of a training run.
    """
    path = metrics_file_of(prompt_file, run_dir)
    if path.exists():
        records, skipped = read_records(path)
        if not records and skipped:
            raise UserError(f"{path}: not the metrics of a training run; pass the folder of one as `run_dir`")
        curve = curve_of_records(records, training, source=str(path), skipped_lines=skipped)
        if curve.train or curve.held_out:
            return curve
    elif run_dir is not None:
        raise UserError(f"`run_dir` {run_dir}: holds no {METRICS_NAME}; give the run folder of this prompt")
    return _curve_of_metadata(training, source=f"the metadata of {prompt_file}")


def curve_of_records(
    records: Iterable[dict[str, Any]], training: dict[str, object], *, source: str, skipped_lines: int = 0
) -> Curve:
    """Sort the records of a run; of two of the same kind and step the later one counts, as after a resumed run."""
    windows: dict[int, tuple[float, float | None]] = {}
    held_out: dict[int, float] = {}
    named: dict[str, float] = {}
    for record in records:
        step, loss, evaluated = record["step"], _number(record.get("loss")), _number(record.get("eval_loss"))
        if loss is not None:
            windows[step] = (loss, _number(record.get("supervised_tokens")))
        if evaluated is not None:
            named[str(record.get("prompt"))] = evaluated
            if record.get("prompt") != NO_PROMPT:
                held_out[step] = evaluated
    seen = _tokens_seen(windows)
    return Curve(
        source=source,
        train=tuple(Point(step, windows[step][0], seen.get(step)) for step in sorted(windows)),
        held_out=tuple(Point(step, held_out[step], _interpolate(step, seen)) for step in sorted(held_out)),
        without_prompt=named.get(NO_PROMPT, held_out_loss(training, "without_prompt")),
        initial_prompt=named.get(INITIAL, held_out_loss(training, "initial_prompt")),
        skipped_lines=skipped_lines,
    )


def held_out_loss(training: dict[str, object], name: str) -> float | None:
    """One of the held-out losses that the metadata keep, by its name there."""
    losses = training.get("held_out_loss")
    return _number(losses.get(name)) if isinstance(losses, dict) else None


def _curve_of_metadata(training: dict[str, object], *, source: str) -> Curve | None:
    """The held-out losses that the prompt file itself keeps, as `[step, loss]` pairs."""
    pairs = training.get("curve")
    pairs = [pair for pair in pairs if _is_pair(pair)] if isinstance(pairs, list) else []
    if not pairs:
        return None
    return Curve(
        source=source,
        held_out=tuple(Point(step, loss) for step, loss in sorted(pairs)),
        without_prompt=held_out_loss(training, "without_prompt"),
        initial_prompt=held_out_loss(training, "initial_prompt"),
    )


def _tokens_seen(windows: dict[int, tuple[float, float | None]]) -> dict[int, float]:
    """Supervised tokens until the end of each window, 0 at the start; empty if some window does not say its own."""
    seen, total = {0: 0.0}, 0.0
    for step in sorted(windows):
        _, supervised = windows[step]
        if supervised is None:
            return {}
        total += supervised
        seen[step] = total
    return seen


def _interpolate(step: int, seen: dict[int, float]) -> float | None:
    """Tokens until `step`, within a window in proportion to its steps; None behind the last window."""
    before = max((known for known in seen if known <= step), default=None)
    after = min((known for known in seen if known >= step), default=None)
    if before is None or after is None:
        return None
    share = (step - before) / (after - before) if after > before else 0.0
    return seen[before] + share * (seen[after] - seen[before])


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and is_count(pair[0]) and _number(pair[1]) is not None


def _number(value: object) -> float | None:
    """`value` if it can be drawn."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # a whole number may be too large for a float
