"""Where a packed step's time goes: the step as it is, and again with one part after another taken out.

usage: python benchmarks/speed/parts.py [--shape bloom-389m-zh] [--precision bf16] [--virtual-tokens 12] [--rows 48]

A part's cost is what the step saves without it, so data that no longer pass through the cache count too. The parts are
swapped for the cheapest thing of the same shape, in turns, and the best of the rounds is shown; below stand single
operations alone, in a loop whose data stay in the cache. BLOOM shapes only.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from flops import least_flops, measured_peak, model_size
from rows import choose_rows, encoded
from shapes import DEFAULT_CACHE, DTYPES, SHAPES, make_checkpoint
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from softprompt.engine import forward
from softprompt.engine.front import Front
from softprompt.optim import soap
from softprompt.packs import attention, bloom
from softprompt.packs.batches import Pack, cut_passes, pack_rows
from softprompt.system.process import silence_libraries

ROWS_PER_STEP = 8


class NoAttention(torch.autograd.Function):
    """Hands the queries on."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query.transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad = grad.transpose(0, 1)
        return grad, grad, grad


PARTS = {
    "attention": (forward, "_attend", lambda layout, query, key, value, rules: NoAttention.apply(query, key, value)),
    "head and loss": (forward, "head_cross_entropy", lambda hidden, head, targets: hidden.float().square().sum()),
    "GELU (a ReLU instead)": (bloom, "gelu", lambda x, bias: F.relu(x)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[name for name in SHAPES if "llama" not in name], default="bloom-389m-zh")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16", help="default: %(default)s")
    parser.add_argument("--virtual-tokens", type=int, default=12, metavar="P", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=48, help="a multiple of 8 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--data", help="rows as for train.py --data (default: generated, as long as Alpaca's)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    silence_libraries()
    in_place(options)
    alone(DTYPES[options.precision])


def in_place(options: argparse.Namespace) -> None:
    """Print seconds per step, whole and without each part."""
    rows, all_rows = choose_rows(options.data, options.rows)
    folder = make_checkpoint(options.shape, SHAPES[options.shape], options.precision, all_rows, options.cache)
    model = (
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=DTYPES[options.precision])
        .eval()
        .requires_grad_(False)
    )
    prompt = torch.randn(options.virtual_tokens, model.config.hidden_size, requires_grad=True)
    ids = encoded(rows, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    steps = [ids[start : start + ROWS_PER_STEP] for start in range(0, len(ids), ROWS_PER_STEP)]
    packs = [as_pack(step, options.virtual_tokens) for step in steps]
    best = {name: float("inf") for name in ("whole", *PARTS, "all three")}
    for _ in range(options.rounds):
        for name in best:
            with without(*(PARTS if name == "all three" else [name] if name in PARTS else [])):
                best[name] = min(best[name], seconds(lambda: train(model, prompt, packs)) / len(packs))
    least = least_flops(model_size(SHAPES[options.shape]), ids, options.virtual_tokens, len(packs)) / len(packs)
    peak = measured_peak(options.precision, "cpu")
    print(f"{options.shape}, {options.precision}, P={options.virtual_tokens}, {torch.get_num_threads()} threads,")
    print(f"{sum(len(pack.position_ids) for pack in packs) / len(packs):.0f} tokens in the passes of a step\n")
    print(f"{'a step':32}{best['whole']:8.3f} s")
    for name in list(best)[1:]:
        print(f"{'  without ' + name:32}{best[name]:8.3f} s   saves {best['whole'] - best[name]:.3f}")
    print(f"{'  its least FLOPs at the peak':32}{least / peak:8.3f} s   ({peak / 1e12:.2f} TFLOP/s)\n")


def as_pack(step: list, virtual_tokens: int) -> Pack:
    """All rows of a step in one pass."""
    (members,) = cut_passes(step, front_length=virtual_tokens, max_tokens=1 << 30)
    return pack_rows(members, front_length=virtual_tokens)


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """In this block, these parts of the engine are swapped."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(*PARTS[name]))
        yield


def train(model: PreTrainedModel, prompt: Tensor, packs: list[Pack]) -> None:
    for pack in packs:
        forward.pack_loss(model, Front(prompt=prompt), pack).backward()


def alone(dtype: torch.dtype) -> None:
    """Print milliseconds of single operations, forward and backward, by the way they are done."""
    print("alone, milliseconds forward and backward")
    for name, ways in operations(dtype):
        figures = [f"{way} {1e3 * min(seconds(call) for _ in range(15)):.2f}" for way, call in ways.items()]
        print(f"  {name}: {', '.join(figures)}")


def operations(dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """What is done in its own way here, and the optimizer's step."""
    x = torch.randn(744, 4096).to(dtype).requires_grad_()
    bias, grad = torch.zeros(4096, dtype=dtype), torch.ones(744, 4096, dtype=dtype)
    yield (
        "GELU of 744 x 4,096",
        {
            "torch": lambda: torch.autograd.grad(F.gelu(x + bias, approximate="tanh"), x, grad),
            "bloom.py": lambda: torch.autograd.grad(bloom.gelu(x, bias), x, grad),
        },
    )
    bounds = [12, 252, 402, 512, 602, 672, 732, 762, 782]  # eight rows of 240 to 20 places behind 12 shared ones
    lengths = [end - start for start, end in pairwise(bounds)]
    positions = [*range(12), *(place for length in lengths for place in range(12, 12 + length))]
    layout, rules = attention.Layout(bounds, torch.tensor(positions)), attention.Rules(0.125, slopes=torch.ones(16))
    parts = [torch.randn(16, bounds[-1], 64).to(dtype).requires_grad_() for _ in range(3)]
    ones = torch.ones(bounds[-1], 16, 64, dtype=dtype)

    def by_autograd(one: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        query, key, value = parts
        outputs = []
        for start, end in layout.tiles:
            bias = layout.bias(start, end, rules, dtype, 16, 16)
            outputs.append(one(query[:, start:end], layout.seen(key, start, end), layout.seen(value, start, end), bias))
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def kernel(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias[None])[0]

    def products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return torch.bmm(torch.baddbmm(bias, query, key.transpose(1, 2), alpha=rules.scale).softmax(-1), value)

    query, key, value = parts

    def own() -> Tensor:
        return attention.attend(query, key, value, layout, rules)

    yield (
        "attention of a pack of eight rows, 16 heads",
        {
            "scaled_dot_product_attention": lambda: torch.autograd.grad(by_autograd(kernel), parts, ones),
            "autograd over products": lambda: torch.autograd.grad(by_autograd(products), parts, ones),
            "attention.py": lambda: torch.autograd.grad(
                attention.attend(query, key, value, layout, rules), parts, ones
            ),
        },
    )

    windows = [torch.randn(soap.window(length), length, 1024) for length in (12, 100)]
    yield (
        "a step of SOAP, 1,024 wide (forward only)",
        {f"{len(last[0])} virtual tokens": partial(soap.direction, last, (0.8, 0.95)) for last in windows},
    )


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
