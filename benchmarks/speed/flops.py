"""What a step must compute at least, and what the machine can compute at most: the two sides of model FLOP utilisation.

usage: python benchmarks/speed/flops.py [--precision bf16] [--device cpu]      prints the measured peak

The least counts every text token that some prediction reads once, the prompt once per step and the head at supervised
tokens only: two FLOPs per linear weight forward and two for the input's gradient, none for weight gradients, nothing
for recomputation, padding or element-wise work. It is the same number for every side, LoRA's included, so that the
figures can be compared. Two savings worth about 2 % of 24 layers are left in it: the last layer's work at places
without a label, and the first layer's gradient of the text.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from shapes import DTYPES
from transformers import AutoModelForCausalLM, PreTrainedConfig

from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

MATRIX_SIZES = {"cpu": (3072, 4096, 5120), "cuda": (4096, 8192, 12288)}


@dataclass(frozen=True)
class ModelSize:
    """What FLOPs depend on: linear weights of all layers, of the head, and attention's layers and width."""

    linear_weights: int
    head_weights: int
    layers: int
    attention_width: int  # query heads x their size


def model_size(config: PreTrainedConfig) -> ModelSize:
    """Count the weights on the meta device, where they take no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        linear_weights=sum(module.weight.numel() for module in linear),
        head_weights=head.weight.numel(),
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_size,
    )


def least_flops(size: ModelSize, rows: Sequence[EncodedRow], virtual_tokens: int, steps: int) -> int:
    """FLOPs that forward and backward over `rows` in `steps` steps need at least."""
    tokens, pairs = steps * virtual_tokens, steps * _causal_pairs(virtual_tokens)
    supervised = 0
    for row in rows:
        inputs = inputs_read(row)
        tokens += inputs
        pairs += inputs * virtual_tokens + _causal_pairs(inputs)
        supervised += row.num_supervised
    # scores and values are 2 products forward and 4 backward, each of 2 FLOPs per pair and column
    attention = 12 * size.layers * size.attention_width * pairs
    return 4 * size.linear_weights * tokens + 4 * size.head_weights * supervised + attention


def inputs_read(row: EncodedRow) -> int:
    """Tokens of a row that some prediction reads: all before its last label."""
    return max((place for place, label in enumerate(row.labels) if label != IGNORE_INDEX), default=0)


def _causal_pairs(tokens: int) -> int:
    """Pairs of a query and a key that it may see, itself included."""
    return tokens * (tokens + 1) // 2


def measured_peak(precision: str, device: str, repeats: int = 4) -> float:
    """FLOP/s of the best of three large square matrix products."""
    best = 0.0
    for size in MATRIX_SIZES[torch.device(device).type]:
        left, right = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
        out = torch.empty_like(left)
        seconds = min(_seconds_of_product(left, right, out) for _ in range(repeats))
        best = max(best, 2 * size**3 / seconds)
    return best


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    synchronize = torch.cuda.synchronize if left.is_cuda else bool
    synchronize()
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(json.dumps({"peak_flops": measured_peak(options.precision, options.device)}))


if __name__ == "__main__":
    main()
