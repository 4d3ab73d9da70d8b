"""One base, two prompts, two tasks: what the shipped rows show, as a table.

usage: python benchmarks/quality/two_tasks.py [--out DIR]

Trains a prompt for each shipped task with train.py's defaults and 12 virtual tokens, decodes greedily on rows that no
prompt was trained on, and compares each answer, as a string, with the right answer in every manner.
"""

import argparse
import tempfile
import time
from pathlib import Path

import paths  # noqa: F401
import torch
from world.manners import TASKS, answers

from softprompt import SoftPromptEmbedding, SoftPromptModel, load_prompt
from softprompt.answering.batch import generate_answers
from softprompt.base.loading import Base, load_base
from softprompt.config.commands import DEFAULT_MODEL, Sampling, TrainConfig
from softprompt.data.row import Row
from softprompt.data.splits import load_split, load_splits
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoded_splits import encode_splits
from softprompt.tokens.encoding import Encoder
from softprompt.training.run import prepare_run

SPLITS = {"validation": "held-out rows", "test": "questions never pre-trained"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="keep the two prompt files there (default: a temporary folder)")
    folder = parser.parse_args().out
    silence_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        compare(Path(folder or temporary))


def compare(folder: Path) -> None:
    """Train both prompts into `folder` and print one line per model and set of rows."""
    prompts = {task: train(task, folder / f"{task}.safetensors") for task in TASKS}
    base = load_base(DEFAULT_MODEL, device=torch.device("cpu"), precision="fp32")
    noise = torch.randn(12, base.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    noise *= next(iter(prompts.values())).std()
    sides = {"no prompt": None, "random prompt": noise} | {f"{task} prompt": w for task, w in prompts.items()}
    for split, title in SPLITS.items():
        print(f"\n{title}: greedy answers equal to the right answer in this manner, %")
        print(f"{'':24}" + "".join(f"{column:>19}" for column in [*TASKS, "any manner"]))
        rows = load_split(f"builtin:{next(iter(TASKS))}", split)[0]
        for name, weight in sides.items():
            shares = score(base, weight, rows)
            print(f"{name:24}" + "".join(f"{share:19.1f}" for share in shares))


def train(task: str, path: Path) -> torch.Tensor:
    """The run that `train.py --data builtin:TASK --virtual-tokens 12` is; returns the prompt `[P, H]`."""
    start = time.perf_counter()
    config = TrainConfig(data=f"builtin:{task}", virtual_tokens=12, prompt_file=str(path), overwrite=True)
    splits = load_splits(config.data, seed=config.seed)
    base = load_base(config.model, device=torch.device("cpu"), precision=config.precision)
    prepare_run(config, base, encode_splits(splits, Encoder(base.tokenizer), max_length=config.max_length)).run()
    print(f"trained the {task} prompt in {time.perf_counter() - start:.0f} s", flush=True)
    return load_prompt(path).weight


def score(base: Base, weight: torch.Tensor | None, rows: list[Row]) -> list[float]:
    """Percentage right in each task's manner, then in any manner."""
    prompted = None if weight is None else SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(weight))
    sampling = Sampling(do_sample=False, max_new_tokens=80)
    right = dict.fromkeys([*TASKS, "any"], 0)
    for row in rows:
        (answer,) = generate_answers(prompted or base.model, Encoder(base.tokenizer), sampling, row)
        expected = answers(**row.columns)
        for task in TASKS:
            right[task] += answer == expected[task]
        right["any"] += answer in expected.values()
    return [100 * count / len(rows) for count in right.values()]


if __name__ == "__main__":
    main()
