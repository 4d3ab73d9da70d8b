"""Prompt tuning and LoRA of PEFT against softprompt's default on a chat model, written by its own chat template.

usage: python benchmarks/quality/chat_study.py --model FOLDER [--threads 1] [--minutes M] [--list]
       python benchmarks/quality/chat_study.py --report

Every side gets the same input_ids and labels, which softprompt's encoder writes with the base's chat template. A peer's
rate is chosen with one seed and fewer steps, and the best one runs with three other seeds at all of the steps.
Every finished run is a line of --results and is not run again, so a stopped study goes on with the same command.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from paths import ROOT
from study_report import table
from study_results import Results
from study_runs import Run, Splits, outcome_of
from study_summary import TITLES, Side, half_interval
from study_tasks import Task, task

from softprompt.base.loading import Base, load_base
from softprompt.data.row import Row, RowKinds
from softprompt.prompt.encoder import encoder_for
from softprompt.system.files import write_atomic
from softprompt.system.process import silence_libraries

BEGIN, END = "<!-- chat study: begin -->", "<!-- chat study: end -->"
STAGE, MODEL, TASK = "chat", "smollm2", "topic"
ROWS = {"train": 1000, "select": 24, "report": 60}
LONGEST_QUESTION = 48  # characters
STEPS, SEARCH_STEPS = 24, 16
SEARCH_SEED, SEEDS = 0, (1, 2, 3)
RATES = {"prompt-text": (0.003, 0.03, 0.3, 1.0), "lora": (0.001, 0.01)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run or list what is to be done, or write the report."""
    options = parse(argv)
    silence_libraries()
    results = Results(options.results)
    if options.report:
        print(write_report(results, options.document))
        return
    if options.list:
        print(*(f"{'done' if run in results else 'open'}: {run}" for run in planned(results)), sep="\n")
        return
    torch.set_num_threads(options.threads)
    base = load_base(options.model, device=torch.device("cpu"), precision="fp32")
    splits = splits_of(english(task(TASK)), base)
    begin = time.monotonic()
    # what comes next may follow from the run before it, so the plan is made anew each time
    while run := next((run for run in planned(results) if run not in results), None):
        if time.monotonic() - begin > 60 * options.minutes:
            break
        record = execute(run, base, options.model, splits)
        results.add(record)
        print(f"{run}: {record['report_loss']:.4f} in {record['seconds']:.0f} s", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of SmolLM2-135M-Instruct with its chat template")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=90, help="start no run after these (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "quality-chat.jsonl")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "quality.md")
    parser.add_argument("--list", action="store_true", help="say which runs there are, and do none")
    parser.add_argument("--report", action="store_true", help="write the tables, and do no run")
    options = parser.parse_args(argv)
    if not (options.model or options.list or options.report):
        parser.error("--model: give the folder of a chat model")
    return options


def english(rows: Task) -> Task:
    """The first short English rows of a task, as many of each list as the study takes."""
    return Task(**{name: [row for row in split if _is_short(row)][: ROWS[name]] for name, split in vars(rows).items()})


def _is_short(row: Row) -> bool:
    question = row.messages[-1]["content"]
    return question.isascii() and len(question) <= LONGEST_QUESTION


def splits_of(rows: Task, base: Base) -> Splits:
    """The rows as token ids under the base's own chat template, the same for every side."""
    return Splits.of(rows, base, encoder_for(base, RowKinds.of(*rows.train), template="chat"))


def planned(results: Results) -> Iterator[Run]:
    """Every run as far as it is known: the base alone, the searches, and the sides seed by seed."""
    yield _run("none", None, 0, 0)
    for method, rates in RATES.items():
        yield from (_run(method, rate, SEARCH_SEED, SEARCH_STEPS) for rate in rates)
    best = {method: best_rate(method, results) for method in RATES}
    for seed in SEEDS:
        yield _run("softprompt", None, seed, STEPS)
        yield from (_run(method, rate, seed, STEPS) for method, rate in best.items() if rate is not None)


def _run(method: str, rate: float | None, seed: int, steps: int) -> Run:
    return Run(STAGE, MODEL, TASK, method, rate, seed, steps)


def best_rate(method: str, results: Results) -> float | None:
    """The rate whose search had the lowest selected held-out loss; None while the search is not done."""
    runs = [_run(method, rate, SEARCH_SEED, SEARCH_STEPS) for rate in RATES[method]]
    if any(run not in results for run in runs):
        return None
    return min(runs, key=lambda run: results[run]["best_select"]).rate


def execute(run: Run, base: Base, folder: str, splits: Splits) -> dict:
    """Do a run; returns its record."""
    begin = time.perf_counter()
    found = outcome_of(run, base, folder, splits)
    return dataclasses.asdict(run) | found | {"seconds": round(time.perf_counter() - begin, 2)}


def write_report(results: Results, document: Path) -> Path:
    """Put the tables into `document` between their markers; returns its path."""
    text = document.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{document}: no place for the tables; put {BEGIN} and {END} there")
    before, rest = text.split(BEGIN, 1)
    tables = "\n\n".join([table_of_sides(results), table_of_search(results)])
    write_atomic(document, f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END, 1)[1]}".encode())
    return document


def table_of_sides(results: Results) -> str:
    """Every side's loss on the report rows at its rate, and against PEFT's prompt tuning."""
    done: dict[str, list[dict]] = {}
    for run in planned(results):
        if run in results and run.steps != SEARCH_STEPS:
            done.setdefault(run.method, []).append(results[run])
    sides = {name: Side(name, done[name]) for name in TITLES if name in done}
    peer = sides.get("prompt-text")
    rows = [
        [
            TITLES[name],
            f"{side.runs[0]['learning_rate']:.3g}" if name != "none" else "-",
            f"{side.runs[0]['trainable']:,}" if name != "none" else "0",
            loss_cell(side),
            f"{side.loss / peer.loss:.3f}" if peer else "-",
            f"{sum(run['diverged'] for run in side.runs)} of {len(side.runs)}" if name != "none" else "-",
        ]
        for name, side in sides.items()
    ]
    return table(["side", "rate", "trained", "report loss", "against PEFT's prompt tuning", "diverged"], rows)


def loss_cell(side: Side) -> str:
    """Mean and 95 % t-interval, with every seed's loss."""
    half = half_interval(side.losses)
    if half is None:
        return f"{side.loss:.4f}"
    return f"{side.loss:.4f} ± {half:.4f} ({', '.join(f'{loss:.4f}' for loss in side.losses)})"


def table_of_search(results: Results) -> str:
    """The losses that chose the peers' rates; the winners are bold."""
    rows = []
    for method, rates in RATES.items():
        runs = [_run(method, rate, SEARCH_SEED, SEARCH_STEPS) for rate in rates]
        winner = best_rate(method, results)
        found = [(run.rate, results[run]["best_select"]) for run in runs if run in results]
        cells = [f"{rate:g}: {loss:.4f}" for rate, loss in found]
        cells = [f"**{cell}**" if rate == winner else cell for cell, (rate, _) in zip(cells, found, strict=True)]
        rows.append([TITLES[method], "; ".join(cells) or "-"])
    return table(["side", f"rate: held-out loss of one seed after {SEARCH_STEPS} steps"], rows)


if __name__ == "__main__":
    main()
