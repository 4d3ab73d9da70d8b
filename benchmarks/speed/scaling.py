"""What a training step costs as one thing grows: virtual tokens, row length, rows per step, vocabulary or model size.

usage: python benchmarks/speed/scaling.py [--precision bf16] [--only NAME ...] [--steps 5] [--plot scaling.png]
       [--json OUT]

Every point is a `train.py` run on a small BLOOM that differs from the others in one quantity only. The exponent is the
slope of log(seconds) against log(quantity) over the largest values, where fixed costs matter least: near 1 grows
linearly, near 0 is free. The plot needs matplotlib.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from compare_peft import resolve_device
from flops import model_size
from rows import encoded, rows_of_lengths
from shapes import bloom, make_checkpoint, make_tokenizer
from sides import Place, Work, run_softprompt
from transformers import PreTrainedConfig

from softprompt.system.process import silence_libraries

QUESTION_TOKENS = 16
LARGEST = 3  # points that the exponent is fitted to


@dataclass(frozen=True)
class Point:
    """One training run's sizes; `quantity` is the value of the one that varies."""

    virtual_tokens: int = 16
    row_tokens: int = 128
    rows_per_step: int = 8
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 4

    @property
    def config(self) -> PreTrainedConfig:
        return bloom(self.hidden, self.layers, self.hidden // 64, self.vocabulary)

    @property
    def weights(self) -> int:
        """Linear weights of the layers."""
        return model_size(self.config).linear_weights


@dataclass(frozen=True)
class Curve:
    """Median step seconds of every value of one quantity."""

    quantity: str
    values: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """Slope in logarithms over the largest values, by least squares."""
        return log_slope(self.values[-LARGEST:], self.seconds[-LARGEST:])


BASE = Point()
# what varies: the points, and the number on the axis
SWEEPS: dict[str, tuple[list[Point], Callable[[Point], int]]] = {
    "virtual tokens": (
        [replace(BASE, virtual_tokens=count) for count in (1, 8, 32, 64, 128, 256, 512)],
        lambda point: point.virtual_tokens,
    ),
    "tokens of a row": (
        [replace(BASE, row_tokens=count) for count in (32, 64, 128, 256, 512)],
        lambda point: point.row_tokens,
    ),
    "rows per step": (
        [replace(BASE, rows_per_step=count) for count in (1, 2, 4, 8, 16, 32)],
        lambda point: point.rows_per_step,
    ),
    "vocabulary": (
        [replace(BASE, vocabulary=count) for count in (4096, 16_384, 65_536, 262_144)],
        lambda point: point.vocabulary,
    ),
    "linear weights": (
        [replace(BASE, hidden=hidden, layers=layers) for hidden, layers in ((128, 2), (256, 4), (512, 6), (768, 8))],
        lambda point: point.weights,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    silence_libraries()
    if options.plot:
        import matplotlib  # noqa: F401 (missing: say so before minutes of measuring)
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as cache:
        place = Place(device, options.threads, Path(cache))
        curves = [measure(name, *SWEEPS[name], options, place) for name in options.only]
    print(f"step seconds, {options.precision}, {device}, threads: {options.threads}, torch {torch.__version__}\n")
    print("\n\n".join(describe(curve) for curve in curves))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(curve) for curve in curves], indent=1) + "\n", "utf-8")
    if options.plot:
        plot(curves, options.plot)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--precision", choices=["bf16", "fp32"], default="fp32", help="default: %(default)s")
    add("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), metavar="NAME", help=", ".join(SWEEPS))
    add("--steps", type=int, default=5, help="measured steps of every point (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s")
    add("--plot", metavar="PNG", help="draw the curves there")
    add("--json", metavar="OUT", help="write the curves there")
    return parser.parse_args(argv)


def measure(
    name: str, points: Sequence[Point], value: Callable[[Point], int], options: argparse.Namespace, place: Place
) -> Curve:
    """Run every point of one sweep."""
    seconds = []
    for point in points:
        seconds.append(step_seconds(point, options, place))
        print(f"{name} {value(point):,}: {seconds[-1]:.4f} s a step", file=sys.stderr, flush=True)
    return Curve(name, [value(point) for point in points], seconds)


def step_seconds(point: Point, options: argparse.Namespace, place: Place, warm_up_steps: int = 2) -> float:
    """Median seconds of a step of rows of equal length."""
    count = (warm_up_steps + options.steps) * point.rows_per_step
    rows = rows_of_lengths([(QUESTION_TOKENS, point.row_tokens - QUESTION_TOKENS)] * count)
    name = f"bloom-{point.hidden}-{point.layers}-{point.vocabulary}"
    model = make_checkpoint(name, point.config, options.precision, rows, place.cache)
    ids = encoded(rows, make_tokenizer(rows, point.vocabulary), point.row_tokens)
    work = Work(rows, ids, warm_up_steps, point.rows_per_step, point.row_tokens)
    return statistics.median(run_softprompt(model, work, point.virtual_tokens, options.precision, place).step_seconds)


def log_slope(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Least-squares slope of log(seconds) against log(values)."""
    x, y = (torch.tensor(numbers, dtype=torch.float64).log() for numbers in (values, seconds))
    x = x - x.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def in_words(exponent: float) -> str:
    """How a cost with this exponent grows."""
    if exponent < 0.15:
        return "does not grow"
    if exponent < 0.85:
        return "grows slower than linearly"
    return "grows linearly" if exponent < 1.15 else "grows faster than linearly"


def describe(curve: Curve) -> str:
    """Values, seconds and the verdict, as text."""
    values = "".join(f"{value:>12,}" for value in curve.values)
    seconds = "".join(f"{second:>12.4f}" for second in curve.seconds)
    verdict = f"{'':16}{in_words(curve.exponent)} (exponent {curve.exponent:.2f} over the last {LARGEST})"
    return f"{curve.quantity:16}{values}\n{'seconds a step':16}{seconds}\n{verdict}"


def plot(curves: Sequence[Curve], path: str) -> None:
    """One panel per quantity, both axes logarithmic, with a linear cost through the last point for comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(curves), 3.2), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, curve in zip(panels, curves, strict=True):
        linear = [curve.seconds[-1] * value / curve.values[-1] for value in curve.values]
        panel.loglog(curve.values, curve.seconds, "o-", label="measured")
        panel.loglog(curve.values, linear, ":", color="gray", label="linear")
        panel.set_xticks(
            [curve.values[0], curve.values[-1]], labels=[f"{n:,}" for n in (curve.values[0], curve.values[-1])]
        )
        panel.xaxis.minorticks_off()
        panel.set(xlabel=curve.quantity, title=f"exponent {curve.exponent:.2f}")
        panel.set_ylim(bottom=min(curve.seconds) / 2)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
