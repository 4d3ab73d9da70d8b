"""One side of `compare_decode.py`: greedy decoding with a saved prompt, case by case, as one JSON line.

usage: python benchmarks/speed/decoder.py {softprompt,peft} MODEL PROMPT_FOLDER CASES.json
       [--precision bf16] [--device cpu]

CASES.json: a list of cases, each a list of rows of token ids, padded on the left here.
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
    results = [decode(generate, rows, options) for rows in cases]
    print(json.dumps({"cases": results}), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["softprompt", "peft"])
    parser.add_argument("model")
    parser.add_argument("prompt", help="folder with adapter_model.safetensors and adapter_config.json")
    parser.add_argument("cases")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1, help="timed calls of each case, after one that is not")
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
    """Seconds of every timed call, and the new ids `[B][new]` of the last one."""
    input_ids, mask = pad_left(rows, options.device)
    length, new = input_ids.shape[1], options.new_tokens
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    seconds = []
    for _ in range(1 + options.repeats):
        start = time.perf_counter()
        with torch.inference_mode():
            ids = generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False).cpu()
        seconds.append(time.perf_counter() - start)
    assert ids.shape == (len(rows), length + new), (ids.shape, length, new)
    return {"seconds": seconds[1:], "ids": ids[:, length:].tolist()}


def pad_left(rows: list[list[int]], device: str) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`."""
    longest = max(map(len, rows))
    ids = [[SPECIAL_IDS["pad_token_id"]] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


if __name__ == "__main__":
    main()
