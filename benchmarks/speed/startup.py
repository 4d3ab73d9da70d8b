"""How long `train.py` takes until its first step is done, against the bare imports and loading of the same base.

usage: python benchmarks/speed/startup.py [--rounds 5]

Both are new processes, in turns, on the base that ships with the package. train.py has by then also read and encoded
its rows, hashed the base and printed the held-out loss without and with the initial prompt.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from home import ROOT

BARE = """
import torch, transformers
transformers.logging.disable_progress_bar()
folder = "softprompt/assets/bloom-small"
transformers.AutoTokenizer.from_pretrained(folder)
transformers.AutoModelForCausalLM.from_pretrained(folder)
print("step", flush=True)
"""
SIDES = {"import torch, transformers and load": [], "train.py": [], "train.py --eval-fraction 0": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        train = ["train.py", "--virtual-tokens", "12", "--logging-steps", "1", "--max-steps", "1", "--overwrite"]
        train += ["--prompt-file", str(Path(folder) / "prompt.safetensors")]
        commands = dict(zip(SIDES, (["-c", BARE], train, [*train, "--eval-fraction", "0"]), strict=True))
        until_first_step(commands["train.py"])  # fills the disk's cache
        for _ in range(rounds):
            for side, command in commands.items():
                SIDES[side].append(until_first_step(command))
    bare, *_ = SIDES.values()
    for side, seconds in SIDES.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, bare, strict=True))
        print(f"{side:36}{statistics.median(seconds):6.2f} s   {ratio:.2f} x")


def until_first_step(words: Sequence[str]) -> float:
    """Seconds until a line that begins with "step"; the process is waited for."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            break
    else:
        raise SystemExit(f"{words[0]} ended before its first step")
    seconds = time.perf_counter() - start
    process.communicate()
    return seconds


if __name__ == "__main__":
    main()
