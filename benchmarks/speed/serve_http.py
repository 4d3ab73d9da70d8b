"""Requests of different prompts to `examples/serve.py` over HTTP: all at once against one at a time, in turns.

usage: python benchmarks/speed/serve_http.py [--requests 64] [--prompts 8] [--new-tokens 32] [--rounds 3]
           (the extra `serve` is needed)

It trains the prompts on the shipped base for one step each, starts the server on a port of its own, and asks over
connections that stay open, one for each request that is under way. Both sides ask the same, greedily.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from home import ROOT
from size import WORDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32, help="most of an answer; they have from 1 to so many")
    parser.add_argument("--max-rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), options.prompts)
        asked = [
            {
                "model": f"p{place % options.prompts}",
                "prompt": f"Question {place}: " + " ".join(WORDS[: 1 + 5 * place % len(WORDS)]),
                "max_tokens": 1 + 7 * place % options.new_tokens,
                "temperature": 0,
            }
            for place in range(options.requests)
        ]
        with server(Path(folder), options.max_rows) as port:
            compare(port, asked, options.rounds)


def train(folder: Path, count: int) -> None:
    """Write so many prompt files into a folder."""
    for place in range(count):
        words = ["train", "--max-steps", "1", "--per-device-train-batch-size", "1", "--eval-fraction", "0"]
        words += ["--virtual-tokens", str(4 + 2 * place), "--seed", str(place)]
        words += ["--run-dir", str(folder / f"run{place}"), "--prompt-file", str(folder / f"p{place}.safetensors")]
        subprocess.run([sys.executable, "-m", "softprompt", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def server(folder: Path, max_rows: int) -> Iterator[int]:
    """Start the server, and give its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--prompts", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--max-rows", str(max_rows)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def compare(port: int, asked: list[dict], rounds: int) -> None:
    """Print tokens per second of both sides, and in how many answers they agree."""
    answers: dict[str, list[str]] = {}
    rates: dict[str, list[float]] = {"one at a time": [], "all at once": []}
    run(port, asked, len(asked))  # computes the fronts
    for number in range(rounds):
        for side in [*rates][:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            answers[side], tokens = run(port, asked, len(asked) if side == "all at once" else 1)
            rates[side].append(tokens / (time.perf_counter() - start))
    for side, each in rates.items():
        print(f"{side}: {statistics.median(each):,.0f} tokens/s")
    ratios = [together / alone for alone, together in zip(*rates.values(), strict=True)]
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    print(f"ratio: {statistics.median(ratios):.2f}; same answers: {same} of {len(asked)}")


def run(port: int, asked: list[dict], at_once: int) -> tuple[list[str], int]:
    """Ask everything, so many requests at a time: the answers, and how many tokens they have."""
    kept = threading.local()

    def ask(content: dict) -> tuple[str, int]:
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        kept.connection.request("POST", "/v1/completions", json.dumps(content), {"Content-Type": "application/json"})
        response = kept.connection.getresponse()
        found = json.loads(response.read())
        if response.status != 200:
            sys.exit(f"status {response.status}: {found}")
        return found["choices"][0]["text"], found["usage"]["completion_tokens"]

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(ask, asked))
    return [text for text, _ in found], sum(tokens for _, tokens in found)


if __name__ == "__main__":
    main()
