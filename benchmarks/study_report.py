"""The study's tables and plots: `docs/quality.md` between two markers, `docs/quality-*.png` beside it."""

from collections.abc import Sequence
from pathlib import Path

from study_plan import SEARCH_SHARE, STEPS, STEPS_TASK, best_rate, searched
from study_results import Results
from study_summary import (
    TITLES,
    Side,
    best_prompt_tuning,
    by_steps,
    half_interval,
    scale_table,
    share_of_gain,
    sides_of,
    spread,
    steps_to,
    targets,
)
from study_tasks import LIMITS, REPORTED

from softprompt.files import write_atomic

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
NAMES = {"bloom": "the embedded BLOOM", "smollm2": "SmolLM2-135M"}


def write_report(results: Results, document: Path) -> list[Path]:
    """Put the tables into `document` and draw the plots beside it; returns what was written."""
    text = document.read_text("utf-8") if document.exists() else f"# Quality\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"{document}: no place for the tables; put {BEGIN} and {END} there")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    plots = draw_plots(results, document)
    tables = "\n\n".join(sections(results, plots))
    write_atomic(document, f"{before}{BEGIN}\n{tables}\n{END}{after}".encode())
    return [document, *plots.values()]


def sections(results: Results, plots: dict[str, Path]) -> list[str]:
    """Every table under its heading, as Markdown."""
    parts = ["### Targets", table_of_targets(results)]
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
    rows = scale_table(results)
    if rows:
        parts += ["### Rates relative to the prompt's RMS", table_of_scales(rows)]
    longer = by_steps(results)
    if longer:
        parts += [f"### More steps: {STEPS_TASK} on {NAMES['bloom']}", f"![loss by steps]({plots['steps'].name})"]
        parts.append(table_of_steps(longer))
    failed = [record for record in results if "failed" in record]
    if failed:
        parts += ["### Runs that failed", "\n".join(sorted({f"- {_what(run)}: {run['failed']}" for run in failed}))]
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
    half, first = half_interval(side.losses), side.runs[0]
    loss = f"{side.loss:.4f}" + (f" ± {half:.4f}" if half is not None else "") + f" (n={len(side.runs)})"
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


def table_of_steps(sides: dict[int, Side]) -> str:
    """Report loss of softprompt's default and how far its seeds lie apart."""
    rows = [
        [f"{steps}", f"{side.loss:.4f}", f"{min(side.losses):.4f}-{max(side.losses):.4f}", f"{spread(side):.1%}"]
        for steps, side in sides.items()
    ]
    return table(["steps of 8 rows", "report loss", "of the seeds", "max - min over mean"], rows)


def draw_plots(results: Results, document: Path) -> dict[str, Path]:
    """One picture for each model that has curves; a panel for each task."""
    paths = {}
    for model, tasks in REPORTED.items():
        panels = {task: sides_of(results, model, task) for task in tasks}
        panels = {task: sides for task, sides in panels.items() if len(sides) > 1}
        if panels:
            paths[model] = document.with_name(f"{document.stem}-{model}.png")
            plot(panels, paths[model])
    longer = by_steps(results)
    if longer:
        paths["steps"] = document.with_name(f"{document.stem}-steps.png")
        plot_steps(longer, sides_of(results, "bloom", STEPS_TASK), paths["steps"])
    return paths


def plot_steps(longer: dict[int, Side], sides: dict[str, Side], path: Path) -> None:
    """Report loss of every seed over the number of steps; what others reach with the usual number as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(longer), [side.loss for side in longer.values()], color="tab:blue", label="softprompt, default")
    for steps, side in longer.items():
        axes.scatter([steps] * len(side.losses), side.losses, color="tab:blue", s=12)
    peer = best_prompt_tuning(sides)
    for name, side, style in (("PEFT prompt tuning, best rate", peer, ":"), ("LoRA r=8", sides.get("lora"), "-.")):
        if side:
            usual = f"{name}, {next(iter(longer))} steps"
            axes.axhline(side.loss, linestyle=style, color="gray", linewidth=1, label=usual)
    axes.set(xlabel="steps of 8 rows", ylabel="report loss per supervised token", xscale="log", yscale="log")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def plot(panels: dict[str, dict[str, Side]], path: Path) -> None:
    """Held-out loss over steps: mean over seeds with their range; the base alone and full fine-tuning as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (task, sides) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        peer = best_prompt_tuning(sides)
        curves = [("softprompt, default", sides.get("softprompt"), "tab:blue")]
        curves += [("PEFT prompt tuning, best rate", peer, "tab:orange")]
        curves += [("PEFT prompt tuning, 5e-5", sides.get("tutorial"), "tab:red")]
        for label, side, colour in curves:
            if side:
                steps, losses = zip(*side.curve, strict=True)
                axes.plot(steps, [sum(row) / len(row) for row in losses], label=label, color=colour)
                axes.fill_between(steps, [min(row) for row in losses], [max(row) for row in losses], alpha=0.2)
        for name, style in (("none", ":"), ("lora", "-."), ("full", "--")):
            if name in sides:
                level = sum(run["best_select"] for run in sides[name].runs) / len(sides[name].runs)
                axes.axhline(level, linestyle=style, color="gray", linewidth=1, label=TITLES[name])
        axes.set(title=task, xlabel="step of 8 rows", yscale="log")
    figure.axes[0].set_ylabel("held-out loss per supervised token")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _what(run: dict) -> str:
    return f"{run['model']} {run['task']} {run['method']} {run['rate']}"
