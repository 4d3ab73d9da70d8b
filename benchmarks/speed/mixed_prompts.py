"""Greedy decoding of one batch: one prompt for all rows against a prompt for each row, in turns.

usage: python benchmarks/speed/mixed_prompts.py --model FOLDER [--batch 32] [--virtual-tokens 20] [--new-tokens 32]
           [--rounds 5] [--precision bf16]

`shared` is the model's own prompt, `different` a prompt of P tokens for each row, and `lengths` the same with 1 to P
tokens. Before the timing, the floating-point operations and the base's forward passes of each are counted once. The
first call of a side, which computes the fronts, is neither timed nor counted. On a CPU, seconds are those that the
process computed, which other programs on the machine disturb less than those on the clock.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import home  # noqa: F401
import torch
from torch.utils.flop_counter import FlopCounterMode

from softprompt import SoftPromptEmbedding, SoftPromptModel
from softprompt.base.loading import load_base
from softprompt.system.process import silence_libraries

SCALE = 0.02


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--question-tokens", type=int, nargs=2, default=[8, 24], metavar=("LEAST", "MOST"))
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    silence_libraries()
    base = load_base(options.model, device=torch.device(options.device), precision=options.precision)
    torch.manual_seed(0)
    width, most = base.model.get_input_embeddings().weight.shape[1], options.virtual_tokens

    def prompt(count: int) -> SoftPromptEmbedding:
        return SoftPromptEmbedding.from_tensor(SCALE * torch.randn(count, width)).to(base.device)

    model = SoftPromptModel(base.model, prompt(most))
    model.front_caches.kept = 1 + 2 * options.batch  # all sides' fronts stay, so that none is computed within a round
    rows = range(options.batch)
    sides = {
        "shared": None,
        "different": [prompt(most) for _ in rows],
        "lengths": [prompt(1 + row * most // options.batch) for row in rows],
    }
    least, longest = options.question_tokens
    ids = torch.randint(4, base.model.config.vocab_size, (options.batch, longest), device=base.device)
    starts = torch.randint(0, longest - least + 1, (options.batch, 1), device=base.device)
    mask = (torch.arange(longest, device=base.device) >= starts).long()
    settings = {"max_new_tokens": options.new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def run(side: str) -> None:
        model.generate(ids, mask, prompts=sides[side], **settings)
        if base.device.type == "cuda":
            torch.cuda.synchronize()

    calls = []
    handle = base.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    for side in sides:
        run(side)
        calls.clear()
        with FlopCounterMode(display=False) as counter:
            run(side)
        print(f"{side}: {counter.get_total_flops():,} FLOPs, {len(calls)} calls of the embedding", flush=True)
    handle.remove()
    clock = time.process_time if base.device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in [*sides][:: 1 if number % 2 else -1]:
            start = clock()
            run(side)
            seconds[side].append(clock() - start)
    for side, each in seconds.items():
        rates = [options.batch * options.new_tokens / one for one in each]
        ratios = [shared / one for shared, one in zip(seconds["shared"], each, strict=True)]
        print(f"{side}: {statistics.median(rates):,.0f} tokens/s, {statistics.median(ratios):.3f} of shared")


if __name__ == "__main__":
    main()
