"""One thread that decodes for many askers: their rows wait in a queue, join when there is room, and leave when done."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from softprompt.config.commands import Sampling
from softprompt.engine.continuous import Choose, ContinuousDecoding, RunningRow
from softprompt.errors import UserError
from softprompt.system.process import is_out_of_memory

JOINING_IDS = 4096  # most ids of the texts that join in one pass


class QueueFull(UserError):
    """As many rows wait as may wait."""


@dataclass(eq=False)
class Job:
    """A row that somebody waits for.

    Attributes:
        deadline: the `time.monotonic` at which the row is given up.
        tell: called in the worker's thread after every new id and at the end; it must return at once.
        error: why the row ended without an end of its own; "" if it did not.
        is_done: nothing more will come.
    """

    row: RunningRow
    deadline: float
    tell: Callable[["Job"], object]
    error: str = ""
    is_done: bool = False
    is_cancelled: bool = False


class Worker:
    """The thread that runs a `ContinuousDecoding`; every method may be called from any thread."""

    def __init__(self, decoding: ContinuousDecoding, *, max_waiting: int) -> None:
        """Start the thread.

        Args:
            max_waiting: how many rows may wait for room.
        """
        self.decoding, self.max_waiting = decoding, max_waiting
        self.passes = 0  # forward passes, each of which adds one id to every row
        self._waiting: deque[Job] = deque()
        self._running: dict[RunningRow, Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="softprompt-worker", daemon=True)
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Put rows into the queue, all of them or none.

        Raises:
            QueueFull: too many rows wait.
            UserError: a row could never fit, or the worker has stopped.
        """
        for job in jobs:
            if not self.decoding.fits(job.row):
                raise UserError(f"{job.row.slots} tokens with the prompt, more than {self.decoding.max_slots} slots")
        with self._changed:
            if self._closed:
                raise UserError("the worker has stopped")
            if len(self._waiting) + len(jobs) > self.max_waiting:
                raise QueueFull(f"{len(self._waiting)} rows wait already; try again later")
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a row up; it leaves before the next token."""
        with self._changed:
            job.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """Give all rows up and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """How many rows run, and how many wait."""
        return len(self._running), len(self._waiting)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._closed or self._waiting or self._running):
                        self._changed.wait()
                    if self._closed:
                        return
                    self._give_up()
                    joining = self._admitted()
                self._advance(joining)
        finally:  # also after an error, so that nobody waits for ever
            with self._changed:
                self._closed = True
                left = [*self._running.values(), *self._waiting]
                self._waiting.clear()
            for job in left:
                self._end(job, "the worker has stopped")

    def _give_up(self) -> None:
        """End the rows that nobody waits for any more, or that took too long."""
        now = time.monotonic()
        for job in [*self._running.values(), *self._waiting]:
            if not (job.is_cancelled or job.deadline <= now):
                continue
            if job.row in self._running:
                self.decoding.leave(job.row)
            else:
                self._waiting.remove(job)
            self._end(job, "cancelled" if job.is_cancelled else "took too long")

    def _admitted(self) -> list[Job]:
        """Take those from the front of the queue that have room now."""
        jobs: list[Job] = []
        while self._waiting:
            rows = [*(job.row for job in jobs), self._waiting[0].row]
            joining = sum(len(row.ids) for row in rows)
            if not self.decoding.has_room(*rows) or (jobs and joining > JOINING_IDS):
                break
            jobs.append(self._waiting.popleft())
            self._running[rows[-1]] = jobs[-1]
        return jobs

    def _advance(self, joining: list[Job]) -> None:
        """Add one id to every row, in a pass that reads the texts of the rows that join."""
        try:
            self.decoding.join([job.row for job in joining])
            if self.decoding.rows:
                self._tell(self.decoding.step())
                self.passes += 1
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.decoding.clear()
            for job in list(self._running.values()):
                self._end(job, "out of memory")

    def _tell(self, rows: list[RunningRow]) -> None:
        for row in rows:
            job = self._running[row]
            if row.failed:
                self._end(job, "the base's logits are not finite")
            elif row.is_finished:
                self._end(job)
            else:
                job.tell(job)

    def _end(self, job: Job, error: str = "") -> None:
        self._running.pop(job.row, None)
        job.error, job.is_done = error, True
        job.tell(job)


def chooser(sampling: Sampling, seed: int, device: torch.device) -> Choose | None:
    """Return how the ids of one row are chosen: drawn as transformers draws those of a row alone; None is greedy.

    Args:
        seed: of the draws of this row, which depend on no other row.
    """
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.samples:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
    elif not processors:
        return None
    generator = torch.Generator(device=device).manual_seed(seed)

    def choose(ids: torch.Tensor, logits: torch.Tensor) -> int:
        scores = processors(ids, logits)  # type: ignore[arg-type]  # transformers asks for types that no tensor has
        if not sampling.samples:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))

    return choose
