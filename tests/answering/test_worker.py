"""The worker: whatever asks at once, each row gets what it gets alone, and nobody waits for ever."""

import threading
import time

import pytest
import torch
from helpers.families import HIDDEN_SIZE, VOCAB_SIZE, make_family

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError
from softprompt.answering.worker import Job, QueueFull, Worker, chooser
from softprompt.config.commands import Sampling
from softprompt.engine.continuous import ContinuousDecoding, RunningRow
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches


def draw_ids(count, seed):
    return torch.randint(4, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_front(seed):
    count = seed % 5
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed)) if count else None
    return Front((), noise)


class Asker:
    """Waits for one row."""

    def __init__(self, row, seconds=60.0):
        self.told, self.done = [], threading.Event()
        self.job = Job(row, time.monotonic() + seconds, self.tell)

    def tell(self, job):
        self.told.append(len(job.row.new_ids))
        if job.is_done:
            self.done.set()

    def wait(self):
        assert self.done.wait(60)
        return self.job


@pytest.fixture
def open_worker():
    """Make a worker on a random base; it is closed at the end."""
    opened = []

    def make(family="llama", *, max_rows=8, max_slots=400, max_waiting=100):
        base = make_family(family)
        decoding = ContinuousDecoding(base, FrontCaches(), max_rows=max_rows, max_slots=max_slots)
        opened.append(Worker(decoding, max_waiting=max_waiting))
        return opened[-1]

    yield make
    for worker in opened:
        worker.close()


def slow_row(count=100):
    return RunningRow(draw_ids(3, 1), make_front(1), count)


@pytest.mark.parametrize("family", ["bloom", "llama", "gemma2"])
def test_64_askers_at_once_get_what_each_gets_alone(open_worker, family):
    """Greedy and sampled ones with seeds of their own, from 64 threads."""
    worker = open_worker(family)
    base = worker.decoding.base_model
    fronts = [make_front(seed) for seed in range(10)]
    samplings = [Sampling(do_sample=False), Sampling(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2)]
    askers = []
    for seed in range(64):
        choose = chooser(samplings[seed % 2], seed, torch.device("cpu"))
        row = RunningRow(draw_ids(1 + seed % 7, seed), fronts[seed % 10], 1 + seed % 11, choose=choose)
        askers.append(Asker(row))
    threads = [threading.Thread(target=worker.submit, args=(asker.job,)) for asker in askers]
    for thread in threads:
        thread.start()
    for asker in askers:
        assert asker.wait().error == ""
    model = SoftPromptModel(base, SoftPromptEmbedding.from_tensor(torch.ones(1, HIDDEN_SIZE)))
    for seed, asker in enumerate(askers):
        row, sampled = asker.job.row, samplings[seed % 2]
        how = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9} if sampled.samples else {}
        how |= {"repetition_penalty": sampled.repetition_penalty, "max_new_tokens": row.max_new_tokens}
        torch.manual_seed(seed)
        settings = {"eos_token_id": None, "pad_token_id": 3, "do_sample": False} | how
        alone = model.generate(torch.tensor([row.ids]), prompts=[row.front], **settings)
        assert row.new_ids == alone[0, len(row.ids) :].tolist()
        assert asker.told == [*range(1, row.max_new_tokens + 1)]
    assert worker.passes < sum(asker.job.row.max_new_tokens for asker in askers) / 3  # rows shared passes


def test_one_that_goes_leaves_the_others_alone(open_worker):
    worker = open_worker(max_rows=2)
    gone, stays, waits = (Asker(slow_row(120)) for _ in range(3))
    worker.submit(gone.job, stays.job, waits.job)
    while not gone.told:
        time.sleep(0.001)
    worker.cancel(gone.job)
    assert gone.wait().error == "cancelled" and len(gone.job.row.new_ids) < 120
    assert stays.wait().row.new_ids == waits.wait().row.new_ids and len(waits.job.row.new_ids) == 120
    assert worker.load == (0, 0)


def test_one_that_waits_can_go_too(open_worker):
    worker = open_worker(max_rows=1)
    first, second = Asker(slow_row(200)), Asker(slow_row())
    worker.submit(first.job, second.job)
    worker.cancel(second.job)
    assert second.wait().error == "cancelled" and second.job.row.new_ids == []
    assert first.wait().error == ""


def test_a_row_that_takes_too_long_is_given_up(open_worker):
    worker = open_worker()
    asker = Asker(slow_row(390), seconds=0.05)
    worker.submit(asker.job)
    assert asker.wait().error == "took too long" and worker.load == (0, 0)


def test_the_queue_and_the_slots_are_bounded(open_worker):
    worker = open_worker(max_rows=1, max_slots=300, max_waiting=2)
    with pytest.raises(UserError, match="more than 300 slots"):
        worker.submit(Asker(slow_row(300)).job)
    running = Asker(slow_row(250))
    worker.submit(running.job)
    while not running.told:
        time.sleep(0.001)
    waiting = [Asker(slow_row(2)) for _ in range(4)]
    worker.submit(waiting[0].job)
    with pytest.raises(QueueFull, match="1 rows wait already"):
        worker.submit(waiting[1].job, waiting[2].job)  # all or none
    worker.submit(waiting[3].job)
    assert [asker.wait().error for asker in (running, waiting[0], waiting[3])] == ["", "", ""]
    assert waiting[1].told == []


def test_logits_that_are_not_finite_are_told(open_worker):
    worker = open_worker()
    broken = Asker(RunningRow([9, 8], Front((), torch.full((2, HIDDEN_SIZE), torch.nan)), 5))
    good = Asker(slow_row(9))
    worker.submit(broken.job, good.job)
    assert "not finite" in broken.wait().error and good.wait().error == "" and len(good.job.row.new_ids) == 9


@pytest.mark.parametrize("place", ["join", "step"])
def test_memory_that_runs_out_ends_what_runs_and_no_more(open_worker, monkeypatch, place):
    worker = open_worker()

    def fail(*_):
        monkeypatch.undo()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker.decoding, place, fail)
    first = Asker(slow_row(9))
    worker.submit(first.job)
    assert first.wait().error == "out of memory" and worker.load == (0, 0)
    second = Asker(slow_row(9))
    worker.submit(second.job)
    assert second.wait().error == "" and len(second.job.row.new_ids) == 9


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_worker_that_has_stopped(open_worker, monkeypatch):
    worker = open_worker()
    monkeypatch.setattr(worker.decoding, "step", lambda: 1 / 0)
    asker = Asker(slow_row())
    worker.submit(asker.job)
    assert asker.wait().error == "the worker has stopped"
    with pytest.raises(UserError, match="the worker has stopped"):
        worker.submit(Asker(slow_row()).job)


def test_closing_ends_all(open_worker):
    worker = open_worker(max_rows=1)
    askers = [Asker(slow_row(300)) for _ in range(3)]
    worker.submit(*(asker.job for asker in askers))
    worker.close()
    assert [asker.wait().error for asker in askers] == ["the worker has stopped"] * 3
