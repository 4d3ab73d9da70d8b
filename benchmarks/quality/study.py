"""The quality study: softprompt's defaults against PEFT's methods and full fine-tuning, by held-out loss.

usage: python benchmarks/quality/study.py [--stage STAGE] [--jobs N] [--threads T] [--minutes M] [--full] [--list]
       python benchmarks/quality/study.py --report

Stages: bloom, smollm2, scales, steps, tokens; without --stage all run, and the report is written.
Every finished run is a line of --results and is not run again, so a stopped study goes on with the same command.
"""

import argparse
import dataclasses
import math
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from paths import ROOT
from shapes import DEFAULT_CACHE
from study_plan import ALL_METHODS, STAGES, final_runs, search_runs, tasks_of
from study_report import write_report
from study_results import Results
from study_runs import Run, execute
from study_smollm2 import NAME
from study_tasks import LIMITS, REPORTED, TUNING

from softprompt.system.process import silence_libraries


def main(argv: Sequence[str] | None = None) -> None:
    """Run or list what is to be done, or write the report."""
    options = parse(argv)
    silence_libraries()
    results = Results(options.results)
    if not options.report:
        for stage in [options.stage] if options.stage else STAGES:
            do_stage(stage, results, options)
    if options.report or not (options.stage or options.list):
        print(*write_report(results, options.document), sep="\n")


def do_stage(stage: str, results: Results, options: argparse.Namespace) -> None:
    """The searches of a stage and then what they lead to, or a list of both as far as it is known."""
    tasks = options.tasks or (*tasks_of(stage), *(LIMITS.get(stage, ()) if options.full else ()))
    plans = (
        lambda: search_runs(stage, options.methods, tasks),
        lambda: final_runs(stage, options.methods, tasks, results),
    )
    begin = time.monotonic()
    if options.list:
        print(f"stage {stage}")
        show(results.pending([run for plan in plans for run in plan()], options.retry), results)
        return
    for plan in plans:
        runs = results.pending(plan(), options.retry)
        if any(run.model == "smollm2" for run in runs) and not options.smollm2.is_dir():
            print(f"--smollm2 {options.smollm2}: not there, so its runs are left out; make it with study_smollm2.py")
            runs = [run for run in runs if run.model != "smollm2"]
        work(runs, results, options, math.inf if options.full else begin + 60 * options.minutes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=STAGES, help="default: all, one after another, and the report")
    parser.add_argument("--methods", nargs="+", choices=ALL_METHODS, default=ALL_METHODS)
    known = [task for table in (REPORTED, TUNING, LIMITS) for names in table.values() for task in names]
    parser.add_argument("--tasks", nargs="+", choices=known, help="default: the tasks that are reported")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run side by side")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads of each")
    parser.add_argument(
        "--minutes", type=float, default=90, help="start no run of a stage after so many (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="no such limit, and also the tasks that no target is about")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "quality.jsonl")
    parser.add_argument("--retry", action="store_true", help="do failed runs again")
    parser.add_argument("--list", action="store_true", help="only print what is to do")
    parser.add_argument("--report", action="store_true", help="only write the tables and plots")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "quality.md", help="where --report writes")
    parser.add_argument("--smollm2", type=Path, default=DEFAULT_CACHE / NAME, help="made by study_smollm2.py")
    return parser.parse_args(argv)


def work(runs: list[Run], results: Results, options: argparse.Namespace, deadline: float) -> None:
    """Do `runs` in order, `--jobs` at a time; none is started after the deadline."""
    folders, todo = {"smollm2": str(options.smollm2)}, jobs_of(runs)
    context = multiprocessing.get_context("spawn")  # a fork would share PyTorch's threads
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=begin_worker) as pool:
        under_way = set()
        while todo or under_way:
            while todo and len(under_way) < options.jobs and time.monotonic() < deadline:
                under_way.add(pool.submit(execute, todo.pop(0), folders, options.threads))
            left = [run for job in todo for run in job]
            if not under_way:
                print(f"--minutes are over; {len(left)} runs are left", flush=True)
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for record in (record for future in done for record in future.result()):
                results.add(record)
                print(f"{line(record)}; about {minutes(left, results, options.jobs)} left", flush=True)


def jobs_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of softprompt that differ in their seed alone, which share their passes, and all others one by one."""
    jobs: dict[Run, list[Run]] = {}
    for run in runs:
        jobs.setdefault(dataclasses.replace(run, seed=0) if run.method == "softprompt" else run, []).append(run)
    return list(jobs.values())


def begin_worker() -> None:
    """Quiet, and gone with the process that started it: a pool's workers otherwise outlive a parent that is killed."""
    silence_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def line(record: dict) -> str:
    """What a run gave, in one line."""
    run = Run(**{name: record[name] for name in Run.__dataclass_fields__})
    if "failed" in record:
        return f"{run}: failed: {record['failed']}"
    at = f" (step {record['best_step']})" if "best_step" in record else ""
    losses = f"select {record['best_select']:.4f}{at}, report {record['report_loss']:.4f}"
    return f"{run}: {losses}{', diverged' * record.get('diverged', False)}, {record['seconds']:.0f} s"


def minutes(runs: list[Run], results: Results, jobs: int) -> str:
    """How long `runs` take, by what runs of the same kind took; + where a kind was not seen yet."""
    took = defaultdict(list)
    for record in results:
        if "failed" not in record:
            took[record["model"], record["method"]].append(record["seconds"] / max(record["steps"], 1))
    costs = {kind: sum(seconds) / len(seconds) for kind, seconds in took.items()}
    known = [costs[run.model, run.method] * max(run.steps, 1) for run in runs if (run.model, run.method) in costs]
    return f"{sum(known) / 60 / jobs:.0f}{'+' * (len(known) < len(runs))} minutes"


def show(runs: list[Run], results: Results) -> None:
    """The plan as far as it is known: winners follow from searches."""
    for run in runs:
        print(run)
    print(f"{len(runs)} runs, about {minutes(runs, results, 1)} one after another")


if __name__ == "__main__":
    main()
