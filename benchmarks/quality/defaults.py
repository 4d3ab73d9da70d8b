"""How the defaults of training were chosen: one change at a time, on tasks that no quality figure is reported on.

usage: python benchmarks/quality/defaults.py [NAME ...] [--model bloom] [--tasks TASK ...] [--virtual-tokens 12]
       [--steps 240] [--seeds 0 1]

Every variant trains a prompt on the tuning tasks of `study_tasks.py`, or on `--tasks`; a line gives the lowest of ten
held-out losses of each run, and the mean of their ratios to the first variant's, the same task and seed. Report rows
are not read.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import paths  # noqa: F401
import torch
from study_tasks import REPORTED, TUNING, task
from updates import UPDATES, Reparameterised, disturb
from variants import VARIANTS, Variant

from softprompt import SoftPromptModel
from softprompt.base.loading import Base, load_base
from softprompt.config.commands import DEFAULT_MODEL, TrainConfig
from softprompt.engine.passes import pass_losses, row_scores, total_score
from softprompt.optim.schedule import rate_factor, rows_of_step
from softprompt.prompt.start import initial_prompt
from softprompt.tokens.encoding import Encoder, encode_rows

ROWS_PER_STEP = 8
EVALUATIONS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--model", default="bloom", help="bloom, or a folder with SmolLM2 (default: %(default)s)")
    every = [name for table in (TUNING, REPORTED) for names in table.values() for name in names]
    parser.add_argument(
        "--tasks", nargs="+", choices=every, help="default: those for tuning; on the others nothing may be chosen"
    )
    parser.add_argument("--virtual-tokens", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=240, help="of 8 rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--results", type=Path, help="keep every run there, as JSON lines, and skip those it holds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = DEFAULT_MODEL if options.model == "bloom" else options.model
    base = load_base(name, device=torch.device("cpu"), precision="fp32")
    tasks = options.tasks or TUNING["bloom" if options.model == "bloom" else "smollm2"]
    known, length = _known(options.results), options.virtual_tokens
    first: dict[tuple[str, int], float] = {}
    for variant in options.names or VARIANTS:
        ratios, losses, seconds = [], [], 0.0
        for task_name in tasks:
            for seed in options.seeds:
                key = json.dumps([options.model, length, options.steps, task_name, seed, VARIANTS[variant].changes])
                if key not in known:
                    start = time.perf_counter()
                    curve = train(base, task_name, VARIANTS[variant], length, options.steps, seed)
                    seconds += time.perf_counter() - start
                    known[key] = curve
                    _keep(options.results, key, curve)
                losses.append(min(known[key]))
                ratios.append(losses[-1] / first.setdefault((task_name, seed), losses[-1]))
        shown = " ".join(f"{loss:.4f}" for loss in losses)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{variant:28} {mean:6.3f}   {shown}   {seconds:.0f} s", flush=True)


def train(base: Base, task_name: str, variant: Variant, length: int, steps: int, seed: int) -> list[float]:
    """The held-out losses of one run with `length` virtual tokens."""
    rows, _ = encode_rows(task(task_name).train, Encoder(base.tokenizer), max_length=256)
    held_out, _ = encode_rows(task(task_name).select, Encoder(base.tokenizer), max_length=256)
    config = TrainConfig(init=variant.init, virtual_tokens=length, seed=seed)
    model = SoftPromptModel(base.model, initial_prompt(config, base, rows))
    weight, curve = model.soft_prompt.weight, []
    if variant.roundings:
        disturb(weight, seed)
        seed = 0
    update = (Reparameterised if variant.mlp or variant.rank else UPDATES[variant.update])(weight, variant)
    factor = rate_factor(variant.schedule, steps, variant.warmup)
    mean = weight.detach().clone()
    for step in range(steps):
        members = [rows[place] for place in rows_of_step(step, len(rows), ROWS_PER_STEP, seed)]
        supervised = sum(row.num_supervised for row in members)
        for loss in pass_losses(model, members, max_tokens=4096, rows_per_batch=8, pad_token_id=base.pad_token_id):
            (loss / supervised).backward()
        update.step(max(factor(step), 1e-3) if variant.warmup else factor(step))
        if variant.average is not None:
            mean.lerp_(weight.detach(), 1 - min(variant.average, 1 - 1 / (1 + step)))
        if (step + 1) % (steps // EVALUATIONS) == 0:
            last = weight.detach().clone()
            with torch.no_grad():
                weight.copy_(mean if variant.average is not None else last)
                scores = row_scores(model, held_out, pad_token_id=base.pad_token_id)
                weight.copy_(last)
            loss = total_score(scores).loss
            curve.append(loss if math.isfinite(loss) else math.inf)
    return curve


def _known(results: Path | None) -> dict[str, list[float]]:
    if results is None or not results.exists():
        return {}
    return dict(_lines(results))


def _lines(results: Path) -> Iterator[tuple[str, list[float]]]:
    for line in results.read_text("utf-8").splitlines():
        record = json.loads(line)
        yield record["key"], record["curve"]


def _keep(results: Path | None, key: str, curve: list[float]) -> None:
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "curve": curve}) + "\n")


if __name__ == "__main__":
    main()
