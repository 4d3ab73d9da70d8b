"""One run of the study: from its description to the record that is kept of it."""

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from study_peers import VIRTUAL_TOKENS, Outcome, mean_loss, peer_model, train_peer, trainable
from study_tasks import Task, task
from torch import nn
from updates import disturb

from softprompt.base.loading import Base, load_base
from softprompt.config.commands import DEFAULT_MODEL, TrainConfig
from softprompt.engine.model import SoftPromptModel
from softprompt.errors import Diverged
from softprompt.prompt.embedding import SoftPromptEmbedding, rms
from softprompt.prompt.file import load_prompt
from softprompt.prompt.start import initial_prompt
from softprompt.system.sources import is_builtin, model_folder
from softprompt.tokens.encoded_splits import EncodedSplit, EncodedSplits
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_rows
from softprompt.training.lanes import run_lanes
from softprompt.training.run_log import METRICS_NAME, NO_PROMPT, read_records
from softprompt.training.trainer import Trainer

MAX_LENGTH = 256
MOST_EVALUATIONS = 10
FEWEST_STEPS_BETWEEN = 8  # on SmolLM2 evaluating would otherwise cost more than a search's training


@dataclass(frozen=True)
class Run:
    """What is done once: `rate` None is softprompt's default, `alpha` a rate relative to the first prompt's RMS."""

    stage: str
    model: str
    task: str
    method: str
    rate: float | None
    seed: int
    steps: int
    alpha: float | None = None
    scale: float = 1.0  # of the base's input embeddings
    virtual_tokens: int = VIRTUAL_TOKENS

    @property
    def key(self) -> tuple:
        """What makes it the same run as one in the results."""
        return dataclasses.astuple(self)

    def __str__(self) -> str:
        rate = f"{self.rate:g}" if self.rate else f"alpha {self.alpha:g}" if self.alpha else "default"
        scale = f" x{self.scale:g}" if self.scale != 1 else ""
        length = f" P={self.virtual_tokens}" if self.virtual_tokens != VIRTUAL_TOKENS else ""
        what = f"{self.stage} {self.model}{scale} {self.task} {self.method}{length}"
        return f"{what} at {rate}, seed {self.seed}, {self.steps} steps"


@dataclass(frozen=True)
class Splits:
    """The encoded rows of a task, and what encoded them."""

    train: list[EncodedRow]
    select: list[EncodedRow]
    report: list[EncodedRow]
    encoder: Encoder

    @classmethod
    def of(cls, rows: Task, base: Base, encoder: Encoder | None = None) -> "Splits":
        """Encode with the rules of train.py, by default under the tutorial's template."""
        encoder, encoded = encoder or Encoder(base.tokenizer), {}
        for name, split in vars(rows).items():
            encoded[name], skipped = encode_rows(split, encoder, max_length=MAX_LENGTH)
            assert not skipped, (name, skipped)
        return cls(**encoded, encoder=encoder)


def execute(runs: Sequence[Run], folders: dict[str, str], threads: int) -> list[dict]:
    """Do one run, or several of softprompt that differ in their seed alone; the records say why if they failed.

    Args:
        folders: of the models that do not ship with softprompt.
    """
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    try:
        results = _outcomes(runs, folders)
    except Exception as error:  # one method that does not work must not end a study of hours
        results = [_failed(error) for _ in runs]
    seconds = round((time.perf_counter() - begin) / len(runs), 2)
    return [dataclasses.asdict(run) | result | {"seconds": seconds} for run, result in zip(runs, results, strict=True)]


def _outcomes(runs: Sequence[Run], folders: dict[str, str]) -> list[dict]:
    first = runs[0]
    base, folder = loaded(first.model, first.scale, folders.get(first.model))
    splits = Splits.of(task(first.task), base)
    if len(runs) == 1:
        return [outcome_of(first, base, folder, splits)]
    return [
        _failed(trained) if isinstance(trained, Diverged) else _record(*trained, splits, base.pad_token_id)
        for trained in train_lanes(runs, base, splits)
    ]


def _failed(error: Exception) -> dict:
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def outcome_of(run: Run, base: Base, folder: str, splits: Splits) -> dict:
    """Train as the run says, and its losses.

    Args:
        folder: of the base's tokenizer.
    """
    torch.manual_seed(run.seed)
    if run.method == "none":
        model, outcome, rate = base.model, None, None
    elif run.method == "softprompt":
        model, outcome, rate = train_ours(run, base, splits)
    else:
        model, rate = peer_model(run.method, base, folder, run.virtual_tokens), run.rate
        outcome = train_peer(
            model,
            splits.train,
            lambda current: mean_loss(current, splits.select, base.pad_token_id),
            rate=run.rate,
            steps=run.steps,
            seed=run.seed,
            pad_token_id=base.pad_token_id,
            evaluations=evaluations(run.steps),
        )
    return _record(model, outcome, rate, splits, base.pad_token_id)


def evaluations(steps: int) -> int:
    """How often a run looks at the select rows, for every method alike."""
    return max(1, min(MOST_EVALUATIONS, steps // FEWEST_STEPS_BETWEEN))


def _record(model: nn.Module, outcome: Outcome | None, rate: float | None, splits: Splits, pad: int) -> dict:
    """Losses per supervised token of the selected weights; the report rows are looked at here only."""
    losses = {
        "best_select": mean_loss(model, splits.select, pad),
        "report_loss": mean_loss(model, splits.report, pad),
    }
    if outcome is None:
        return losses
    final = outcome.history[-1][1]
    worse = not math.isfinite(final) or final > outcome.history[0][1]
    return losses | {
        "learning_rate": rate,
        "history": [[step, loss if math.isfinite(loss) else None] for step, loss in outcome.history],
        "best_step": outcome.best_step,
        "final_select": final if math.isfinite(final) else None,
        "diverged": worse or not outcome.finite,
        "trainable": sum(weight.numel() for weight in trainable(model)),
    }


def train_ours(
    run: Run, base: Base, splits: Splits, *, optim: str = TrainConfig.optim, disturbance: int | None = None
) -> tuple[SoftPromptModel, Outcome, float]:
    """A softprompt run as train.py builds it, in this process; the model has the prompt of the file that it wrote.

    Args:
        disturbance: seed of a tiny change to the first prompt, which stands for other roundings.
    """
    (trained,) = train_lanes([run], base, splits, optim=optim, disturbance=disturbance)
    if isinstance(trained, Diverged):
        raise trained
    return trained


def train_lanes(
    runs: Sequence[Run],
    base: Base,
    splits: Splits,
    *,
    optim: str = TrainConfig.optim,
    disturbance: int | None = None,
) -> list[tuple[SoftPromptModel, Outcome, float] | Diverged]:
    """Runs that share each pass over the base, as the trials of `sweep` do; else as `train_ours`."""
    rows = EncodedSplits(splits.encoder, EncodedSplit(splits.train), EncodedSplit(splits.select))
    with tempfile.TemporaryDirectory() as folder:
        lanes = []
        for place, run in enumerate(runs):
            config = TrainConfig(
                model=base.name,
                prompt_file=str(Path(folder) / f"{place}.safetensors"),
                virtual_tokens=run.virtual_tokens,
                max_steps=run.steps,
                eval_steps=run.steps // evaluations(run.steps),
                learning_rate=run.rate,
                optim=optim,
                seed=run.seed,
                precision="fp32",
            )
            prompt = initial_prompt(config, base)
            if disturbance is not None:
                disturb(prompt.weight, disturbance)
            if run.alpha is not None:
                config.learning_rate = run.alpha * rms(prompt.weight).item()
            lanes.append(Trainer(SoftPromptModel(base.model, prompt), base, rows, config))
        outcomes = run_lanes(lanes)
        return [
            outcome if isinstance(outcome, Diverged) else _trained(lane)
            for lane, outcome in zip(lanes, outcomes, strict=True)
        ]


def _trained(lane: Trainer) -> tuple[SoftPromptModel, Outcome, float]:
    """What a run left: the prompt of its file, its held-out losses, and its rate."""
    history = read_history(lane.config.run_folder / METRICS_NAME)
    prompt = SoftPromptEmbedding.from_tensor(load_prompt(lane.config.prompt_file).weight)
    best_step = min(history, key=lambda entry: entry[1])[0]
    outcome = Outcome(history, best_step, finite=True)
    return SoftPromptModel(lane.base.model, prompt), outcome, lane.optimizer.rate


def read_history(metrics_file: Path) -> list[tuple[int, float]]:
    """(step, held-out loss) of a run's prompts; the first at each step, since the last line is of the prompt kept."""
    found: dict[int, float] = {}
    records, _ = read_records(metrics_file)
    for record in records:
        if "eval_loss" in record and record["prompt"] != NO_PROMPT:
            found.setdefault(record["step"], record["eval_loss"])
    return sorted(found.items())


@functools.lru_cache(maxsize=1)
def loaded(name: str, scale: float, folder: str | None) -> tuple[Base, str]:
    """A base in fp32 and the folder of its tokenizer."""
    path = folder or DEFAULT_MODEL
    base = load_base(path, device=torch.device("cpu"), precision="fp32")
    if scale != 1:
        scale_embeddings(base.model, scale)
    return base, str(model_folder(path)) if is_builtin(path) else path


def scale_embeddings(model: nn.Module, scale: float) -> None:
    """Multiply a BLOOM's input embeddings without changing its function: it normalises them right after the lookup.

    The head keeps the weights as they were, and the norm's epsilon goes with their square.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        embedding.weight.mul_(scale)
    model.transformer.word_embeddings_layernorm.eps *= scale**2
