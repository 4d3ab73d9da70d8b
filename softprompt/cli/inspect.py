"""Look at a prompt: its file, its scale, its nearest vocabulary tokens, how far it moved, and its loss curve."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.cli.columns import display_width, fields, fit
from softprompt.cli.program import settle
from softprompt.config.command_line import parse
from softprompt.config.commands import InspectConfig
from softprompt.config.options import flags_in
from softprompt.errors import UserError
from softprompt.system.files import check_output_file, write_atomic
from softprompt.system.foreign import visible

if TYPE_CHECKING:
    from torch import Tensor

    from softprompt.analysis.curve import Curve
    from softprompt.base.loading import Base
    from softprompt.prompt.file import PromptFile

TOKEN_COLUMNS, GAP = 14, 2  # columns of a token in the table, where longer ones are cut, and in front of it
# the order in which the metadata of the training are shown; others follow
SUMMARY = (
    "steps", "rows", "rows_per_step", "optim", "learning_rate", "seed", "train_loss", "held_out_rows",
    "held_out_loss", "without_prompt", "initial_prompt", "trained_prompt",
)  # fmt: skip


def main(argv: Sequence[str] | None = None, prog: str = "softprompt inspect") -> None:
    """Print the report on stdout and notes on stderr."""
    config = parse(InspectConfig, argv, prog=prog, description=__doc__, positional="prompt_file")
    check_plot(config)

    from softprompt.analysis.curve import load_curve
    from softprompt.cli.terminal import screen_width
    from softprompt.prompt.file import load_prompt

    settle()
    file, width = load_prompt(config.prompt_file), screen_width()
    training = file.facts.training
    curve = load_curve(config.prompt_file, config.run_dir, training)
    if config.plot is not None and curve is None:
        raise UserError(f"`plot` {config.plot}: there is no curve to draw; pass the run folder as `run_dir`")
    print(describe_file(config.prompt_file, file, columns=width), flush=True)
    base, is_own_base = load_base_of(file, config)
    nearest = config.num_nearest
    print(describe_vectors(file, base, num_nearest=nearest, is_own_base=is_own_base, columns=width))
    print(describe_curve(curve, training, config, columns=width))
    if curve is not None:
        draw(curve, config)


def check_plot(config: InspectConfig) -> None:
    """Raise `UserError`, before anything is loaded, if the plot cannot be drawn or written."""
    if config.plot is None:
        return
    check_output_file(Path(config.plot), option="plot", replace=config.overwrite)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("`plot`: needs matplotlib, which is missing; install it with: pip install 'softprompt[plot]'")


def load_base_of(file: "PromptFile", config: InspectConfig) -> "tuple[Base, bool]":
    """Return the base that the prompt is compared with, and whether the prompt was trained on it."""
    import torch

    from softprompt.prompt.fit import check_same_base, load_prompt_base

    name, cpu = config.prompt_file, torch.device("cpu")
    base = load_prompt_base(file.facts, prompt_file=name, model=config.model, device=cpu, precision="auto")
    is_own = True
    try:
        remark = check_same_base(file, base, prompt_file=config.prompt_file, allow_other=False)
    except UserError:
        is_own = False
        allowed = config.allow_other_base
        remark = check_same_base(file, base, prompt_file=config.prompt_file, allow_other=allowed)
    for note in filter(None, (*base.notes, remark)):
        print(visible(flags_in(f"note: {note}")), file=sys.stderr)
    return base, is_own


def describe_file(path: str, file: "PromptFile", *, columns: int) -> str:
    """Return the lines with path, shape and size of the file, and its metadata."""
    (count, width), facts = file.weight.shape, file.facts
    pairs = [
        ("shape", f"{count} x {width} (virtual tokens P x hidden size H)"),
        *([("size", f"{Path(path).stat().st_size:,} bytes")] if Path(path).is_file() else []),
        *([("adapter", f"{file.adapter}, which is no prompt file")] if file.adapter else []),
        ("base", visible(facts.base or "not stated")),
        ("init", visible(facts.init or "not stated")),
    ]
    if facts.init_text:
        pairs.append(("init text", repr(facts.init_text)))
    pairs.append(("template", visible(facts.template or "not stated")))
    for name in ("template_date", "system", "bos_token"):
        if getattr(facts, name):
            pairs.append((name.replace("_", " "), repr(getattr(facts, name))))
    if facts.learnt_turns not in ("", "all"):
        pairs.append(("learnt turns", visible(facts.learnt_turns)))
    if facts.placement not in ("", "front"):
        around = f"{len(facts.before_ids)} ids before the prompt, {len(facts.after_ids)} behind it"
        pairs.append(("placement", visible(f"{facts.placement} ({around})")))
    pairs.append(("data", visible(facts.data or "not stated")))
    said = _in_order({name: value for name, value in facts.training.items() if name != "curve"})
    pairs += [(visible(name.replace("_", " ")), _value(value)) for name, value in said]
    return f"{path}\n{fields(pairs, columns=columns)}"


def describe_vectors(file: "PromptFile", base: "Base", *, num_nearest: int, is_own_base: bool, columns: int) -> str:
    """Return the lines with the norms and, for each virtual token, its nearest vocabulary tokens and its movement."""
    from softprompt.analysis.vectors import nearest_tokens, token_text, vocabulary_rms
    from softprompt.base.vocabulary import embedding_weight
    from softprompt.prompt.embedding import rms
    from softprompt.prompt.start import start_of, why_no_start

    embedding = base.model.get_input_embeddings()
    vocab_size = len(embedding_weight(embedding))
    if num_nearest > vocab_size:
        raise UserError(f"`num_nearest` {num_nearest}: the vocabulary has only {vocab_size:,} tokens")
    unknown = flags_in(why_no_start(file.facts)) if is_own_base else "this is not the base that it was trained on"
    start = None if unknown else start_of(file.facts, base, len(file.weight))
    ids, cosines = nearest_tokens(file.weight, embedding, num_nearest)
    nearest = [
        [(token_text(token, base.tokenizer), cosine) for token, cosine in zip(*row, strict=True)]
        for row in zip(ids.tolist(), cosines.tolist(), strict=True)
    ]
    scale = vocabulary_rms(embedding)
    norms = file.weight.norm(dim=1)
    pairs = [
        ("RMS of the prompt", f"{rms(file.weight).item():.4g}"),
        ("RMS of the vocabulary", f"{scale:.4g} ({vocab_size:,} tokens of {base.name}, {base.precision})"),
        ("norm of a virtual token", f"{norms.min().item():.4g} to {norms.max().item():.4g}"),
        ("norm of a vocabulary token", f"{scale * file.weight.shape[1] ** 0.5:.4g} (root mean square)"),
        ("movement from the start", f"cannot be told: {unknown}" if unknown else "below; relative to the initial norm"),
    ]
    return f"\nnorms\n{fields(pairs, columns=columns)}\n\n{_token_table(file.weight, start, nearest, columns)}"


def describe_curve(curve: "Curve | None", training: dict[str, Any], config: InspectConfig, *, columns: int) -> str:
    """Return the lines that say where the curve is from, or where it was looked for, and what is odd about it."""
    from softprompt.analysis.curve import held_out_loss, metrics_file_of

    if curve is None:
        looked = metrics_file_of(config.prompt_file, config.run_dir)
        places = [("looked for", str(looked)), ("and in", "the prompt file's metadata")]
        return "\nloss curve: none\n" + fields(places, columns=columns)
    pairs = [("from", curve.source)]
    if curve.skipped_lines:
        pairs.append(("skipped", f"{curve.skipped_lines} damaged lines"))
    trained = held_out_loss(training, "trained_prompt")
    if trained is not None and curve.held_out and trained not in [point.loss for point in curve.held_out]:
        said = f"none of its held-out losses is {trained:.4g}, the prompt file's"
        pairs.append(("warning", f"perhaps of another run: {said}"))
    return "\nloss curve\n" + fields(pairs, columns=columns)


def draw(curve: "Curve", config: InspectConfig) -> None:
    """Write the curve as a PNG, or without `--plot` print it as characters."""
    from softprompt.analysis.chart import png_bytes, text_chart

    if config.plot is None:
        print(text_chart(curve))
        return
    content = png_bytes(curve)
    Path(config.plot).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.plot, content)
    print(f"plot written to {config.plot}")


def _token_table(weight: "Tensor", start: "Tensor | None", nearest: list[list[tuple[str, float]]], columns: int) -> str:
    """Return a table with a line for each virtual token, and more lines where its nearest tokens need them."""
    moved = "" if start is None else f"{'moved':>9}{'relative':>10}"
    lines = [f"token{'norm':>9}{moved}{'':{GAP}}nearest vocabulary tokens, cosine"]
    for place, vector in enumerate(weight):
        left = f"{place + 1:>5}{vector.norm().item():>9.4g}"
        if start is not None:
            distance, norm = (vector - start[place]).norm().item(), start[place].norm().item()
            left += f"{distance:>9.4g}" + (f"{distance / norm:>10.4g}" if norm else f"{'-':>10}")
        cells = [f"{fit(text, TOKEN_COLUMNS)} {cosine:>5.2f}" for text, cosine in nearest[place]]
        per_line = max(1, columns - len(left)) // (GAP + display_width(cells[0])) or 1
        for first in range(0, len(cells), per_line):
            margin = left if first == 0 else " " * len(left)
            lines.append(margin + "".join(f"{'':{GAP}}{cell}" for cell in cells[first : first + per_line]))
    return "\n".join(lines)


def _value(value: object) -> str:
    """Format a value of the training summary, of whatever type it is."""
    if isinstance(value, dict):
        known = [(name, inner) for name, inner in _in_order(value) if inner is not None]
        return ", ".join(f"{visible(str(name)).replace('_', ' ')} {_value(inner)}" for name, inner in known) or "none"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else visible(str(value))


def _in_order(summary: dict[str, object]) -> list[tuple[str, object]]:
    """Return the items with the names of `SUMMARY` first, in its order."""
    return sorted(summary.items(), key=lambda item: SUMMARY.index(item[0]) if item[0] in SUMMARY else len(SUMMARY))
