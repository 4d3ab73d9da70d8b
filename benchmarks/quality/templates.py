"""How rows are written and where the prompt stands: held-out losses on a base with a chat template.

usage: python benchmarks/quality/templates.py --model FOLDER [--task past] [--steps 40] [--seeds 0 1 2]

Trains one prompt for each way and seed on the rows of a tuning task and prints the loss on rows that neither trained
nor chose it. A loss is per supervised token; the answers are the same, but the token that ends one may differ.
"""

import argparse
import tempfile
from pathlib import Path

import paths  # noqa: F401
import torch
from study_tasks import task

from softprompt.base.loading import load_base
from softprompt.config.commands import TrainConfig
from softprompt.data.splits import Splits
from softprompt.prompt.encoder import encoder_for
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoded_splits import encode_splits
from softprompt.training.run import prepare_run

WAYS = {"tutorial, front": ("tutorial", "front"), "chat, front": ("chat", "front"), "chat, system": ("chat", "system")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a base with a chat template")
    parser.add_argument("--task", default="past", help="a task of study_tasks.py (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps of 8 rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--virtual-tokens", type=int, default=12, help="default: %(default)s")
    options = parser.parse_args()
    silence_libraries()
    base = load_base(options.model, device=torch.device("cpu"), precision="fp32")
    rows = task(options.task)
    splits = Splits(rows.train, rows.select, rows.report)
    print(f"{'rows, prompt':18}{'base alone':>12}  with the prompt, a seed each", flush=True)
    for name, (template, placement) in WAYS.items():
        encoder = encoder_for(base, splits.kinds, template=template, placement=placement)
        encoded = encode_splits(splits, encoder, max_length=256)
        alone, losses = 0.0, []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                config = TrainConfig(
                    prompt_file=str(Path(folder) / "p.safetensors"),
                    virtual_tokens=options.virtual_tokens,
                    max_steps=options.steps,
                    seed=seed,
                )
                result = prepare_run(config, base, encoded).run()
            alone = result.test.without_prompt or 0.0
            losses.append(f"{result.test.trained_prompt:.4f}")
        print(f"{name:18}{alone:12.4f}  {' '.join(losses)}", flush=True)


if __name__ == "__main__":
    main()
