"""What the study runs: rates, seeds and steps of every method, and the order in which they come."""

from collections.abc import Sequence

from study_peers import METHODS
from study_results import Results
from study_runs import Run
from study_tasks import REPORTED

STAGES = ("bloom", "smollm2", "scales", "steps", "tokens")
PROMPT_TUNING = ("prompt-text", "prompt-vocab")
ALL_METHODS = (*METHODS, "none", "softprompt")
STEPS = {"bloom": 240, "smollm2": 150}
SEARCH_SHARE = 3  # a rate is searched at a third of the steps
SEARCH_SEED = 0
SEEDS = (1, 2, 3)
OUR_SEEDS = (1, 2, 3, 4, 5)
TUTORIAL_RATE = 5e-5
PROMPT_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
RATES = {
    "prompt-text": PROMPT_RATES,
    "prompt-vocab": PROMPT_RATES,
    "p-tuning": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "prefix": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "lora": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "full": (3e-5, 1e-4, 3e-4, 1e-3),
}
FURTHER_RATES: dict[str, dict[str, tuple[float, ...]]] = {  # where a method was best at the end of its grid
    "bloom": {"full": (3e-3,)},
    "smollm2": {"prompt-text": (1.0,), "prompt-vocab": (1.0, 3.0)},
}
ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0)
SCALES = (0.1, 1.0, 10.0)
SCALES_STEPS = {"bloom": 240, "smollm2": 90}
LIMIT_TASK = "topic"  # of the embedded BLOOM, for what more steps and more virtual tokens give
MORE_STEPS = (480, 960)
LENGTHS = (4, 40, 100)
SCALES_TASK = {"bloom": "unseen", "smollm2": "category"}


def rates_of(model: str, method: str) -> tuple[float, ...]:
    """The grid of a peer."""
    return (*RATES.get(method, ()), *FURTHER_RATES[model].get(method, ()))


def search_runs(stage: str, methods: Sequence[str], tasks: Sequence[str]) -> list[Run]:
    """Every rate of every peer, with one seed and a third of the steps. softprompt has its default, and no search."""
    if stage not in STEPS:
        return []
    steps = STEPS[stage] // SEARCH_SHARE
    return [
        Run(stage, stage, task, method, rate, SEARCH_SEED, steps)
        for method in METHODS
        if method in methods
        for task in tasks
        for rate in rates_of(stage, method)
    ]


def final_runs(stage: str, methods: Sequence[str], tasks: Sequence[str], results: Results) -> list[Run]:
    """All steps and several seeds, for the winner of every search that is done; softprompt comes last."""
    if stage == "scales":
        return scale_runs() if "softprompt" in methods else []
    if stage == "tokens":
        return token_runs() if "softprompt" in methods else []
    if stage == "steps":
        return [run for run in step_runs(results) if run.method in methods]
    steps, runs = STEPS[stage], []
    if "none" in methods:
        runs += [Run(stage, stage, task, "none", None, 0, 0) for task in tasks]
    for method in METHODS:
        for task in tasks if method in methods else ():
            whole = len(searched(stage, task, method, results)) == len(rates_of(stage, method))
            winner = best_rate(stage, task, method, results) if whole else None
            runs += [Run(stage, stage, task, method, winner, seed, steps) for seed in SEEDS if winner]
    if "prompt-text" in methods:
        runs += [Run(stage, stage, task, "prompt-text", TUTORIAL_RATE, seed, steps) for task in tasks for seed in SEEDS]
    if "softprompt" in methods:
        runs += [Run(stage, stage, task, "softprompt", None, seed, steps) for task in tasks for seed in OUR_SEEDS]
    return runs


def scale_runs() -> list[Run]:
    """softprompt at several rates relative to the prompt's RMS, on bases whose embeddings differ in scale."""
    bases = [("bloom", scale, SEEDS) for scale in SCALES] + [("smollm2", 1.0, SEEDS[:1])]
    return [
        Run(
            "scales", model, SCALES_TASK[model], "softprompt", None, seed, SCALES_STEPS[model], alpha=alpha, scale=scale
        )
        for model, scale, seeds in bases
        for alpha in ALPHAS
        for seed in seeds
    ]


def step_runs(results: Results) -> list[Run]:
    """softprompt's default and PEFT's prompt tuning, with the rate and the init that its search was best with."""
    sides: list[tuple[str, float | None, tuple[int, ...]]] = [("softprompt", None, OUR_SEEDS)]
    method, rate = best_start("bloom", LIMIT_TASK, results)
    sides += [(method, rate, SEEDS)] if method else []
    return [
        Run("steps", "bloom", LIMIT_TASK, name, at, seed, steps)
        for steps in MORE_STEPS
        for name, at, seeds in sides
        for seed in seeds
    ]


def token_runs() -> list[Run]:
    """softprompt's default with shorter and longer prompts on the embedded BLOOM."""
    return [
        Run("tokens", "bloom", LIMIT_TASK, "softprompt", None, seed, STEPS["bloom"], virtual_tokens=length)
        for length in LENGTHS
        for seed in OUR_SEEDS
    ]


def best_start(model: str, task: str, results: Results) -> tuple[str, float] | tuple[None, None]:
    """PEFT's prompt tuning by the lowest loss in the searches of both starts, once they are done: method and rate."""
    found = {method: searched(model, task, method, results) for method in PROMPT_TUNING}
    if any(len(records) < len(rates_of(model, method)) for method, records in found.items()):
        return None, None
    losses = {
        (method, rate): record["best_select"]
        for method, records in found.items()
        for rate, record in records.items()
        if "failed" not in record
    }
    return min(losses, key=losses.__getitem__) if losses else (None, None)


def searched(model: str, task: str, method: str, results: Results) -> dict[float, dict]:
    """The search's records by rate, as far as they are there."""
    steps = STEPS[model] // SEARCH_SHARE
    runs = [Run(model, model, task, method, rate, SEARCH_SEED, steps) for rate in rates_of(model, method)]
    return {run.rate: results[run] for run in runs if run in results}


def best_rate(model: str, task: str, method: str, results: Results) -> float | None:
    """The rate whose search run had the lowest selected held-out loss; None without one that worked."""
    found = {rate: record for rate, record in searched(model, task, method, results).items() if "failed" not in record}
    return min(found, key=lambda rate: found[rate]["best_select"]) if found else None


def tasks_of(stage: str) -> tuple[str, ...]:
    """The reported tasks of a stage."""
    return REPORTED.get(stage, ())
