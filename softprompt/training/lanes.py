"""The loop of training: lanes take their steps together, and share each pass over the frozen base.

A lane is a `Trainer`: a prompt with its own rows, optimizer, schedule, selection, log, run folder and checkpoints. An
ordinary run is one lane. No lane sees another, so each gets what it gets alone, but for roundings: a matrix product
may round a row differently when other rows stand beside it. The bits of a lane therefore depend on which lanes it runs
with, and lanes that began together go on together from the same step.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from softprompt.engine.passes import lane_passes
from softprompt.errors import Diverged, Interrupted
from softprompt.packs.families import can_pack
from softprompt.system.process import deferred_signals
from softprompt.tokens.encoding import EncodedRow

if TYPE_CHECKING:
    from softprompt.training.selection import Result
    from softprompt.training.trainer import Trainer


def run_lanes(lanes: Sequence["Trainer"]) -> list["Result | Diverged"]:
    """Train every lane to its last step, or until its held-out losses end it, and write the prompt files.

    A lane that ends early leaves, and the others go on. Its prompt file is written when all have ended.

    Returns:
        The result of every lane, or the exception of one whose loss, gradient or prompt was not finite in three steps
        in a row; its best prompt is written.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived; the last whole step of every lane is saved.
        UserError: the base alone gives a loss that is not finite.
        OSError: the last checkpoint of a lane or its prompt cannot be written; without a checkpoint the prompt is.
    """
    diverged: dict[int, Diverged] = {}
    for lane in lanes:
        lane.open()
    try:
        with deferred_signals(functools.partial(_note_signal, lanes)):
            try:
                for lane in lanes:
                    lane.start()
                while running := [lane for lane in lanes if id(lane) not in diverged and lane.is_running]:
                    diverged |= _step(running)
            except Exception:
                for lane in _left(lanes, diverged):
                    if lane.whole:
                        with contextlib.suppress(OSError):  # the error that ends the run is the one to be told
                            lane.save()
                raise
            for lane in _left(lanes, diverged):
                _save_last(lane)
            for lane in _left(lanes, diverged):
                if not lane.ended:
                    assert lane.stop_signal is not None  # nothing else stops a run before its end
                    place = f"saved at step {lane.step} of {lane.total} in {lane.config.run_folder}"
                    raise Interrupted(lane.stop_signal, f"{place}; go on with `resume`")
            return [diverged.get(id(lane)) or lane.finish() for lane in lanes]
    finally:
        for lane in lanes:
            lane.report.end()


def _save_last(lane: "Trainer") -> None:
    """Save the last step of a lane; if that fails at the end of its run, the prompt is written all the same.

    The prompt may go to another disk, or be small enough for this one.
    """
    try:
        lane.save()
    except OSError:
        if lane.ended:
            lane.finish()
            lane.report.say(f"the prompt of step {lane.kept_step} is in {lane.written}")
        raise


def _left(lanes: Sequence["Trainer"], diverged: dict[int, Diverged]) -> list["Trainer"]:
    """The lanes that did not diverge. A checkpoint after steps that are not finite would lead to another result."""
    return [lane for lane in lanes if id(lane) not in diverged]


def _note_signal(lanes: Sequence["Trainer"], signum: int) -> None:
    """Note the first signal, after which the pass in progress ends and the run saves; the second stops at once."""
    if any(lane.stop_signal is not None for lane in lanes):
        raise Interrupted(signum, "stopped at once; the last checkpoint stands")
    for lane in lanes:
        lane.stop_signal = signum


def _step(lanes: Sequence["Trainer"]) -> dict[int, Diverged]:
    """Take one step of every lane, and return those that diverged; a step that a signal cuts short is dropped."""
    rows = [lane.next_rows() for lane in lanes]
    sums = _accumulate(lanes, rows)
    if sums is None:
        for lane in lanes:
            lane.optimizer.discard()
        return {}
    diverged = {}
    for lane, own, loss_sum in zip(lanes, rows, sums, strict=True):
        try:
            lane.advance(own, loss_sum)
        except Diverged as error:
            diverged[id(lane)] = error
    return diverged


def _accumulate(lanes: Sequence["Trainer"], rows: Sequence[Sequence[EncodedRow]]) -> list[float] | None:
    """Add up the gradient of every lane's mean loss, pass by pass; return the loss sums, or None after a signal."""
    sums = [0.0] * len(lanes)
    supervised = [sum(row.num_supervised for row in own) for own in rows]
    for losses in _passes(lanes, rows):
        # divided by the tokens of the lane's whole step, so that the passes add up to the gradient of the step's mean
        scaled = [lanes[place].optimizer.scaled(loss / supervised[place]) for place, loss in losses]
        torch.autograd.backward(scaled)
        for place, loss in losses:
            sums[place] += loss.item()
        if lanes[0].stop_signal is not None:
            return None
    return sums


def _passes(
    lanes: Sequence["Trainer"], rows: Sequence[Sequence[EncodedRow]]
) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """The losses of a step, pass by pass: the place of a lane, and the summed loss of its rows in the pass."""
    first = lanes[0]
    settings = {(lane.max_tokens, lane.config.gradient_checkpointing) for lane in lanes}
    together = len(lanes) > 1 and len(settings) == 1 and can_pack(first.base.model)
    if together and all(lane.base.model is first.base.model and lane.objective.shares_passes for lane in lanes):
        ((max_tokens, recompute),) = settings
        pairs = [(lane.model.front, own) for lane, own in zip(lanes, rows, strict=True)]
        yield from lane_passes(first.base.model, pairs, max_tokens=max_tokens, recompute=recompute)
        return
    for place, (lane, own) in enumerate(zip(lanes, rows, strict=True)):
        for loss in lane.objective.losses(lane.model, own, max_tokens=lane.max_tokens):
            yield [(place, loss)]
