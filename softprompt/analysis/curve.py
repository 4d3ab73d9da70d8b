"""The loss of a training run over its steps, read from `metrics.jsonl` or, without it, from the prompt file.

`chart.py` draws it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.config.commands import run_folder_of
from softprompt.errors import UserError
from softprompt.prompt.metadata import is_count
from softprompt.training.run_log import INITIAL, METRICS_NAME, NO_PROMPT, read_records

MOST_LOSS = 3.4e38  # the largest number of fp32, in which losses are computed; differences of larger ones overflow


@dataclass(frozen=True)
class Point:
    """A loss after `step` steps, in which `supervised_tokens` were seen; None if their number is not known."""

    step: int
    loss: float
    supervised_tokens: float | None = None


@dataclass(frozen=True)
class Curve:
    """Losses per supervised token, of windows of training steps and of the held-out rows.

    Attributes:
        source: what the curve was read from.
        without_prompt: held-out loss of the base alone; `initial_prompt` is that of the initial prompt.
        skipped_lines: number of damaged lines in the metrics file.
    """

    source: str
    train: tuple[Point, ...] = ()
    held_out: tuple[Point, ...] = ()
    without_prompt: float | None = None
    initial_prompt: float | None = None
    skipped_lines: int = 0


def metrics_file_of(prompt_file: str, run_dir: str | None) -> Path:
    """Return the path at which `train` writes the metrics of this prompt file."""
    return run_folder_of(prompt_file, run_dir) / METRICS_NAME


def load_curve(prompt_file: str, run_dir: str | None, training: dict[str, object]) -> Curve | None:
    """Return the curve in the run folder, or else the one in the metadata `training`, or else None.

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
    """Make a curve of a run's records. Of two of the same kind and step, the later one counts, as after a resume."""
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
    """Return one of the held-out losses in the metadata by its name there, or None if it is not there."""
    losses = training.get("held_out_loss")
    return _number(losses.get(name)) if isinstance(losses, dict) else None


def _curve_of_metadata(training: dict[str, object], *, source: str) -> Curve | None:
    """Make a curve of the `[step, loss]` pairs that the prompt file itself keeps, or return None if it has none."""
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
    """Return by step how many supervised tokens were seen at the end of each window, and 0 at step 0.

    The result is empty if a window does not state its number.
    """
    seen, total = {0: 0.0}, 0.0
    for step in sorted(windows):
        _, supervised = windows[step]
        if supervised is None:
            return {}
        total += supervised
        seen[step] = total
    return seen


def _interpolate(step: int, seen: dict[int, float]) -> float | None:
    """Return how many tokens were seen at `step`, linear within a window; None behind the last window."""
    before = max((known for known in seen if known <= step), default=None)
    after = min((known for known in seen if known >= step), default=None)
    if before is None or after is None:
        return None
    share = (step - before) / (after - before) if after > before else 0.0
    return seen[before] + share * (seen[after] - seen[before])


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and is_count(pair[0]) and _number(pair[1]) is not None


def _number(value: object) -> float | None:
    """Return `value` as a float if it can be drawn, else None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= MOST_LOSS else None
