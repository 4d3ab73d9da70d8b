"""What determines a run, and what its prompt file records: pure functions of options, base, rows and results."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor

from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_INIT_TEXT, TrainConfig
from softprompt.config.options import decisive
from softprompt.errors import UserError
from softprompt.prompt.encoder import metadata_of
from softprompt.prompt.metadata import PromptMetadata
from softprompt.system import sources
from softprompt.tokens.encoded_splits import EncodedSplits
from softprompt.training.selection import Losses, Result

# the inputs that determine a run besides its options, each with the message if a resumed run finds it changed
FACTS = {
    "base": "`model`: these are not the weights that this run started with",
    "template": "`template`: the rows were written in another way when this run started",
    "train_rows": "`data`: these are not the rows that this run started with",
    "eval_rows": "`eval_data`: these are not the held-out rows that this run started with",
    "test_rows": "`test_data`: these are not the test rows that this run started with",
    "precision": "`precision`: the run started in another one",
    "device": "`device`: the run started on another kind of device",
    "teacher": "`distill_text`: this run learns from another text",
    "initial_prompt": "`init_from`: the run started from another prompt",  # last, since it depends on the others
}


@dataclass(frozen=True)
class Recipe:
    """What determines the result of a run: the options that matter, and the inputs, told by hash or by name."""

    options: dict[str, Any]
    facts: dict[str, Any]

    @classmethod
    def of(
        cls, config: TrainConfig, base: Base, rows: EncodedSplits, initial: Tensor, teacher: Mapping[str, Any]
    ) -> "Recipe":
        """Return the recipe of a run that starts from the prompt `initial` `[P, H]`; `teacher` may be empty."""
        options = decisive(config) | {"virtual_tokens": len(initial)}
        facts = {
            "base": base.fingerprint.sha256,
            "template": hashlib.sha256(json.dumps(metadata_of(rows.encoder), sort_keys=True).encode()).hexdigest(),
            "train_rows": rows.train.facts.sha256,
            "eval_rows": rows.held_out.facts.sha256,
            "test_rows": rows.test.facts.sha256,
            "initial_prompt": hashlib.sha256(initial.detach().cpu().numpy().tobytes()).hexdigest(),
            "precision": base.precision,
            "device": base.device.type,
        }
        facts |= {"teacher": teacher["sha256"]} if teacher else {}
        # the option `precision` may be auto, so the precision that the base has is compared, as one of the facts
        return cls({name: value for name, value in options.items() if name != "precision"}, facts)

    @property
    def data_sha256(self) -> str:
        """One hash over the rows of all splits."""
        rows = "".join(self.facts[name] for name in ("train_rows", "eval_rows", "test_rows"))
        return hashlib.sha256(rows.encode()).hexdigest()

    def require_same(self, before: "Recipe") -> None:
        """Raise a `UserError` that names the first option or input that differs from when the run started."""
        require_same_options(before.options, self.options)
        for name, message in FACTS.items():
            if before.facts.get(name) != self.facts.get(name):
                plain = name in ("precision", "device")
                detail = f" ({before.facts.get(name)}, and now {self.facts[name]})" if plain else ""
                raise UserError(f"`resume`: {message}{detail}; give the same, or start anew with `overwrite`")


def require_same_options(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a `UserError` that names the first option that differs from when the run started, and both values."""
    for name, value in now.items():
        if name in before and before[name] != value:
            raise UserError(
                f"`resume`: `{name}` was {before[name]} when this run started and is {value} now;"
                " leave it out to go on, or start anew with `overwrite`"
            )


def prompt_metadata(
    config: TrainConfig,
    base: Base,
    rows: EncodedSplits,
    recipe: Recipe,
    result: Result,
    *,
    data: str,
    init_ids: Sequence[int],
    learning_rate: float,
    train_loss: float | None,
    curve: Sequence[tuple[int, float]],
    teacher: Mapping[str, Any],
) -> PromptMetadata:
    """Return the metadata of the prompt file, which depend on no clock, host, path or number of resumes.

    Args:
        data: the name of the data when the run started.
        init_ids: the ids whose embeddings the prompt started from, if those were the most frequent labels.
        train_loss: training loss at the step of `result`; None if that is not the last step.
        curve: (step, held-out loss) of every evaluation.
        teacher: what is said of the teacher; empty without one.
    """
    from_file = config.init_from is not None
    of_teacher = bool(teacher) and config.init_text == DEFAULT_INIT_TEXT  # a file does not hold the text distilled
    training = {
        "steps": result.step,
        "rows": len(rows.train_rows),
        "rows_per_step": config.rows_per_step,
        "optim": config.optim,
        "learning_rate": learning_rate,
        "train_loss": train_loss,
        "seed": config.seed,
        "held_out_rows": len(rows.eval_rows),
        "held_out_loss": result.held_out.finite(),
        "curve": [[step, loss if math.isfinite(loss) else None] for step, loss in curve],
        "test_rows": len(rows.test_rows),
        "test_loss": result.test.finite(),
    }
    training |= {"distilled_from": dict(teacher)} if teacher else {}
    return PromptMetadata(
        **base.metadata,  # type: ignore[arg-type]  # its keys are those whose values are text
        init="file" if from_file else config.init,
        init_text="" if from_file or of_teacher or config.init != "text" else config.init_text,
        init_ids=list(init_ids),
        **metadata_of(rows.encoder),
        data=data,
        data_sha256=recipe.data_sha256,
        rows_sketch={"train": list(rows.train.facts.sketch), "held_out": list(rows.held_out.facts.sketch)},
        training=training,
    )


def data_name(data: object) -> str:
    """Return how a prompt file names its data: the last component of a path, or the name; "" for data without one."""
    if not isinstance(data, str) or not data:
        return ""
    return PurePath(data).name if sources.is_path(data) and not sources.is_builtin(data) else data


def held_out_losses(without_prompt: float | None, curve: Sequence[tuple[int, float]], step: int) -> Losses:
    """Return the held-out losses of a result whose prompt is the one after `step` steps."""
    return Losses(without_prompt, curve[0][1] if curve else None, dict(curve).get(step))
