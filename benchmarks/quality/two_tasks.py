"""One base, two prompts, two tasks: what the shipped rows show, as a table.

usage: python benchmarks/quality/two_tasks.py [--out DIR]

Trains a prompt for each shipped task with train.py's defaults and 12 virtual tokens, decodes greedily on rows that no
prompt was trained on, and compares each answer, as a string, with the right answer in every manner.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from paths import ROOT
from world.manners import TASKS, answers

from softprompt import SoftPromptEmbedding, SoftPromptModel, load_prompt
from softprompt.answering.batch import generate_answers
from softprompt.base.loading import Base, load_base
from softprompt.cli.program import quiet_libraries
from softprompt.config.commands import DEFAULT_MODEL, GenerateConfig
from softprompt.data.reading import Row
from softprompt.data.splits import load_table

SPLITS = {"validation": "held-out rows", "test": "questions never pre-trained"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="keep the two prompt files there (default: a temporary folder)")
    folder = parser.parse_args().out
    quiet_libraries()
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
        rows = load_table(f"builtin:{next(iter(TASKS))}", split)
        for name, weight in sides.items():
            shares = score(base, weight, rows)
            print(f"{name:24}" + "".join(f"{share:19.1f}" for share in shares))


def train(task: str, path: Path) -> torch.Tensor:
    """Run the command that a user types; returns the prompt `[P, H]`."""
    start = time.perf_counter()
    command = [sys.executable, "train.py", "--virtual-tokens", "12", "--data", f"builtin:{task}", "--overwrite"]
    subprocess.run([*command, "--prompt-file", str(path)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    print(f"trained the {task} prompt in {time.perf_counter() - start:.0f} s", flush=True)
    return load_prompt(path).weight


def score(base: Base, weight: torch.Tensor | None, rows: list[Row]) -> list[float]:
    """Percentage right in each task's manner, then in any manner."""
    prompted = None if weight is None else SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(weight))
    config = GenerateConfig(do_sample=False, max_new_tokens=80)
    right = dict.fromkeys([*TASKS, "any"], 0)
    for row in rows:
        question = {"instruction": row.instruction, "input": row.input}
        (answer,) = generate_answers(prompted or base.model, base.tokenizer, config, **question)
        expected = answers(**question)
        for task in TASKS:
            right[task] += answer == expected[task]
        right["any"] += answer in expected.values()
    return [100 * count / len(rows) for count in right.values()]


if __name__ == "__main__":
    main()
