"""Classification without a classification head: each label is scored as the answer, and the most probable is chosen."""

import dataclasses
import sys
from collections.abc import Sequence

from transformers import PreTrainedModel

from softprompt.data.row import Row
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import row_scores
from softprompt.errors import UserError
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow, Encoder, encode_row


def actual_choices(rows: Sequence[Row], choices: Sequence[str], *, name: str) -> list[str]:
    """Return which of `choices` the output of each row is, ignoring blanks around both.

    Args:
        name: what messages call the rows.

    Raises:
        UserError: an output is none of the choices; the message names the row.
    """
    known = {label.strip(): label for label in choices}
    for row in rows:
        if row.output.strip() not in known:
            output = " ".join(row.output.split())
            shown = output if len(output) <= 40 else output[:37] + "..."
            raise UserError(f"{name}, row {row.number}: its output {shown!r} is none of `choices` {', '.join(known)}")
    return [known[row.output.strip()] for row in rows]


def encode_choices(rows: Sequence[Row], choices: Sequence[str], encoder: Encoder) -> list[list[EncodedRow]]:
    """Encode every row with each label as its response, and cut none of them: `[row][label]`.

    The label alone and what ends it are supervised, also where a conversation has earlier answers.
    """
    candidates = []
    for row, question in zip(rows, encoder.questions(rows), strict=True):
        labelled = [
            encode_row(dataclasses.replace(row, output=label), encoder, max_length=sys.maxsize) for label in choices
        ]
        ignored = [IGNORE_INDEX] * len(question)
        candidates.append([EncodedRow(each.input_ids, ignored + each.labels[len(question) :]) for each in labelled])
    return candidates


def choice_log_probabilities(
    model: SoftPromptModel | PreTrainedModel, candidates: Sequence[Sequence[EncodedRow]], *, pad_token_id: int
) -> list[list[float]]:
    """Return the natural log-probability of every label as the whole answer, eos included: `[row][label]`.

    Args:
        model: a base with a prompt, or a base alone.
        candidates: what `encode_choices` gives.
    """
    flat = [candidate for labels in candidates for candidate in labels]
    scores = iter(row_scores(model, flat, pad_token_id=pad_token_id))
    return [[-next(scores).loss_sum for _ in labels] for labels in candidates]


def choice_accuracy(
    model: SoftPromptModel | PreTrainedModel,
    rows: Sequence[Row],
    choices: Sequence[str],
    encoder: Encoder,
    *,
    pad_token_id: int,
) -> float:
    """Return the share of rows whose most probable label is their output; rows with another output are wrong."""
    candidates = encode_choices(rows, choices, encoder)
    chosen = best_choices(choice_log_probabilities(model, candidates, pad_token_id=pad_token_id), choices)
    return sum(label.strip() == row.output.strip() for label, row in zip(chosen, rows, strict=True)) / len(rows)


def best_choices(log_probabilities: Sequence[Sequence[float]], choices: Sequence[str]) -> list[str]:
    """Return the most probable label of every row; of equally probable ones, the one that was given first."""
    return [choices[max(range(len(choices)), key=row.__getitem__)] for row in log_probabilities]
