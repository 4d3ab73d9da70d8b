"""The peers of the study: PEFT's methods and full fine-tuning in one training loop, and the loss that judges everyone.

The loop does what transformers' Trainer does with its defaults: AdamW without weight decay, linear decay to 0 without
warm-up, gradients clipped to norm 1, train mode, a step's loss being the sum over its supervised tokens divided by
their number. Rows of a step are padded on the right, where causal attention keeps the pads out of every row; on the
left they would stand between PEFT's prompt and the text.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import (
    LoraConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_model,
)
from peft import PrefixTuningConfig as PrefixConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_INIT_TEXT
from softprompt.engine.loss import summed_cross_entropy
from softprompt.engine.model import SoftPromptModel
from softprompt.optim.schedule import rate_factor, rows_of_step
from softprompt.packs.batches import pad_rows
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

ROWS_PER_STEP = 8
VIRTUAL_TOKENS = 12
MAX_GRAD_NORM = 1.0
METHODS = ("prompt-text", "prompt-vocab", "p-tuning", "prefix", "lora", "full")


@dataclass(frozen=True)
class Outcome:
    """A trained model as selected: held-out losses over the run, and the step whose weights it has."""

    history: list[tuple[int, float]]
    best_step: int
    finite: bool


def peer_model(method: str, base: Base, tokenizer_folder: str, virtual_tokens: int = VIRTUAL_TOKENS) -> nn.Module:
    """A copy of the base with what the method trains; everything else is frozen. Random parts follow torch's seed."""
    model: PreTrainedModel = copy.deepcopy(base.model).requires_grad_(method == "full")
    if method == "full":
        return model
    kind = {"task_type": TaskType.CAUSAL_LM}
    prompt = kind | {"num_virtual_tokens": virtual_tokens}
    if method == "prompt-text":
        text = {"prompt_tuning_init_text": DEFAULT_INIT_TEXT, "tokenizer_name_or_path": tokenizer_folder}
        config = PromptTuningConfig(prompt_tuning_init=PromptTuningInit.TEXT, **text, **prompt)
    elif method == "prompt-vocab":
        config = PromptTuningConfig(prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB, **prompt)
    elif method == "p-tuning":
        config = PromptEncoderConfig(**prompt)
    elif method == "prefix":
        config = PrefixConfig(**prompt)
    elif method == "lora":
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, **kind)
    else:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    return get_peft_model(model, config)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """What learns, every tensor once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def summed_loss(model: nn.Module, rows: Sequence[EncodedRow], pad_token_id: int) -> Tensor:
    """Sum of the cross-entropy over the supervised tokens of one padded batch, from the logits of the model's forward.

    Logits are asked for from the first place that predicts something on, and counted from the end, where prompt
    methods (`[B, P + T, V]`) and the others (`[B, T, V]`) agree.
    """
    batch = pad_rows(rows, pad_token_id=pad_token_id, device=torch.device("cpu"))
    labels = batch.pop("labels")
    first = (labels != IGNORE_INDEX).any(dim=0).int().argmax().item()
    keep = labels.shape[1] - first + 1
    fewer = {} if isinstance(model, SoftPromptModel) else {"logits_to_keep": keep}
    logits = model(**batch, **fewer).logits[:, -keep:-1]
    return summed_cross_entropy(logits, labels[:, first:])


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Sequence[EncodedRow], pad_token_id: int) -> float:
    """Loss per supervised token over all rows, in eval mode; the one measure for every method, softprompt's too."""
    before = model.training
    model.eval()
    rows = sorted(rows, key=lambda row: len(row.input_ids))  # fewer pads
    total = sum(
        summed_loss(model, rows[start : start + ROWS_PER_STEP], pad_token_id).item()
        for start in range(0, len(rows), ROWS_PER_STEP)
    )
    model.train(before)
    return total / sum(row.num_supervised for row in rows)


def train_peer(
    model: nn.Module,
    train_rows: Sequence[EncodedRow],
    evaluate: Callable[[nn.Module], float],
    *,
    rate: float,
    steps: int,
    seed: int,
    pad_token_id: int,
    evaluations: int = 10,
) -> Outcome:
    """Train `model` and leave it with the weights of its best evaluation, the untrained ones among them.

    Args:
        evaluate: held-out loss, called before the first step and `evaluations` times evenly over the run.
    """
    weights = trainable(model)
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    factor = rate_factor("linear", steps, 0)
    history = [(0, evaluate(model))]
    best_step, best_loss, best = 0, history[0][1], _copy(weights)
    due = {round(steps * (place + 1) / evaluations) for place in range(evaluations)}
    finite = True
    model.train()
    for step in range(steps):
        rows = [train_rows[place] for place in rows_of_step(step, len(train_rows), ROWS_PER_STEP, seed)]
        optimizer.param_groups[0]["lr"] = rate * factor(step)
        finite = peer_step(model, weights, optimizer, rows, pad_token_id)
        if not finite:
            break
        if step + 1 in due:
            loss = evaluate(model)
            history.append((step + 1, loss))
            if loss < best_loss:
                best_step, best_loss, best = step + 1, loss, _copy(weights)
    with torch.no_grad():
        for weight, kept in zip(weights, best, strict=True):
            weight.copy_(kept)
    return Outcome(history, best_step, finite and math.isfinite(history[-1][1]))


def peer_step(
    model: nn.Module,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: Sequence[EncodedRow],
    pad_token_id: int,
) -> bool:
    """One optimizer step; False, and no step, when loss or gradient is not finite."""
    loss = summed_loss(model, rows, pad_token_id) / sum(row.num_supervised for row in rows)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
    finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite


def _copy(weights: list[nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]
