"""How the defaults of training were chosen: one change at a time, on tasks that no quality figure is reported on.

usage: python benchmarks/defaults.py [NAME ...] [--model bloom] [--steps 240] [--seeds 0 1]

Every variant trains a prompt of 12 virtual tokens on the tuning tasks of `study_tasks.py`; a line gives the lowest of
ten held-out losses of each run, and the mean of their ratios to the first variant's, the same task and seed.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from home import ROOT  # noqa: F401
from study_tasks import TUNING, task
from torch import Tensor, nn

from softprompt import SoftPromptEmbedding, SoftPromptModel
from softprompt.base import Base, load_base
from softprompt.config import DEFAULT_INIT_TEXT, DEFAULT_MODEL
from softprompt.encoding import IGNORE_INDEX, EncodedRow, encode_rows
from softprompt.evaluation import row_scores, total_score
from softprompt.passes import pass_losses
from softprompt.prompt import rms
from softprompt.schedule import rate_factor, rows_of_step

ROWS_PER_STEP = 8
EVALUATIONS = 10


@dataclass(frozen=True)
class Variant:
    """What one run does; the rate is relative to the RMS of the initial prompt."""

    rate: float = 0.3
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = None  # of the gradient's norm times the RMS, which does not depend on the prompt's scale
    tame: float | None = None  # of the gradient's norm over its running mean
    warmup: float = 0.0
    schedule: str = "linear"
    init: str = "text"
    average: float | None = None  # decay of the running mean of the prompt that is evaluated
    by_token: bool = False  # rate relative to each virtual token's own RMS
    update: str = "adamw"
    mlp: int | None = None  # width of a residual MLP, folded into the prompt (Razdaibiedina et al., 2023)
    rank: int | None = None  # of the change to the initial prompt
    weight_decay: float = 0.0

    @property
    def changes(self) -> dict[str, object]:
        """What is not as in the first variant."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Variant, name)}


LOW = {"beta2": 0.95}
VARIANTS = {
    "first": Variant(),
    "rate 0.1": Variant(rate=0.1),
    "rate 1": Variant(rate=1.0),
    "beta2 0.99": Variant(beta2=0.99),
    "beta2 0.95": Variant(**LOW),
    "beta2 0.9": Variant(beta2=0.9),
    "beta2 0.95, rate 0.6": Variant(**LOW, rate=0.6),
    "beta2 0.95, tame 1": Variant(**LOW, tame=1.0),
    "beta2 0.95, clip 0.1": Variant(**LOW, clip=0.1),
    "beta2 0.95, warm-up 0.06": Variant(**LOW, warmup=0.06),
    "beta2 0.95, cosine": Variant(**LOW, schedule="cosine"),
    "beta2 0.95, average 0.9": Variant(**LOW, average=0.9),
    "beta2 0.95, by token": Variant(**LOW, by_token=True),
    "beta2 0.95, vocab": Variant(**LOW, init="vocab"),
    "beta2 0.95, answers": Variant(**LOW, init="answers"),
    "beta2 0.95, beta1 0.8": Variant(**LOW, beta1=0.8),
    "betas 0.8 0.9, clip 0.03, rate 0.6": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=0.6),
    "betas 0.8 0.9, clip 0.03, rate 1": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=1.0),
    "betas 0.8 0.9, clip 0.03, rate 1, answers": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=1.0, init="answers"),
    "betas 0.8 0.9, clip 0.03, rate 1, vocab": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=1.0, init="vocab"),
    "betas 0.8 0.9, clip 0.03, mlp 64": Variant(beta1=0.8, beta2=0.9, clip=0.03, mlp=64, rate=0.03),
    "betas 0.8 0.9, clip 0.03, mlp 64, rate 0.1": Variant(beta1=0.8, beta2=0.9, clip=0.03, mlp=64, rate=0.1),
    "betas 0.8 0.9, clip 0.03, rank 4": Variant(beta1=0.8, beta2=0.9, clip=0.03, rank=4),
    "betas 0.8 0.9, clip 0.03, rank 4, rate 0.1": Variant(beta1=0.8, beta2=0.9, clip=0.03, rank=4, rate=0.1),
    "muon": Variant(update="muon"),
    "muon, rate 0.1": Variant(update="muon", rate=0.1),
    "muon, rate 0.6": Variant(update="muon", rate=0.6),
    "muon, rate 1": Variant(update="muon", rate=1.0),
    "muon, tame 1": Variant(update="muon", tame=1.0),
    "muon, answers": Variant(update="muon", init="answers"),
    "nadam, beta2 0.95": Variant(**LOW, update="nadam"),
    "nadam, beta2 0.95, clip 0.1": Variant(**LOW, update="nadam", clip=0.1),
    "nadam, beta2 0.9": Variant(beta2=0.9, update="nadam"),
    "nadam, beta2 0.9, clip 0.1": Variant(beta2=0.9, update="nadam", clip=0.1),
    "nadam, beta2 0.9, clip 0.03": Variant(beta2=0.9, update="nadam", clip=0.03),
    "nadam, beta2 0.9, clip 0.1, rate 0.5": Variant(beta2=0.9, update="nadam", clip=0.1, rate=0.5),
    "nadam, beta2 0.9, clip 0.1, cosine": Variant(beta2=0.9, update="nadam", clip=0.1, schedule="cosine"),
    "betas 0.8 0.9, clip 0.03": Variant(beta1=0.8, beta2=0.9, clip=0.03),
    "betas 0.8 0.9, clip 0.003": Variant(beta1=0.8, beta2=0.9, clip=0.003),
    "betas 0.8 0.9, clip 0.03, answers": Variant(beta1=0.8, beta2=0.9, clip=0.03, init="answers"),
    "betas 0.8 0.9, clip 0.03, average 0.9": Variant(beta1=0.8, beta2=0.9, clip=0.03, average=0.9),
    "betas 0.8 0.9, clip 0.03, by token": Variant(beta1=0.8, beta2=0.9, clip=0.03, by_token=True),
    "betas 0.8 0.9, clip 0.03, rate 0.2": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=0.2),
    "betas 0.8 0.9, clip 0.03, rate 0.5": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=0.5),
    "betas 0.8 0.9, clip 0.1": Variant(beta1=0.8, beta2=0.9, clip=0.1),
    "nadam, beta2 0.95, cosine": Variant(**LOW, update="nadam", schedule="cosine"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--model", default="bloom", help="bloom, or a folder with SmolLM2 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=240, help="of 8 rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--results", type=Path, help="keep every run there, as JSON lines, and skip those it holds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = DEFAULT_MODEL if options.model == "bloom" else options.model
    base = load_base(name, device=torch.device("cpu"), precision="fp32")
    tasks = TUNING["bloom" if options.model == "bloom" else "smollm2"]
    known = _known(options.results)
    first: dict[tuple[str, int], float] = {}
    for variant in options.names or VARIANTS:
        ratios, losses, seconds = [], [], 0.0
        for task_name in tasks:
            for seed in options.seeds:
                key = json.dumps([options.model, options.steps, task_name, seed, VARIANTS[variant].changes])
                if key not in known:
                    start = time.perf_counter()
                    curve = train(base, task_name, VARIANTS[variant], options.steps, seed)
                    seconds += time.perf_counter() - start
                    known[key] = curve
                    _keep(options.results, key, curve)
                losses.append(min(known[key]))
                ratios.append(losses[-1] / first.setdefault((task_name, seed), losses[-1]))
        shown = " ".join(f"{loss:.4f}" for loss in losses)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{variant:28} {mean:6.3f}   {shown}   {seconds:.0f} s", flush=True)


def train(base: Base, task_name: str, variant: Variant, steps: int, seed: int) -> list[float]:
    """The held-out losses of one run."""
    rows, _ = encode_rows(task(task_name).train, base.tokenizer, max_length=256)
    held_out, _ = encode_rows(task(task_name).select, base.tokenizer, max_length=256)
    model = SoftPromptModel(base.model, initial_prompt(base, variant, rows, seed))
    weight, curve = model.soft_prompt.weight, []
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


def initial_prompt(base: Base, variant: Variant, rows: list[EncodedRow], seed: int) -> SoftPromptEmbedding:
    """Text, tokens drawn from the vocabulary, or the answers' most frequent tokens."""
    embedding = base.model.get_input_embeddings()
    if variant.init == "vocab":
        return SoftPromptEmbedding.from_vocab(embedding, 12, torch.Generator().manual_seed(seed))
    if variant.init == "answers":
        labels = Counter(label for row in rows for label in row.labels if label != IGNORE_INDEX)
        frequent = [label for label, _ in labels.most_common(12)]
        ids = (frequent * 12)[:12]
        return SoftPromptEmbedding.from_tensor(embedding(torch.tensor(ids)).detach())
    return SoftPromptEmbedding.from_text(DEFAULT_INIT_TEXT, base.tokenizer, embedding, 12)


class Update:
    """From a gradient to a step: clipping, and then what a subclass does."""

    def __init__(self, weight: nn.Parameter, variant: Variant) -> None:
        self.weight, self.variant = weight, variant
        self.scale = rms(weight)
        if variant.by_token:
            self.scale = weight.detach().square().mean(1, keepdim=True).sqrt()
        self.norm, self.count = 0.0, 0
        self.momentum = torch.zeros_like(weight)
        self.square = torch.zeros_like(weight)

    def step(self, factor: float) -> None:
        """Move the weight, and clear its gradient."""
        grad = self.clipped(self.weight.grad * self.scale)  # of weight / scale
        with torch.no_grad():
            self.weight -= self.scale * self.variant.rate * factor * self.direction(grad)
            self.weight *= 1 - self.variant.rate * factor * self.variant.weight_decay
        self.weight.grad = None

    def clipped(self, grad: Tensor) -> Tensor:
        """The gradient after the variant's clipping."""
        norm, limit = grad.norm().item(), math.inf
        self.count += 1
        if self.variant.clip is not None:
            limit = self.variant.clip
        if self.variant.tame is not None and self.count > 1:
            limit = self.variant.tame * self.norm
        used = min(norm, limit)
        weight = max(0.1, 1 / self.count)
        self.norm = used if self.count == 1 else (1 - weight) * self.norm + weight * min(norm, 2 * self.norm)
        return grad * (used / max(norm, 1e-30))

    def direction(self, grad: Tensor) -> Tensor:
        """Adam's (Kingma and Ba, 2015)."""
        beta1, beta2 = self.variant.beta1, self.variant.beta2
        self.momentum.lerp_(grad, 1 - beta1)
        self.square.lerp_(grad.square(), 1 - beta2)
        mean, square = self.momentum / (1 - beta1**self.count), self.square / (1 - beta2**self.count)
        return mean / (square.sqrt() + 1e-8)


class NAdam(Update):
    def direction(self, grad: Tensor) -> Tensor:
        """Adam's with Nesterov's look ahead (Dozat, 2016)."""
        beta1, beta2 = self.variant.beta1, self.variant.beta2
        self.momentum.lerp_(grad, 1 - beta1)
        self.square.lerp_(grad.square(), 1 - beta2)
        ahead = beta1 * self.momentum / (1 - beta1 ** (self.count + 1)) + (1 - beta1) * grad / (1 - beta1**self.count)
        return ahead / ((self.square / (1 - beta2**self.count)).sqrt() + 1e-8)


class Muon(Update):
    def direction(self, grad: Tensor) -> Tensor:
        """The momentum with all its singular values set to one (Jordan et al., 2024), at the RMS of Adam's step."""
        self.momentum.mul_(0.95).add_(grad)
        u, _, v = torch.linalg.svd(grad + 0.95 * self.momentum, full_matrices=False)
        return 0.2 * math.sqrt(max(grad.shape)) * u @ v


class Reparameterised(Update):
    """Adam on parts of which the prompt is made, and which are folded into it after every step."""

    def __init__(self, weight: nn.Parameter, variant: Variant) -> None:
        super().__init__(weight, variant)
        width, inner = weight.shape[1], variant.mlp or variant.rank
        generator = torch.Generator().manual_seed(0)
        self.start = weight.detach() / self.scale
        first, scale = (inner, width) if variant.mlp else (len(weight), inner), width if variant.mlp else inner
        self.down = (torch.randn(first, generator=generator) / math.sqrt(scale)).requires_grad_()
        self.up = torch.zeros((width, inner) if variant.mlp else (inner, width), requires_grad=True)
        self.vectors = self.start.clone().requires_grad_(variant.mlp is not None)
        parts = [self.down, self.up] + ([self.vectors] if variant.mlp else [])
        self.adamw = torch.optim.AdamW(parts, betas=(variant.beta1, variant.beta2), weight_decay=0.0)

    def step(self, factor: float) -> None:
        """The chain rule by autograd, Adam on all parts, and the fold."""
        self.folded().backward(self.clipped(self.weight.grad * self.scale))
        self.adamw.param_groups[0]["lr"] = self.variant.rate * factor
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            self.weight.copy_(self.folded() * self.scale)
        self.weight.grad = None

    def folded(self) -> Tensor:
        """The prompt over its scale: vectors and a residual MLP of them, or the start plus a low-rank change."""
        if self.variant.mlp:
            return self.vectors + torch.relu(self.vectors @ self.down.T) @ self.up.T
        return self.vectors + self.down @ self.up


UPDATES: dict[str, Callable] = {"adamw": Update, "nadam": NAdam, "muon": Muon}


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
