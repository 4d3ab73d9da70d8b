"""The figures of every side with their intervals, as a table and as JSON; nothing is printed here."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from softprompt.analysis.choices import best_choices
from softprompt.analysis.comparison import EvalSet, Outcome
from softprompt.analysis.ensemble import EnsembleResult
from softprompt.analysis.statistics import (
    Estimate,
    bootstrap_interval,
    bootstrap_ratios,
    exact_match,
    macro_f1,
    perplexity,
)
from softprompt.base.loading import Base
from softprompt.config.commands import EvaluateConfig

SUFFIX = ".safetensors"
LEAST_NAME = 12  # least number of columns for the names of the sides
Figure = TypeVar("Figure")


@dataclass(frozen=True)
class Figures:
    """The figures of one side; None for those not asked for. All but loss and perplexity are from 0 to 1."""

    loss: Estimate
    perplexity: Estimate
    token_accuracy: Estimate
    exact_match: Estimate | None
    choice_accuracy: Estimate | None
    macro_f1: float | None


def figures_of(outcome: Outcome, eval_set: EvalSet, config: EvaluateConfig) -> Figures:
    """Compute the figures of one side; the intervals of all sides rest on the same resamples."""
    draws = {"samples": config.bootstrap_samples, "seed": config.seed}

    def share(right: Sequence[bool]) -> Estimate | None:
        return bootstrap_interval(right, [1] * len(right), **draws) if right else None

    tokens = [score.num_supervised for score in outcome.scores]
    loss = bootstrap_interval([score.loss_sum for score in outcome.scores], tokens, **draws)
    chosen = best_choices(outcome.log_probabilities, config.choices)
    return Figures(
        loss=loss,
        perplexity=perplexity(loss),
        token_accuracy=bootstrap_interval([score.num_correct for score in outcome.scores], tokens, **draws),
        exact_match=share(exact_match(outcome.answers, eval_set.references[: len(outcome.answers)])),
        choice_accuracy=share([a == b for a, b in zip(chosen, eval_set.actual, strict=True)]),
        macro_f1=macro_f1(chosen, eval_set.actual, config.choices) if chosen else None,
    )


def describe_figures(
    outcomes: Sequence[Outcome], figures: Sequence[Figures], eval_set: EvalSet, config: EvaluateConfig, *, width: int
) -> str:
    """Return the tables, at most `width` columns wide, what the figures mean, and which side has the lowest loss."""
    names = [outcome.side.name.removesuffix(SUFFIX) for outcome in outcomes]
    columns = {
        "loss": [_cell(each.loss, three_digits) for each in figures],
        "perplexity": [_cell(each.perplexity, _three_places) for each in figures],
        "token accuracy %": [_cell(each.token_accuracy, _percent) for each in figures],
    }
    if eval_set.questions:
        columns["exact match %"] = [_cell(_asked_for(each.exact_match), _percent) for each in figures]
    if config.choices:
        columns["choice accuracy %"] = [_cell(_asked_for(each.choice_accuracy), _percent) for each in figures]
        columns["macro-F1 %"] = [_percent(_asked_for(each.macro_f1)) for each in figures]
    tables = "\n\n".join(_table(names, part, width) for part in _parts(columns, width))
    return "\n".join(["", tables, "", *_remarks(eval_set, config), _lowest_loss(outcomes, figures, config)])


def describe_ensemble(result: EnsembleResult) -> str:
    """Return the line of what the members of an ensemble make of the rows together."""
    parts = []
    if result.exact_match is not None:
        parts.append(f"exact match % {_cell(result.exact_match, _percent)} (mean of the distributions)")
    if result.choice_accuracy is not None:
        figures = f"choice accuracy % {_cell(result.choice_accuracy, _percent)}"
        parts.append(f"{figures}, macro-F1 % {_percent(_asked_for(result.macro_f1))} (majority vote)")
    names = ", ".join(name.removesuffix(SUFFIX) for name in result.names)
    return f"ensemble of {names}: {'; '.join(parts)}"


def to_json(
    outcomes: Sequence[Outcome], figures: Sequence[Figures], eval_set: EvalSet, base: Base, config: EvaluateConfig
) -> dict[str, object]:
    """Return everything that was found: the settings, the figures of each side, and its results on each row."""
    return {
        "base": base.name,
        "base_sha256": base.fingerprint.sha256,
        "precision": base.precision,
        "data": eval_set.name,
        "skipped_rows": eval_set.skipped,
        "max_length": config.max_length,
        "max_new_tokens": config.max_new_tokens,
        "choices": list(config.choices),
        "bootstrap_samples": config.bootstrap_samples,
        "seed": config.seed,
        "sides": [
            {
                "name": outcome.side.name,
                "sha256": outcome.side.sha256,
                "num_virtual_tokens": outcome.side.num_virtual_tokens,
                **_finite(dataclasses.asdict(found)),
            }
            for outcome, found in zip(outcomes, figures, strict=True)
        ],
        "rows": [_row(place, outcomes, eval_set, config) for place in range(len(eval_set.rows))],
    }


def _row(place: int, outcomes: Sequence[Outcome], eval_set: EvalSet, config: EvaluateConfig) -> dict[str, object]:
    """Return one row and, by the names of the sides, the results of each on it."""
    row = eval_set.rows[place]
    sides = {}
    for outcome in outcomes:
        found: dict[str, object] = dataclasses.asdict(outcome.scores[place])
        del found["num_supervised"]  # it is the same for every side and stands in the row
        if place < len(outcome.answers):
            found["answer"] = outcome.answers[place]
        if config.choices:
            (found["choice"],) = best_choices([outcome.log_probabilities[place]], config.choices)
            found["log_probabilities"] = dict(zip(config.choices, outcome.log_probabilities[place], strict=True))
        sides[outcome.side.name] = _finite(found)
    return {
        "number": row.number,
        **row.columns,
        "output": row.output,
        "num_supervised": eval_set.encoded[place].num_supervised,
        "sides": sides,
    }


def _finite(values: dict[str, object]) -> dict[str, object]:
    """Return `values` with None for NaN and infinity, which JSON does not have."""
    return {key: _finite(each) if isinstance(each, dict) else _or_null(each) for key, each in values.items()}


def _or_null(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remarks(eval_set: EvalSet, config: EvaluateConfig) -> list[str]:
    """Return lines that say what the columns mean."""
    lines = [
        "loss and perplexity per supervised token;"
        f" in brackets 95 % bootstrap intervals over rows ({config.bootstrap_samples:,} resamples)"
    ]
    if eval_set.questions:
        lines.append(f"exact match: greedy answers to the first {len(eval_set.questions):,} rows")
    absent = [label for label in config.choices if label not in eval_set.actual]
    if absent:
        lines.append(f"macro-F1: mean over all choices; no row's output, and so 0: {', '.join(absent)}")
    return lines


def _lowest_loss(outcomes: Sequence[Outcome], figures: Sequence[Figures], config: EvaluateConfig) -> str:
    """Return the line that says which side has the lowest loss, and in how many of the resamples it has."""
    best = min(range(len(outcomes)), key=lambda side: (math.isnan(figures[side].loss.value), figures[side].loss.value))
    tokens = [score.num_supervised for score in outcomes[0].scores]
    draws = {"samples": config.bootstrap_samples, "seed": config.seed}
    ratios = [bootstrap_ratios([score.loss_sum for score in each.scores], tokens, **draws) for each in outcomes]
    others = [ratio for side, ratio in enumerate(ratios) if side != best]
    wins = sum(ratios[best][draw] < min(ratio[draw] for ratio in others) for draw in range(config.bootstrap_samples))
    name = outcomes[best].side.name
    return f"lowest loss: {name}, also in {wins:,} of {config.bootstrap_samples:,} resamples"


def _parts(columns: dict[str, list[str]], width: int) -> list[dict[str, list[str]]]:
    """Split the columns over as few tables as fit the width, each with room for the names on the left."""
    parts: list[dict[str, list[str]]] = [{}]
    for heading, cells in columns.items():
        with_it = parts[-1] | {heading: cells}
        if parts[-1] and sum(_widths(with_it)) + 2 * len(with_it) + LEAST_NAME > width:
            parts.append({})
        parts[-1][heading] = cells
    return parts


def _table(names: Sequence[str], columns: dict[str, list[str]], width: int) -> str:
    """Return a table, names on the left, cells flush right; of a name too long for the width, the end is shown."""
    widths = _widths(columns)
    room = max(LEAST_NAME, width - sum(each + 2 for each in widths))
    shown = ["side", *(name if len(name) <= room else "..." + name[3 - room :] for name in names)]
    first = max(map(len, shown))
    lines = zip(shown, *([heading, *cells] for heading, cells in columns.items()), strict=True)
    return "\n".join(
        name.ljust(first) + "".join("  " + cell.rjust(each) for cell, each in zip(cells, widths, strict=True))
        for name, *cells in lines
    )


def _widths(columns: dict[str, list[str]]) -> list[int]:
    return [max(map(len, [heading, *cells])) for heading, cells in columns.items()]


def _asked_for(figure: Figure | None) -> Figure:
    """Return a figure of a column that is shown, which is never None."""
    assert figure is not None
    return figure


def _cell(estimate: Estimate, number: Callable[[float], str]) -> str:
    """Format an estimate as `value [low-high]`."""
    return f"{number(estimate.value)} [{number(estimate.low)}-{number(estimate.high)}]"


def three_digits(value: float) -> str:
    """Format a loss with three significant digits: 0.0412, 1.23, 17.3."""
    return f"{value:#.3g}".rstrip(".")


def _three_places(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.4g}"


def _percent(share: float) -> str:
    """Format a share as a percentage with one decimal; only a share of exactly 1 is shown as 100."""
    return "100" if share == 1 else f"{min(100 * share, 99.9):.1f}"
