"""One side of `compare_decode.py`: greedy decoding with a saved prompt, case by case, as one JSON line.

usage: python benchmarks/speed/decoder.py {softprompt,peft} MODEL PROMPT_FOLDER CASES.json
       [--precision bf16] [--device cpu]

CASES.json: a list of cases, each a list of rows of token ids, padded on the left here.

The bound of decoding one row is the memory: a token needs every weight once. So the time of a plain read of the same
tensors, their largest 64-bit word, is measured between the cases as well.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import home  # noqa: F401
import torch
from shapes import DTYPES, SPECIAL_IDS
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from softprompt import SoftPromptEmbedding, SoftPromptModel, load_prompt

PROMPT_NAME = "adapter_model.safetensors"


def main() -> None:
    options = parse()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, trust_remote_code=False, dtype=DTYPES[options.precision]
    ).to(options.device)
    attach = {"softprompt": with_softprompt, "peft": with_peft}[options.side]
    generate = attach(model.eval(), Path(options.prompt))
    cases = json.loads(Path(options.cases).read_text("utf-8"))
    weights = weights_of_a_token(model)
    results = []
    for rows in cases:
        before = seconds_to_read(weights)
        result = decode(generate, rows, options)
        results.append(result | {"read_seconds": min(before, seconds_to_read(weights)), "weight_bytes": size(weights)})
    print(json.dumps({"cases": results}), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["softprompt", "peft"])
    parser.add_argument("model")
    parser.add_argument("prompt", help="folder with adapter_model.safetensors and adapter_config.json")
    parser.add_argument("cases")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1, help="timed calls of each case, after two short ones")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def with_softprompt(base: PreTrainedModel, folder: Path) -> Callable[..., Tensor]:
    """Our `generate` behind the prompt."""
    prompt = SoftPromptEmbedding.from_tensor(load_prompt(folder / PROMPT_NAME).weight)
    return SoftPromptModel(base, prompt).eval().generate


def with_peft(base: PreTrainedModel, folder: Path) -> Callable[..., Tensor]:
    """PEFT's `generate` behind the prompt."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder).eval().generate


def decode(generate: Callable[..., Tensor], rows: list[list[int]], options: argparse.Namespace) -> dict[str, object]:
    """Seconds of every timed call and of one that stops at the first new id, and the new ids `[B][new]`."""
    input_ids, mask = pad_left(rows, options.device)
    length = input_ids.shape[1]

    def timed(new: int) -> tuple[float, Tensor]:
        start = time.perf_counter()
        with torch.inference_mode():
            settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
            ids = generate(input_ids=input_ids, attention_mask=mask, **settings).cpu()
        assert ids.shape == (len(rows), length + new), (ids.shape, length, new)
        return time.perf_counter() - start, ids[:, length:]

    timed(2)
    first, _ = timed(1)
    calls = [timed(options.new_tokens) for _ in range(options.repeats)]
    return {"first_seconds": first, "seconds": [each for each, _ in calls], "ids": calls[-1][1].tolist()}


def weights_of_a_token(model: PreTrainedModel) -> list[Tensor]:
    """The tensors that a token's forward pass reads as a whole; of an untied input embedding it reads one row."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    tensors = {id(each): each for each in model.parameters() if each is not embedding or each is head}
    return [each.detach() for each in tensors.values()]


def size(weights: list[Tensor]) -> int:
    """Bytes."""
    return sum(each.nbytes for each in weights)


def seconds_to_read(weights: list[Tensor], repeats: int = 3) -> float:
    """The least seconds of a pass over all tensors, in which every 64-bit word of them is compared."""
    flat = [each.flatten() for each in weights]
    words = [each.view(torch.int64) if each.nbytes % 8 == 0 else each for each in flat]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for each in words:
            each.amax()
        if words[0].is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def pad_left(rows: list[list[int]], device: str) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`."""
    longest = max(map(len, rows))
    ids = [[SPECIAL_IDS["pad_token_id"]] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


if __name__ == "__main__":
    main()
