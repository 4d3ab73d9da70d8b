"""Requests of different prompts through the worker of `examples/serve.py`: all at once against one at a time, in turns.

usage: python benchmarks/speed/serve_load.py --model FOLDER [--requests 64] [--prompts 8] [--new-tokens 32]
           [--rounds 3] [--precision bf16]

HTTP is left out: what it adds is the same on both sides. Passes count forward passes of one id for every row.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Sequence

import home  # noqa: F401
import torch

from softprompt.answering.worker import Job, Worker
from softprompt.base.loading import load_base
from softprompt.engine.continuous import ContinuousDecoding, RunningRow
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches
from softprompt.system.process import silence_libraries

SCALE = 0.02


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32, help="most of an answer; they have from 1 to so many")
    parser.add_argument("--max-rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    silence_libraries()
    base = load_base(options.model, device=torch.device(options.device), precision=options.precision)
    model, width = base.model.requires_grad_(False), base.model.get_input_embeddings().weight.shape[1]
    torch.manual_seed(0)
    fronts = [
        Front((), SCALE * torch.randn(1 + place * options.virtual_tokens // options.prompts, width, device=base.device))
        for place in range(options.prompts)
    ]
    places = range(options.requests)
    texts = [torch.randint(4, model.config.vocab_size, (8 + 5 * place % 17,)).tolist() for place in places]
    lengths = [1 + 7 * place % options.new_tokens for place in places]
    decoding = ContinuousDecoding(model, FrontCaches(), max_rows=options.max_rows, max_slots=1 << 16)
    worker = Worker(decoding, max_waiting=options.requests)

    def run(together: bool) -> tuple[float, int, list[list[int]]]:
        before, start = worker.passes, time.perf_counter()
        done = [threading.Event() for _ in places]
        rows = [RunningRow(texts[place], fronts[place % len(fronts)], lengths[place]) for place in places]
        for row, event in zip(rows, done, strict=True):
            worker.submit(Job(row, start + 1e9, lambda job, event=event: event.set() if job.is_done else None))
            if not together:
                event.wait()
        for event in done:
            event.wait()
        return time.perf_counter() - start, worker.passes - before, [row.new_ids for row in rows]

    run(True)  # computes the fronts
    rates: dict[str, list[float]] = {"one at a time": [], "all at once": []}
    for number in range(options.rounds):
        found = {}
        for side in [*rates][:: 1 if number % 2 else -1]:
            seconds, passes, found[side] = run(side == "all at once")
            rates[side].append(sum(lengths) / seconds)
            if number == 0:
                print(f"{side}: {passes} passes for {sum(lengths)} new ids", flush=True)
        same = sum(a == b for a, b in zip(*found.values(), strict=True))
    worker.close()
    for side, each in rates.items():
        print(f"{side}: {statistics.median(each):,.0f} tokens/s")
    ratios = [together / alone for alone, together in zip(*rates.values(), strict=True)]
    print(f"ratio: {statistics.median(ratios):.2f}; same ids: {same} of {len(places)}")


if __name__ == "__main__":
    main()
