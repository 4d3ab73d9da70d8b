"""Figures of the study from its records: means with intervals, shares of a gain, steps to a loss, the targets."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from study_peers import VIRTUAL_TOKENS
from study_plan import ALPHAS, LIMIT_TASK, PROMPT_TUNING, STEPS, TUTORIAL_RATE, best_rate, best_start
from study_results import Results

from softprompt.training.optimizer import RELATIVE_RATES

# two-sided 95 % quantiles of Student's t by degrees of freedom
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
TITLES = {
    "none": "no prompt",
    "softprompt": "**softprompt, default**",
    "prompt-text": "PEFT prompt tuning, text",
    "tutorial": "PEFT prompt tuning, text, the tutorial's rate",
    "prompt-vocab": "PEFT prompt tuning, sampled vocabulary",
    "p-tuning": "PEFT p-tuning",
    "prefix": "PEFT prefix tuning",
    "lora": "PEFT LoRA r=8",
    "full": "full fine-tuning",
}


@dataclass(frozen=True)
class Side:
    """A method's final runs on one task, one record for each seed."""

    name: str
    runs: list[dict]

    @property
    def losses(self) -> list[float]:
        """Loss on the report rows of the weights that the select rows chose."""
        return [run["report_loss"] for run in self.runs]

    @property
    def loss(self) -> float:
        """Their mean."""
        return mean(self.losses)

    @property
    def final_select(self) -> float:
        """Held-out loss at the end of the run, mean over seeds; infinite where a run was not finite."""
        ends = [run["final_select"] for run in self.runs]
        return math.inf if None in ends else mean(ends)

    @property
    def curve(self) -> list[tuple[int, list[float]]]:
        """(step, held-out loss of every seed) at the steps that all seeds evaluated."""
        histories = [{step: loss for step, loss in run["history"] if loss is not None} for run in self.runs]
        steps = sorted(set.intersection(*map(set, histories)))
        return [(step, [history[step] for history in histories]) for step in steps]


def half_interval(values: Sequence[float]) -> float | None:
    """Half the 95 % t-interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    return T_QUANTILES[min(len(values) - 1, max(T_QUANTILES))] * stdev(values) / math.sqrt(len(values))


def sides_of(results: Results, model: str, task: str) -> dict[str, Side]:
    """The final runs of a task by side, in the order of the tables; sides without a run are left out."""
    found: dict[str, list[dict]] = {name: [] for name in TITLES}
    for record in results:
        of_task = record["stage"] == model and record["task"] == task and "failed" not in record
        if not of_task or record["steps"] not in (STEPS[model], 0):
            continue
        method, rate = record["method"], record["rate"]
        if rate in (None, best_rate(model, task, method, results)):
            found[method].append(record)
        if (method, rate) == ("prompt-text", TUTORIAL_RATE):
            found["tutorial"].append(record)
    return {name: Side(name, runs) for name, runs in found.items() if runs}


def best_prompt_tuning(sides: dict[str, Side]) -> Side | None:
    """PEFT's prompt tuning at its best rate with the better init, by the loss that selects."""
    found = [sides[name] for name in PROMPT_TUNING if name in sides]
    return min(found, key=lambda side: mean(run["best_select"] for run in side.runs)) if found else None


def share_of_gain(sides: dict[str, Side], name: str, reference: str) -> float | None:
    """Gain over the base alone as a share of a reference method's."""
    if not {"none", name, reference} <= set(sides):
        return None
    base = sides["none"].loss
    return (base - sides[name].loss) / (base - sides[reference].loss)


def steps_to(side: Side, loss: float) -> int | None:
    """First evaluated step at which the mean held-out loss over seeds is at most `loss`."""
    return next((step for step, losses in side.curve if mean(losses) <= loss), None)


def deviation(side: Side) -> float | None:
    """Standard deviation of the reported losses over their mean, which seeds do not enlarge by being more."""
    return stdev(side.losses) / side.loss if len(side.runs) > 1 else None


def spread(side: Side) -> float:
    """(max - min) / mean of the reported losses over seeds."""
    return (max(side.losses) - min(side.losses)) / side.loss


@dataclass(frozen=True)
class Pace:
    """A task's two curves and the seconds of a step that belong to them."""

    ours: Side
    peer: Side
    step: float
    peer_step: float
    peer_way: str  # how PEFT was fastest

    @property
    def peer_seconds(self) -> float:
        """Of PEFT's whole run."""
        return self.peer.curve[-1][0] * self.peer_step

    @property
    def seconds_to_peer(self) -> float | None:
        """Until our held-out loss was what PEFT's run ended with; None if it never was."""
        steps = steps_to(self.ours, self.peer.final_select)
        return None if steps is None else steps * self.step


def paces_of(results: Results, seconds_file: Path) -> dict[str, Pace]:
    """By model and task, as far as `study_seconds.py` has timed them; empty without its file."""
    timed = json.loads(seconds_file.read_text("utf-8")) if seconds_file.exists() else {}
    found = {}
    for model, tasks in timed.items():
        for task, record in tasks.items():
            sides = sides_of(results, model, task)
            ours, peer = sides.get("softprompt"), best_prompt_tuning(sides)
            steps = {way: median(seconds) for way, seconds in record["step_seconds"].items()}
            step = steps.pop("softprompt")
            way = min(steps, key=steps.__getitem__)
            if ours and peer:
                found[f"{model} {task}"] = Pace(ours, peer, step, steps[way], way)
    return found


def sides_by_task(results: Results, tasks: dict[str, Sequence[str]]) -> dict[str, dict[str, Side]]:
    """The sides of `tasks` by model and task, where softprompt has run."""
    every = {f"{model} {task}": sides_of(results, model, task) for model, names in tasks.items() for task in names}
    return {where: sides for where, sides in every.items() if "softprompt" in sides}


def targets(results: Results, tasks: dict[str, Sequence[str]]) -> list[tuple[str, str, str, list[str]]]:
    """Rows of the targets' table: what, must, aim, and the figure on every model and task where it can be taken."""
    every = sides_by_task(results, tasks)
    against, steps, spreads = [], [], []
    for where, sides in every.items():
        ours, peer = sides["softprompt"], best_prompt_tuning(sides)
        if peer:
            against.append(f"{where} {ours.loss / peer.loss - 1:+.1%}")
            reached = steps_to(ours, peer.final_select)
            total = STEPS[where.split()[0]]
            steps.append(f"{where} {f'{reached / total:.0%}' if reached is not None else 'not reached'}")
        if len(ours.runs) > 1:
            spreads.append(f"{where} {spread(ours):.1%}")
    own = [record for record in results if record["method"] == "softprompt" and record["alpha"] is None]
    diverged = sum("failed" in record or record["diverged"] for record in own)  # a run that ends in NaN is "failed"
    return [
        ("held-out loss against PEFT at its best grid rate", "+0 %", "-5 %", against),
        ("steps to PEFT's final held-out loss", "100 %", "50 %", steps),
        ("share of full fine-tuning's gain, embedded BLOOM", "80 %", "95 %", _shares(every, "full", "bloom")),
        ("share of LoRA's gain, SmolLM2", "80 %", "100 %", _shares(every, "lora", "smollm2")),
        ("default rate against each base's best, embeddings 100x apart", "3 %", "1 %", scale_losses(results)),
        ("spread over seeds (max - min)", "5 %", "2 %", spreads),
        ("diverging runs of softprompt's default", "0", "0", [str(diverged)]),
    ]


def _shares(every: dict[str, dict[str, Side]], reference: str, model: str) -> list[str]:
    shares = {where: share_of_gain(sides, "softprompt", reference) for where, sides in every.items()}
    return [f"{where} {share:.1%}" for where, share in shares.items() if share is not None and where.startswith(model)]


def by_steps(results: Results) -> dict[int, dict[str, Side]]:
    """By the number of steps on one task of the BLOOM: softprompt's default, and PEFT's prompt tuning as `peer`."""
    longer = [run for run in results if run["stage"] == "steps" and "failed" not in run]
    if not longer:
        return {}
    usual = sides_of(results, "bloom", LIMIT_TASK)
    sides = {"softprompt": usual.get("softprompt"), "peer": usual.get(best_start("bloom", LIMIT_TASK, results)[0])}
    rows = {STEPS["bloom"]: {name: side for name, side in sides.items() if side}}
    for steps in sorted({run["steps"] for run in longer}):
        ours = [run for run in longer if run["steps"] == steps and run["method"] == "softprompt"]
        peers = [run for run in longer if run["steps"] == steps and run["method"] != "softprompt"]
        rows[steps] = {name: Side(name, runs) for name, runs in (("softprompt", ours), ("peer", peers)) if runs}
    return rows


def by_tokens(results: Results) -> dict[int, Side]:
    """softprompt's default on one task of the embedded BLOOM by its virtual tokens; empty without runs of the stage."""
    runs = [run for run in results if run["stage"] == "tokens" and "failed" not in run]
    lengths = {run["virtual_tokens"] for run in runs}
    found = {length: Side("softprompt", [run for run in runs if run["virtual_tokens"] == length]) for length in lengths}
    usual = sides_of(results, "bloom", LIMIT_TASK).get("softprompt")
    found |= {VIRTUAL_TOKENS: usual} if usual and found else {}
    return dict(sorted(found.items()))


def scale_table(records: Iterable[dict]) -> dict[tuple[str, float], dict[float, float]]:
    """For every base of the `scales` stage the mean report loss at each alpha."""
    found: dict[tuple[str, float], dict[float, list[float]]] = {}
    for record in records:
        if record["stage"] == "scales" and "failed" not in record:
            base = found.setdefault((record["model"], record["scale"]), {})
            base.setdefault(record["alpha"], []).append(record["report_loss"])
    return {base: {alpha: mean(row[alpha]) for alpha in ALPHAS if alpha in row} for base, row in found.items()}


def scale_losses(records: Iterable[dict], default: float = RELATIVE_RATES["soap"]) -> list[str]:
    """How much the default rate loses to the best of the grid on every base."""
    rows = scale_table(records)
    return [
        f"{model} x{scale:g} {row[default] / min(row.values()) - 1:+.1%}"
        for (model, scale), row in rows.items()
        if default in row
    ]
