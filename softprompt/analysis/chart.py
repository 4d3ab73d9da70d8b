"""A loss curve as a chart of plain characters, or as a PNG, for which alone matplotlib is needed.

The PNG has every panel of `panels`, the characters only the first, with the losses over the steps.
"""

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from softprompt.analysis.curve import Curve, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, HELD_OUT, NO_PROMPT, INITIAL = "train", "held-out", "no prompt", "initial prompt"
MARKS = {NO_PROMPT: "-", TRAIN: ".", HELD_OUT: "o"}  # a later mark is drawn over an earlier one
WIDTH, HEIGHT, MARGIN = 64, 16, 9  # characters: the chart's area, and what is left of it; 80 with the name of the axis
LOG_RATIO = 10  # the scale is logarithmic if the largest loss is more than this many times the smallest


@dataclass(frozen=True)
class Panel:
    """Losses over one quantity. `lines` has (x, loss) by name, and `baselines` the losses of horizontal lines."""

    x_label: str
    lines: dict[str, list[tuple[float, float]]]
    baselines: dict[str, float]
    log: bool


def panels(curve: Curve) -> list[Panel]:
    """Return a panel of losses over steps, and one over supervised tokens if the run recorded them."""
    found = {NO_PROMPT: curve.without_prompt, INITIAL: curve.initial_prompt}
    baselines = {name: loss for name, loss in found.items() if loss is not None}
    losses = [point.loss for point in curve.train + curve.held_out] + [*baselines.values()]
    log = min(losses) > 0 and max(losses) / min(losses) > LOG_RATIO
    result = []
    for x_label, name in (("steps", "step"), ("supervised tokens seen", "supervised_tokens")):
        both = {TRAIN: _line(curve.train, name), HELD_OUT: _line(curve.held_out, name)}
        lines = {label: line for label, line in both.items() if line}
        if lines:
            result.append(Panel(x_label, lines, baselines, log))
    return result


def text_chart(curve: Curve) -> str:
    """Draw the losses over the steps in characters, with labelled axes and a legend."""
    panel = panels(curve)[0]
    last = max(1, *(point.step for point in curve.train + curve.held_out))
    across = [last * column / (WIDTH - 1) for column in range(WIDTH)]
    flat = {name: [(step, loss) for step in across] for name, loss in panel.baselines.items() if name in MARKS}
    lines = panel.lines | flat
    losses = [loss for line in lines.values() for _, loss in line]
    bounds = (min(losses), max(losses))
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for name, mark in MARKS.items():
        for step, loss in lines.get(name, []):
            grid[_row(loss, bounds, log=panel.log)][round(step / last * (WIDTH - 1))] = mark
    ticks = _ticks(bounds, log=panel.log)
    title = f"{'loss':>{MARGIN - 1}}{' (log scale)' if panel.log else ''}"
    area = [f"{ticks.get(row, ''):>{MARGIN - 1}} |{''.join(marks).rstrip()}" for row, marks in enumerate(grid)]
    legend = "   ".join(f"{mark} {name}" for name, mark in MARKS.items() if name in lines)
    return "\n".join([title, *area, *_step_axis(last), f"{'':{MARGIN}}{legend}"])


def png_bytes(curve: Curve) -> bytes:
    """Return the content of a PNG file with the panels side by side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    buffer = io.BytesIO()
    figure_of(curve).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def figure_of(curve: Curve) -> "Figure":
    """Draw the panels as a matplotlib figure."""
    from matplotlib.figure import Figure

    drawn = panels(curve)
    figure = Figure(figsize=(5.5 * len(drawn), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for name, line in panel.lines.items():
            # held-out losses are not joined by a line, since they may be far apart
            axes.plot(*zip(*line, strict=True), "o" if name == HELD_OUT else ".-", label=name)
        for name, loss in panel.baselines.items():
            axes.axhline(loss, linestyle="--" if name == NO_PROMPT else ":", color="gray", label=name)
        axes.set(xlabel=panel.x_label, ylabel="loss per supervised token", yscale="log" if panel.log else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _line(points: tuple[Point, ...], name: str) -> list[tuple[float, float]]:
    """Return (x, loss) of the points whose x, the attribute `name`, is known."""
    return [(getattr(point, name), point.loss) for point in points if getattr(point, name) is not None]


def _row(loss: float, bounds: tuple[float, float], *, log: bool) -> int:
    """Return the row of the chart's area for a loss, 0 at the top; if all losses are the same, it is the middle."""
    low, high = map(math.log, bounds) if log else bounds
    value = math.log(loss) if log else loss
    return round((high - value) / (high - low) * (HEIGHT - 1)) if high > low else HEIGHT // 2


def _ticks(bounds: tuple[float, float], *, log: bool) -> dict[int, str]:
    """Return the labels of the loss axis by row."""
    if bounds[0] == bounds[1]:
        return {HEIGHT // 2: f"{bounds[0]:.3g}"}
    low, high = map(math.log, bounds) if log else bounds
    values = {row: high - row / (HEIGHT - 1) * (high - low) for row in range(0, HEIGHT, 5)}
    return {row: f"{math.exp(value) if log else value:.3g}" for row, value in values.items()}


def _step_axis(last: int) -> list[str]:
    """Return the lines of the step axis and of its labels: start, middle and end, each below its place."""
    labels = [" "] * (MARGIN + 1 + WIDTH)
    for step in (0, last // 2, last):
        text = f"{step:,}"
        place = MARGIN + 1 + round(step / last * (WIDTH - 1)) - (len(text) - 1 if step == last else 0)
        labels[place : place + len(text)] = text
    return [f"{'':{MARGIN}}+{'-' * WIDTH}", "".join(labels) + " steps"]
