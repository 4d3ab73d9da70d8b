"""A step of distilling a text, against two passes over PEFT-style padded batches with the text recomputed.

usage: python benchmarks/speed/distill_steps.py [--model FOLDER | --shape llama-135m] [--text-tokens 150 600]
           [--json OUT]

Both sides distil the same random text into the same virtual tokens from the same rows, 8 to a step, in one process and
in turns; their losses before the first step are compared. The padded side runs the base behind the text without
gradient, then PEFT's prompt tuning model, and takes the divergence of whole logits at the answers. Ours is timed in
the first epoch, in which the teacher runs, and in a later one, in which its states are kept; a run of several epochs is
the mean of them. Peak memory is that of a process for each side, and of one that trains on the answers as usual.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PromptTuningConfig, TaskType, get_peft_model
from rows import choose_rows, encoded
from shapes import DEFAULT_CACHE, DTYPES, SHAPES, make_checkpoint, make_tokenizer
from sides import Place, run_script
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from softprompt.config.commands import TrainConfig
from softprompt.engine.front import Front
from softprompt.engine.fronts import front_cache
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import tokens_that_fit
from softprompt.engine.teacher import Teacher
from softprompt.packs.batches import pad_rows
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow
from softprompt.training.objective import Divergence, Objective
from softprompt.training.optimizer import PromptOptimizer

ROWS_PER_STEP = 8
SIDES = ("ours", "padded", "ordinary")
Steps = list[list[EncodedRow]]


@dataclass(frozen=True)
class Task:
    """What every side works on: a base, the ids of a text, rows step by step, and the number of virtual tokens."""

    base: PreTrainedModel
    text: list[int]
    steps: Steps
    virtual_tokens: int

    @property
    def rows(self) -> list[EncodedRow]:
        """The rows of all steps."""
        return [row for step in self.steps for row in step]

    def prompt(self) -> SoftPromptEmbedding:
        """The first P embeddings of the text, with which all sides start."""
        return SoftPromptEmbedding.from_ids(self.text, self.base.get_input_embeddings(), self.virtual_tokens)


class Ours:
    """softprompt's objective and optimizer: the divergence from a teacher, or with `ordinary` the cross-entropy."""

    def __init__(self, task: Task, *, ordinary: bool = False) -> None:
        self.task, self.ordinary = task, ordinary
        self.model = SoftPromptModel(task.base, task.prompt())
        self.optimizer = PromptOptimizer(self.model.soft_prompt.weight, TrainConfig(), scale_loss=False)
        self.max_tokens = tokens_that_fit(task.base, task.virtual_tokens)
        self.begin()

    def begin(self) -> None:
        """Forget the teacher's states."""
        if self.ordinary:
            self.objective = Objective(TrainConfig(), pad_token_id=0)
        else:
            teacher = Teacher(self.task.base, Front(self.task.text), self.task.rows)
            self.objective = Divergence(TrainConfig(), teacher, {}, (), pad_token_id=0)

    def loss(self, members: Sequence[EncodedRow]) -> float:
        """Add the gradient of the mean loss of a step, and return that loss."""
        supervised, total = sum(row.num_supervised for row in members), 0.0
        for loss in self.objective.losses(self.model, members, max_tokens=self.max_tokens):
            (loss / supervised).backward()
            total += loss.item()
        return total / supervised

    def step(self, members: Sequence[EncodedRow]) -> None:
        """Take one step."""
        self.loss(members)
        self.optimizer.step(1.0, where="a step")


class Padded:
    """Two passes over right-padded batches: the base behind the text, and PEFT's model of the prompt."""

    def __init__(self, task: Task) -> None:
        self.task = task
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=task.virtual_tokens)
        self.model = get_peft_model(task.base, config).to(task.base.device)
        self.weight = self.model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            self.weight.copy_(task.prompt().weight)
        self.optimizer = torch.optim.AdamW([self.weight], lr=1e-3)

    def begin(self) -> None:
        """Nothing is kept between steps."""

    def loss(self, members: Sequence[EncodedRow]) -> float:
        """As `Ours.loss`."""
        batch = pad_rows(members, pad_token_id=0, device=self.task.base.device)
        ids, mask, counts = batch["input_ids"], batch["attention_mask"], batch["labels"] != IGNORE_INDEX
        text = torch.tensor(self.task.text, device=ids.device).expand(len(ids), -1)
        with torch.no_grad():
            whole = self.task.base(
                torch.cat([text, ids], 1), attention_mask=torch.cat([torch.ones_like(text), mask], 1)
            )
            log_p = log_probabilities(whole.logits, len(self.task.text), counts)
        log_q = log_probabilities(self.model(ids, attention_mask=mask).logits, self.task.virtual_tokens, counts)
        loss = F.kl_div(log_q, log_p, log_target=True, reduction="sum") / counts.sum()
        loss.backward()
        return loss.item()

    def step(self, members: Sequence[EncodedRow]) -> None:
        """Take one step."""
        self.loss(members)
        self.optimizer.step()
        self.optimizer.zero_grad()


def log_probabilities(logits: Tensor, front: int, counts: Tensor) -> Tensor:
    """Log-probabilities `[N, V]` that predict the labels that count, of logits behind a front of so many positions."""
    chosen = logits[:, front - 1 : -1][counts]
    return chosen.to(torch.promote_types(chosen.dtype, torch.float32)).log_softmax(-1)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    silence_libraries()
    torch.set_num_threads(options.threads)
    if options.side:
        task = make_task(options, options.text_tokens[0])
        side = Padded(task) if options.side == "padded" else Ours(task, ordinary=options.side == "ordinary")
        for members in task.steps:
            side.step(members)
        print("{}")
        return
    records = [compare(options, count) for count in options.text_tokens]
    print(table(records, options))
    if options.json:
        Path(options.json).write_text(json.dumps(records, indent=1) + "\n", "utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="folder of a base (default: random weights of --shape)")
    add("--shape", choices=list(SHAPES), default="llama-135m", help="default: %(default)s")
    add("--precision", choices=list(DTYPES), default="bf16", help="default: %(default)s")
    add("--text-tokens", type=int, nargs="+", default=[150, 600], help="default: 150 600")
    add("--virtual-tokens", type=int, default=16, metavar="P", help="default: %(default)s")
    add("--rows", type=int, default=64, help="a multiple of 8 (default: %(default)s)")
    add("--max-length", type=int, default=160, help="tokens of a row (default: %(default)s)")
    add("--epochs", type=int, default=4, help="of the run that the epochs' mean stands for (default: %(default)s)")
    add("--rounds", type=int, default=3, help="epochs of every side, in turns (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--cache", type=Path, default=DEFAULT_CACHE, help="where checkpoints are made (default: %(default)s)")
    add("--side", choices=SIDES, help="take one epoch of one side, and compare nothing; its peak memory is measured so")
    add("--json", metavar="OUT", help="write everything that was measured there")
    options = parser.parse_args(argv)
    if options.rows < 1 or options.rows % ROWS_PER_STEP:
        parser.error(f"--rows: must be a multiple of {ROWS_PER_STEP}")
    return options


def make_task(options: argparse.Namespace, text_tokens: int) -> Task:
    """The base, a random text, and the first rows of a generated set."""
    rows, all_rows = choose_rows(None, options.rows)
    if options.model:
        folder, tokenizer = Path(options.model), AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    else:
        config = SHAPES[options.shape]
        folder = make_checkpoint(options.shape, config, options.precision, all_rows, options.cache)
        tokenizer = make_tokenizer(all_rows, config.vocab_size)
    base = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=DTYPES[options.precision])
    base.requires_grad_(False).eval().to(options.device)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(100, min(len(tokenizer), base.config.vocab_size), (text_tokens,), generator=generator).tolist()
    written = encoded(rows, tokenizer, options.max_length)
    steps = [written[start : start + ROWS_PER_STEP] for start in range(0, len(written), ROWS_PER_STEP)]
    return Task(base, text, steps, options.virtual_tokens)


def compare(options: argparse.Namespace, text_tokens: int) -> dict:
    """Seconds of a step and peak memory of every side, for a text of so many tokens."""
    task = make_task(options, text_tokens)
    ours, padded = Ours(task), Padded(task)
    losses = [side.loss(task.steps[0]) for side in (ours, padded)]
    if abs(losses[0] - losses[1]) > 0.02 * abs(losses[1]):
        raise RuntimeError(f"the sides do not compute the same: losses {losses}")
    for side in (ours, padded):  # warm-up
        side.step(task.steps[0])
    seconds: dict[str, list[float]] = {"first": [], "later": [], "padded": []}
    for _ in range(options.rounds):
        ours.begin()
        seconds["first"].append(epoch(ours.step, task))
        seconds["padded"].append(epoch(padded.step, task))
        seconds["later"].append(epoch(ours.step, task))
    run = [
        (first + (options.epochs - 1) * later) / options.epochs
        for first, later in zip(seconds["first"], seconds["later"], strict=True)
    ]
    teacher = Teacher(task.base, Front(task.text), task.rows)
    cache = front_cache(task.base, task.base.get_input_embeddings()(torch.tensor(task.text, device=task.base.device)))
    return {
        "text_tokens": text_tokens,
        "losses": losses,
        "seconds": seconds | {"run": run},
        "ratios": {
            name: statistics.median(theirs / mine for theirs, mine in zip(seconds["padded"], side, strict=True))
            for name, side in (("first", seconds["first"]), ("later", seconds["later"]), ("run", run))
        },
        "peak_bytes": peaks(options, text_tokens),
        "cache_bytes": cache.nbytes,
        "states_bytes": teacher.bytes_of_all,
    }


def epoch(step: Callable[[Sequence[EncodedRow]], None], task: Task) -> float:
    """Mean seconds of the steps of an epoch."""
    start = time.perf_counter()
    for members in task.steps:
        step(members)
    if task.base.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(task.steps)


def peaks(options: argparse.Namespace, text_tokens: int) -> dict[str, int]:
    """Peak bytes of a process of each side."""
    words = {
        "--shape": options.shape, "--precision": options.precision, "--text-tokens": text_tokens,
        "--virtual-tokens": options.virtual_tokens, "--rows": options.rows, "--max-length": options.max_length,
        "--threads": options.threads, "--device": options.device, "--cache": options.cache,
    }  # fmt: skip
    words |= {"--model": options.model} if options.model else {}
    common = [str(word) for pair in words.items() for word in pair]
    place = Place(options.device, options.threads, options.cache)
    script = Path(__file__).resolve()
    return {side: run_script(script, [*common, "--side", side], place)[1] for side in SIDES}


def table(records: Sequence[dict], options: argparse.Namespace) -> str:
    """Markdown, one line for each length of the text."""
    name = Path(options.model).name if options.model else options.shape
    lines = [
        f"`{name}`, {options.precision}, {options.rows} rows, P={options.virtual_tokens}, rounds: {options.rounds},"
        f" {options.device}, threads: {options.threads}",
        "",
        "| text | padded, s/step | ours, first epoch | later epochs | padded ÷ ours: first, later,"
        f" {options.epochs} epochs | peak GB: padded, ours, ordinary | text's cache, states, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        padded, first, later = (statistics.median(record["seconds"][name]) for name in ("padded", "first", "later"))
        ratios = ", ".join(f"{record['ratios'][name]:.2f}×" for name in ("first", "later", "run"))
        peak = ", ".join(f"{record['peak_bytes'][side] / 1e9:.2f}" for side in ("padded", "ours", "ordinary"))
        sizes = f"{record['cache_bytes'] / 1e6:.1f}, {record['states_bytes'] / 1e6:.1f}"
        lines.append(
            f"| {record['text_tokens']} | {padded:.3f} | {first:.3f} | {later:.3f} | {ratios} | {peak} | {sizes} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
