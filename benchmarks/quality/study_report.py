"""The study's tables: `docs/quality.md` between two markers."""

from collections.abc import Sequence
from pathlib import Path

from study_plan import LIMIT_TASK, SEARCH_SHARE, STEPS, best_rate, searched
from study_plots import draw_plots
from study_results import Results
from study_summary import (
    TITLES,
    Pace,
    Side,
    best_prompt_tuning,
    by_steps,
    by_tokens,
    deviation,
    half_interval,
    paces_of,
    scale_table,
    share_of_gain,
    sides_by_task,
    sides_of,
    spread,
    steps_to,
    targets,
)
from study_tasks import LIMITS, REPORTED

from softprompt.system.files import write_atomic

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
NAMES = {"bloom": "the embedded BLOOM", "smollm2": "SmolLM2-135M"}


def write_report(results: Results, document: Path) -> list[Path]:
    """Put the tables into `document` and draw the plots beside it; returns what was written."""
    text = document.read_text("utf-8") if document.exists() else f"# Quality\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"{document}: no place for the tables; put {BEGIN} and {END} there")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    paces = paces_of(results, results.path.with_name(f"{results.path.stem}-seconds.json"))
    plots = draw_plots(results, paces, document)
    tables = "\n\n".join(sections(results, paces, plots))
    write_atomic(document, f"{before}{BEGIN}\n{tables}\n{END}{after}".encode())
    return [document, *plots.values()]


def sections(results: Results, paces: dict[str, Pace], plots: dict[str, Path]) -> list[str]:
    """Every table under its heading, as Markdown."""
    parts = ["### Targets", table_of_targets(results), *sections_of_models(results, plots)]
    if paces:
        parts += ["### Loss against seconds", f"![loss over seconds]({plots['seconds'].name})", table_of_paces(paces)]
    rows = scale_table(results)
    if rows:
        parts += ["### Rates relative to the prompt's RMS", table_of_scales(rows)]
    every = sides_by_task(results, REPORTED)
    if every:
        parts += ["### Seeds", f"![deviation over seeds by loss]({plots['seeds'].name})", table_of_seeds(every)]
    where, longer = f"{LIMIT_TASK} on {NAMES['bloom']}", by_steps(results)
    if longer:
        parts += [f"### More steps: {where}", f"![loss by steps]({plots['steps'].name})", table_of_steps(longer)]
    lengths = by_tokens(results)
    if lengths:
        parts += [f"### More virtual tokens: {where}", f"![loss by virtual tokens]({plots['tokens'].name})"]
        parts.append(table_of_tokens(lengths))
    failed = [record for record in results if "failed" in record]
    if failed:
        parts += ["### Runs that failed", "\n".join(sorted({f"- {_what(run)}: {run['failed']}" for run in failed}))]
    return parts


def sections_of_models(results: Results, plots: dict[str, Path]) -> list[str]:
    """For every model its curves, a table for each task, and the searches behind them."""
    parts: list[str] = []
    for model, tasks in REPORTED.items():
        found = {task: sides_of(results, model, task) for task in (*tasks, *LIMITS.get(model, ()))}
        found = {task: sides for task, sides in found.items() if len(sides) > 1}
        if not found:
            continue
        parts.append(f"### On {NAMES[model]}: {STEPS[model]} steps of 8 rows")
        if model in plots:
            parts.append(f"![held-out loss over steps on {NAMES[model]}]({plots[model].name})")
        for task, sides in found.items():
            beside = "" if task in tasks else ", which no target is about: words that the base never wrote"
            parts += [f"**{task}**{beside}", table_of_task(sides, STEPS[model])]
        parts += ["The search behind it (best held-out loss of one seed):", table_of_search(results, model, found)]
    return parts


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def table_of_targets(results: Results) -> str:
    """What was to be reached and what was."""
    rows = [[what, must, aim, "; ".join(found) or "-"] for what, must, aim, found in targets(results, REPORTED)]
    return table(["target", "must", "aim", "measured"], rows)


def table_of_task(sides: dict[str, Side], steps: int) -> str:
    """Every side of one task."""
    peer = best_prompt_tuning(sides)
    rows = [_row(name, side, sides, peer, steps) for name, side in sides.items()]
    head = ["side", "rate", "trained", "report loss", "against PEFT's best prompt", "share of full's gain"]
    return table([*head, "steps to PEFT's final loss", "diverged"], rows)


def _row(name: str, side: Side, sides: dict[str, Side], peer: Side | None, steps: int) -> list[str]:
    loss, first = _loss_cell(side), side.runs[0]
    ratio = f"{side.loss / peer.loss:.3f}" if peer else "-"
    share = share_of_gain(sides, name, "full")
    gain = "-" if share is None else f"{share:.1%}"
    if name == "none":
        return [TITLES[name], "-", "0", loss, ratio, gain, "-", "-"]
    rates = sorted({run["learning_rate"] for run in side.runs})
    reached = steps_to(side, peer.final_select) if peer else None
    return [
        TITLES[name],
        "-".join(f"{rate:.3g}" for rate in rates[:1] + rates[1:][-1:]),
        f"{first['trainable']:,}",
        loss,
        ratio,
        gain,
        f"{reached} of {steps}" if reached is not None else "-",
        f"{sum(run['diverged'] for run in side.runs)} of {len(side.runs)}",
    ]


def table_of_search(results: Results, model: str, tasks: dict[str, dict]) -> str:
    """Every rate of every grid; the winners are bold."""
    rows = []
    for task in tasks:
        for method in TITLES:
            found = searched(model, task, method, results)
            winner = best_rate(model, task, method, results)
            cells = [_search_cell(rate, record, rate == winner) for rate, record in found.items()]
            if cells:
                rows.append([f"{task}, {TITLES[method]}", "; ".join(cells)])
    return table(["task, method", f"rate: loss after {STEPS[model] // SEARCH_SHARE} steps"], rows)


def _search_cell(rate: float, record: dict, best: bool) -> str:
    if "failed" in record:
        return f"{rate:g}: -"
    cell = f"{rate:g}: {record['best_select']:.4f}" + " (diverged)" * record["diverged"]
    return f"**{cell}**" if best else cell


def table_of_scales(rows: dict[tuple[str, float], dict[float, float]]) -> str:
    """Report loss of softprompt at every alpha."""
    alphas = sorted({alpha for row in rows.values() for alpha in row})
    body = []
    for (model, scale), row in rows.items():
        cells = [f"{row[alpha]:.4f}" if alpha in row else "-" for alpha in alphas]
        body.append([f"{NAMES[model]}, embeddings x {scale:g}", *cells])
    return table(["base", *(f"alpha {alpha:g}" for alpha in alphas)], body)


def table_of_paces(paces: dict[str, Pace]) -> str:
    """Seconds of a step, and until the loss that PEFT's best prompt ended with."""
    body = []
    for where, pace in paces.items():
        reached, whole = pace.seconds_to_peer, pace.peer_seconds
        share = ["-", "-"] if reached is None else [f"{reached:.1f}", f"{reached / whole:.0%}"]
        steps = [f"{1000 * pace.step:.0f}", f"{1000 * pace.peer_step:.0f} ({pace.peer_way})"]
        body.append([where, *steps, f"{pace.peer_step / pace.step:.2f}", f"{whole:.1f}", *share])
    head = ["task", "softprompt, ms a step", "PEFT, ms a step", "ratio", "PEFT's seconds to its final loss"]
    return table([*head, "softprompt's to the same", "share"], body)


def table_of_seeds(every: dict[str, dict[str, Side]]) -> str:
    """How far the seeds of every side lie apart: the standard deviation of the report loss over its mean."""
    body = []
    for name in [name for name in TITLES if name != "none"]:
        sides = [found.get(name) for found in every.values()]
        body.append([TITLES[name], *("-" if side is None else _deviation_cell(side) for side in sides)])
    gains = [_spread_of_gain(sides) for sides in every.values()]
    body.append(["softprompt's max - min over its gain", *gains])
    return table(["side", *every], body)


def _spread_of_gain(sides: dict[str, Side]) -> str:
    ours, none = sides["softprompt"], sides.get("none")
    return "-" if none is None else f"{spread(ours) * ours.loss / (none.loss - ours.loss):.1%}"


def _deviation_cell(side: Side) -> str:
    found = deviation(side)
    return "-" if found is None else f"{found:.1%} of {side.loss:.4f} (n={len(side.runs)})"


def table_of_steps(longer: dict[int, dict[str, Side]]) -> str:
    """Report loss by steps: softprompt's default, how far its seeds lie apart, and PEFT's prompt tuning."""
    rows = []
    for steps, sides in longer.items():
        ours, peer = sides.get("softprompt"), sides.get("peer")
        cells = ["-", "-"] if ours is None else [_loss_cell(ours), f"{spread(ours):.1%}"]
        ratio = f"{ours.loss / peer.loss:.3f}" if ours and peer else "-"
        rows.append([f"{steps}", *cells, _loss_cell(peer) if peer else "-", ratio])
    return table(["steps of 8 rows", "softprompt", "max - min over mean", "PEFT prompt tuning", "ratio"], rows)


def table_of_tokens(lengths: dict[int, Side]) -> str:
    """Report loss by virtual tokens, and how far the seeds lie apart."""
    rows = [
        [f"{length}", f"{side.runs[0]['trainable']:,}", _loss_cell(side), f"{spread(side):.1%}"]
        for length, side in lengths.items()
    ]
    return table(["virtual tokens", "trained", "softprompt", "max - min over mean"], rows)


def _loss_cell(side: Side) -> str:
    half = half_interval(side.losses)
    return f"{side.loss:.4f}" + (f" ± {half:.4f}" if half is not None else "") + f" (n={len(side.runs)})"


def _what(run: dict) -> str:
    return f"{run['model']} {run['task']} {run['method']} {run['rate']}"
