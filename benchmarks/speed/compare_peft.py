"""Training steps of softprompt against PEFT + Trainer: same model, same rows, same steps, in turns.

usage: python benchmarks/speed/compare_peft.py [--shape bloom-389m-zh] [--virtual-tokens 12 100] [--precision bf16 fp32]
           [--rows 160] [--rounds 3] [--data PATH] [--sides ...] [--json OUT]

Sides: softprompt, a `train.py` run; tutorial, PEFT prompt tuning with batch 1 x accumulation 8 and, in bf16, autocast
over fp32 weights; best, PEFT prompt tuning at its own best; lora and lora-all, PEFT's LoRA of rank 8 on its default
targets and on every linear layer, each at its best. The best is the fastest of batch 1 and 8, grouped by length, and
in bf16 of autocast and a base loaded in bf16: short runs before the rounds choose it. Every run is a process of its
own, warmed up on other rows, and a side's cost is the seconds for the whole set of rows, since grouping by length
makes steps of very different size. Ratios are medians over the rounds of the ratio within a round.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from flops import ModelSize, least_flops, model_size
from rows import choose_rows, encoded
from shapes import DEFAULT_CACHE, SHAPES, make_checkpoint, make_tokenizer
from sides import SCRIPTS, Place, Run, Work, run_peer, run_script, run_softprompt

from softprompt.system.process import silence_libraries

ROWS_PER_STEP = 8
METHODS = {"tutorial": "prompt", "best": "prompt", "lora": "lora", "lora-all": "lora-all-linear"}
SIDES = ("softprompt", *METHODS)
TITLES = {
    "softprompt": "**softprompt**",
    "tutorial": "PEFT, the tutorial's recipe",
    "best": "PEFT at its best",
    "lora": "PEFT LoRA r=8, default targets",
    "lora-all": "PEFT LoRA r=8, all linear",
}


@dataclass(frozen=True)
class Setup:
    """One way to run a side; `loading` is fp32, bf16 or autocast (bf16 over fp32 weights)."""

    side: str
    loading: str
    batch: int = 1

    @property
    def stored(self) -> str:
        """Precision of the checkpoint that it loads: the one it holds, so that nobody pays for a conversion."""
        return "bf16" if self.loading == "bf16" else "fp32"

    def __str__(self) -> str:
        return self.loading if self.side == "softprompt" else f"{self.loading}, batch {self.batch}"


@dataclass(frozen=True)
class Task:
    """One block of the table: what all sides do."""

    folders: dict[str, Path]  # by the precision of the stored weights
    work: Work
    virtual_tokens: int
    precision: str
    place: Place


@dataclass(frozen=True)
class Block:
    """Its result: the chosen set-up and the runs of every side, round by round."""

    virtual_tokens: int
    precision: str
    peak_flops: float
    least_flops: int
    setups: dict[str, Setup]
    runs: dict[str, list[Run]]
    trials: dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    silence_libraries()
    config = SHAPES[options.shape]
    place = Place(resolve_device(options.device), options.threads, options.cache)
    work, all_rows = make_work(options)
    stored = {setup.stored for p in options.precision for side in options.sides for setup in setups(side, p)}
    folders = {name: make_checkpoint(options.shape, config, name, all_rows, options.cache) for name in sorted(stored)}
    size, tried = model_size(config), {}
    blocks = [
        compare(Task(folders, work, virtual_tokens, precision, place), size, options, tried)
        for precision in options.precision
        for virtual_tokens in options.virtual_tokens
    ]
    caption = describe(options, work, place)
    print(f"{caption}\n\n{table(blocks, work)}")
    if options.json:
        record = {"caption": caption, "options": vars(options), "blocks": [asdict(block) for block in blocks]}
        Path(options.json).write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="bloom-389m-zh", help="default: %(default)s")
    add("--virtual-tokens", type=int, nargs="+", default=[12, 100], metavar="P", help="default: 12 100")
    add("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"], help="default: bf16 fp32")
    add("--rows", type=int, default=160, help="measured rows, a multiple of 8 (default: %(default)s)")
    add("--rounds", type=int, default=3, help="runs of every side, in turns (default: %(default)s)")
    add("--warm-up", type=int, default=2, help="steps of 8 other rows before them (default: %(default)s)")
    add("--trial-rows", type=int, default=64, help="rows of the runs that choose the best; 0: take the first untried")
    add("--data", help="rows as for train.py --data (default: generated, as long as Alpaca's)")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s")
    add("--cache", type=Path, default=DEFAULT_CACHE, help="where checkpoints are made (default: %(default)s)")
    add("--json", metavar="OUT", help="write everything that was measured there")
    options = parser.parse_args(argv)
    if options.rows < 1 or options.rows % ROWS_PER_STEP or options.trial_rows % ROWS_PER_STEP:
        parser.error(f"--rows and --trial-rows: must be multiples of {ROWS_PER_STEP}")
    return options


def resolve_device(name: str) -> str:
    """`auto` is CUDA if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_work(options: argparse.Namespace) -> tuple[Work, list]:
    """The rows to train on, warm-up first, and all rows, which train the tokenizer.

    The measured rows are the first of the data; those that follow them warm up.
    """
    warm_up = options.warm_up * ROWS_PER_STEP
    rows, all_rows = choose_rows(options.data, options.rows + warm_up)
    rows = rows[options.rows :] + rows[: options.rows]
    tokenizer = make_tokenizer(all_rows, SHAPES[options.shape].vocab_size)
    return Work(rows, encoded(rows, tokenizer), options.warm_up, ROWS_PER_STEP), all_rows


def setups(side: str, precision: str) -> list[Setup]:
    """The set-ups of which the fastest stands for a side."""
    if side == "softprompt":
        return [Setup(side, precision)]
    if side == "tutorial":
        return [Setup(side, "autocast" if precision == "bf16" else "fp32")]
    # autocast on top of a base loaded in bf16 took as long as without it
    loadings = ("autocast", "bf16") if precision == "bf16" else ("fp32",)
    return [Setup(side, loading, batch) for loading in loadings for batch in (1, 8)]


def compare(task: Task, size: ModelSize, options: argparse.Namespace, tried: dict[tuple, float]) -> Block:
    """Choose every side's best, then run the sides in turns; `tried` keeps what trials took, from block to block."""
    chosen, trials = choose(task, options, tried)
    peaks, runs = [], {side: [] for side in options.sides}
    for number in range(options.rounds):
        peaks.append(peak(task))
        for side, setup in chosen.items():
            runs[side].append(run(setup, task, task.work, f"round {number + 1} of {options.rounds}"))
    least = least_flops(size, task.work.measured, task.virtual_tokens, task.work.steps)
    return Block(task.virtual_tokens, task.precision, max(peaks), least, chosen, runs, trials)


def choose(
    task: Task, options: argparse.Namespace, tried: dict[tuple, float]
) -> tuple[dict[str, Setup], dict[str, float]]:
    """The fastest set-up of each side and the trials' seconds; single ones run too, to fill the disk's cache."""
    if not options.trial_rows:
        return {side: setups(side, task.precision)[0] for side in options.sides}, {}
    chosen, trials, work = {}, {}, task.work.first(min(options.trial_rows, options.rows))
    for side in options.sides:
        seconds = {setup: trial_seconds(setup, task, work, tried) for setup in setups(side, task.precision)}
        chosen[side] = min(seconds, key=seconds.get)
        trials |= {f"{side}: {setup}": value for setup, value in seconds.items()}
    return chosen, trials


def trial_seconds(setup: Setup, task: Task, work: Work, tried: dict[tuple, float]) -> float:
    """Seconds of a short run; LoRA has no virtual tokens, so its trials hold for any number of them."""
    virtual_tokens = None if setup.side.startswith("lora") else task.virtual_tokens
    key = (task.precision, virtual_tokens, setup)
    if key not in tried:
        tried[key] = run(setup, task, work, "trial").seconds
    return tried[key]


def run(setup: Setup, task: Task, work: Work, what: str) -> Run:
    """One process, with a line of progress."""
    folder = task.folders[setup.stored]
    if setup.side == "softprompt":
        result = run_softprompt(folder, work, task.virtual_tokens, setup.loading, task.place)
    else:
        sampling = "sequential" if setup.side == "tutorial" else "group_by_length"
        options = ["--method", METHODS[setup.side], "--virtual-tokens", str(task.virtual_tokens)]
        options += ["--loading", setup.loading, "--batch", str(setup.batch), "--sampling", sampling]
        result = run_peer(folder, work, options, task.place)
    mean = result.seconds / work.steps
    title = f"{task.precision}, P={task.virtual_tokens}, {what}: {setup.side} ({setup})"
    print(f"{title}: {mean:.3f} s a step, {result.peak_bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return result


def peak(task: Task) -> float:
    """The machine's matrix product rate in FLOP/s, in a process with the same threads."""
    options = ["--precision", task.precision, "--device", task.place.device]
    result, _ = run_script(SCRIPTS / "flops.py", options, task.place)
    return result["peak_flops"]


def describe(options: argparse.Namespace, work: Work, place: Place) -> str:
    """The table's caption: what was run, and on what."""
    text = sum(len(row.input_ids) for row in work.measured)
    source = "generated rows" if options.data is None else f"rows of {Path(options.data).name}"
    where = f"CPU threads: {place.threads}" if place.device == "cpu" else torch.cuda.get_device_name()
    return (
        f"`{options.shape}`, {len(work.measured)} {source} ({text:,} text tokens, {work.supervised_tokens:,}"
        f" supervised), {work.steps} steps of {ROWS_PER_STEP}, rounds: {options.rounds}, {where}, torch"
        f" {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    )


def table(blocks: Sequence[Block], work: Work) -> str:
    """Markdown, one line per block and side."""
    head = ["precision", "P", "side", "set-up", "s/step, mean", "s/step, median", "supervised tokens/s"]
    head += ["text tokens/s", "peak GB", "FLOP utilisation", "time ÷ softprompt's", "memory ÷ softprompt's"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---|" + "---:|" * (len(head) - 4)]
    text = sum(len(row.input_ids) for row in work.measured)
    for block in blocks:
        for side in block.runs:
            cells = [block.precision, str(block.virtual_tokens), TITLES[side], str(block.setups[side])]
            lines.append("| " + " | ".join(cells + figures(block, side, text, work)) + " |")
    peaks = {f"{block.precision} {block.peak_flops / 1e9:,.0f} GFLOP/s": None for block in blocks}
    return "\n".join(lines) + f"\n\nBest of three large matrix products: {', '.join(peaks)}."


def figures(block: Block, side: str, text_tokens: int, work: Work) -> list[str]:
    """The measured cells of a line."""
    runs = block.runs[side]
    seconds = statistics.median(run.seconds for run in runs)
    steps = [second for run in runs for second in run.step_seconds]
    return [
        f"{seconds / work.steps:.3f}",
        f"{statistics.median(steps):.3f}",
        f"{work.supervised_tokens / seconds:,.0f}",
        f"{text_tokens / seconds:,.0f}",
        f"{peak_gigabytes(runs):.2f}",
        f"{block.least_flops / seconds / block.peak_flops:.0%}",
        *ratios(block, side),
    ]


def ratios(block: Block, side: str) -> list[str]:
    """Seconds and memory over softprompt's, or dashes where it did not run."""
    ours, theirs = block.runs.get("softprompt"), block.runs[side]
    if ours is None:
        return ["–", "–"]
    time = statistics.median(their.seconds / our.seconds for our, their in zip(ours, theirs, strict=True))
    return [f"{time:.2f}×", f"{peak_gigabytes(theirs) / peak_gigabytes(ours):.2f}×"]


def peak_gigabytes(runs: Sequence[Run]) -> float:
    """Median over the rounds."""
    return statistics.median(run.peak_bytes for run in runs) / 1e9


if __name__ == "__main__":
    main()
