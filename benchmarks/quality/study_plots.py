"""The study's plots: `docs/quality-*.png`, beside the document."""

from pathlib import Path

from study_results import Results
from study_summary import (
    TITLES,
    Pace,
    Side,
    best_prompt_tuning,
    by_steps,
    by_tokens,
    deviation,
    sides_by_task,
    sides_of,
)
from study_tasks import REPORTED

MARKERS = {
    "softprompt": ("o", "tab:blue"),
    "prompt-text": ("s", "tab:orange"),
    "prompt-vocab": ("D", "tab:orange"),
    "p-tuning": ("^", "gray"),
    "prefix": ("v", "gray"),
    "lora": ("x", "gray"),
    "full": ("+", "gray"),
}


def draw_plots(results: Results, paces: dict[str, Pace], document: Path) -> dict[str, Path]:
    """A picture for each model that has curves, a panel for each task; then seconds, seeds, steps, virtual tokens."""
    paths = {}
    for model, tasks in REPORTED.items():
        panels = {task: sides_of(results, model, task) for task in tasks}
        panels = {task: sides for task, sides in panels.items() if len(sides) > 1}
        if panels:
            paths[model] = document.with_name(f"{document.stem}-{model}.png")
            plot(panels, paths[model])
    if paces:
        paths["seconds"] = document.with_name(f"{document.stem}-seconds.png")
        plot_seconds(paces, paths["seconds"])
    longer, every = by_steps(results), sides_by_task(results, REPORTED)
    if every:
        paths["seeds"] = document.with_name(f"{document.stem}-seeds.png")
        plot_seeds(every, longer, paths["seeds"])
    if longer:
        paths["steps"] = document.with_name(f"{document.stem}-steps.png")
        plot_steps(longer, paths["steps"])
    lengths = by_tokens(results)
    if lengths:
        paths["tokens"] = document.with_name(f"{document.stem}-tokens.png")
        plot_tokens(lengths, paths["tokens"])
    return paths


def plot_steps(longer: dict[int, dict[str, Side]], path: Path) -> None:
    """Report loss of every seed over the number of steps, and lines through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, label, colour in (
        ("softprompt", "softprompt, default", "tab:blue"),
        ("peer", "PEFT prompt tuning, best rate", "tab:orange"),
    ):
        sides = {steps: row[name] for steps, row in longer.items() if name in row}
        axes.plot(list(sides), [side.loss for side in sides.values()], color=colour, label=label)
        for steps, side in sides.items():
            axes.scatter([steps] * len(side.losses), side.losses, color=colour, s=12)
    axes.set(xlabel="steps of 8 rows", ylabel="report loss per supervised token", xscale="log", yscale="log")
    axes.set_xticks(list(longer), [str(steps) for steps in longer])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def plot_tokens(lengths: dict[int, Side], path: Path) -> None:
    """Report loss of every seed over the prompt's length, and a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(lengths), [side.loss for side in lengths.values()], color="tab:blue")
    for length, side in lengths.items():
        axes.scatter([length] * len(side.losses), side.losses, color="tab:blue", s=12)
    axes.set(xlabel="virtual tokens", ylabel="report loss per supervised token", xscale="log", yscale="log")
    axes.set_xticks(list(lengths), [str(length) for length in lengths])
    axes.set_xticks([], minor=True)
    figure.savefig(path, dpi=120)


def plot_seconds(paces: dict[str, Pace], path: Path) -> None:
    """Held-out loss over the seconds of the training steps, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(paces), 3.2), layout="constrained")
    for axes, (where, pace) in zip(figure.subplots(1, len(paces), squeeze=False)[0], paces.items(), strict=True):
        for label, side, step in (
            ("softprompt, default", pace.ours, pace.step),
            ("PEFT prompt tuning, best rate", pace.peer, pace.peer_step),
        ):
            steps, losses = zip(*side.curve, strict=True)
            axes.plot([step * place for place in steps], [sum(row) / len(row) for row in losses], label=label)
        axes.set(title=where, xlabel="seconds of training steps", yscale="log")
    figure.axes[0].set_ylabel("held-out loss per supervised token")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def plot_seeds(every: dict[str, dict[str, Side]], longer: dict[int, dict[str, Side]], path: Path) -> None:
    """Deviation over seeds against the loss: for every side and task a point, and softprompt's with more steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, (marker, colour) in MARKERS.items():
        sides = [found[name] for found in every.values() if name in found and deviation(found[name])]
        if name == "softprompt":
            sides += [row[name] for row in list(longer.values())[1:] if name in row]
        points = [side.loss for side in sides], [100 * deviation(side) for side in sides]
        axes.scatter(*points, marker=marker, color=colour, s=28, label=TITLES[name].replace("*", ""))
    axes.set(xlabel="report loss per supervised token", ylabel="standard deviation over seeds, % of it")
    axes.set(xscale="log", yscale="log")
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
