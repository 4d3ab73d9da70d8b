"""Greedy decoding of softprompt against PEFT: same base, same prompt file, same questions, in turns.

usage: python benchmarks/speed/compare_decode.py [--shape bloom-389m-zh] [--virtual-tokens 12 100]
           [--precision bf16 fp32] [--batch 1 8 32] [--new-tokens 64] [--rounds 3] [--json OUT]

Both sides run in processes of their own and write exactly --new-tokens tokens for every question. A batch holds
questions of different lengths, padded on the left; "shared" ones are as long as "long" ones and have the first 100
tokens in common. The first call of each case is not timed. Equal answers are rows whose ids are the same on both sides:
to be expected in fp32, where they also show that both sides do the same work.

A token of one row cannot take less time than a plain read of all weights, which is measured in the same processes
(`decoder.py`). The share of that bound is the time of the read over the time of a token behind the first.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from compare_peft import resolve_device
from rows import TEMPLATE_TOKENS, choose_rows, rows_of_lengths
from shapes import DEFAULT_CACHE, SHAPES, make_checkpoint, make_tokenizer
from sides import SCRIPTS, Place, run_script

from softprompt import SoftPromptEmbedding, save_prompt
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoding import Encoder

SIDES = ("softprompt", "peft")
QUESTION_TOKENS = {"short": (8, 24), "long": (160, 240), "shared": (160, 240)}
SHARED_TOKENS = 100  # of the questions that have their beginning in common
PROMPT_SCALE = 0.02  # that of the random embeddings


@dataclass(frozen=True)
class Case:
    """Questions decoded together: `rows` are their token ids."""

    questions: str
    batch: int
    rows: list[list[int]]


@dataclass
class Result:
    """One line of the table: tokens per second of every round, and how many rows got the same ids."""

    precision: str
    virtual_tokens: int
    questions: str
    batch: int
    rates: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    token_seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    read_seconds: list[float] = field(default_factory=list)
    weight_bytes: int = 0
    equal_rows: int = 0

    @property
    def ratio(self) -> float:
        """Median over the rounds of softprompt's rate over PEFT's."""
        return statistics.median(our / their for our, their in zip(*self.rates.values(), strict=True))

    def share(self, side: str) -> float:
        """Of the bound for one row that a side reaches: the fastest read over the median of a token's seconds."""
        return min(self.read_seconds) / statistics.median(self.token_seconds[side])


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    silence_libraries()
    place = Place(resolve_device(options.device), options.threads, options.cache)
    _, all_rows = choose_rows(None, 1)
    cases = make_cases(options, make_tokenizer(all_rows, SHAPES[options.shape].vocab_size))
    results = []
    for precision in options.precision:
        model = make_checkpoint(options.shape, SHAPES[options.shape], precision, all_rows, options.cache)
        for virtual_tokens in options.virtual_tokens:
            results += compare(model, precision, virtual_tokens, cases, place, options)
    caption = describe(options, place)
    print(f"{caption}\n\n{table(results)}\n\n{bounds(results)}")
    if options.json:
        record = {"caption": caption, "options": vars(options), "results": [asdict(result) for result in results]}
        Path(options.json).write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="bloom-389m-zh", help="default: %(default)s")
    add("--virtual-tokens", type=int, nargs="+", default=[12, 100], metavar="P", help="default: 12 100")
    add("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"], help="default: bf16 fp32")
    add("--batch", type=int, nargs="+", default=[1, 8, 32], help="questions decoded together (default: 1 8 32)")
    add("--questions", nargs="+", choices=list(QUESTION_TOKENS), default=list(QUESTION_TOKENS), help="default: both")
    add("--new-tokens", type=int, default=64, help="tokens of every answer, at least 2 (default: %(default)s)")
    add("--rounds", type=int, default=3, help="runs of both sides, in turns (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s")
    add("--cache", type=Path, default=DEFAULT_CACHE, help="where checkpoints are made (default: %(default)s)")
    add("--json", metavar="OUT", help="write everything that was measured there")
    return parser.parse_args(argv)


def make_cases(options: argparse.Namespace, tokenizer: transformers.PreTrainedTokenizerBase) -> list[Case]:
    """Every batch size with short and with long questions, of lengths drawn evenly from their range."""
    cases = []
    for name in options.questions:
        source = random.Random(name)
        lengths = [source.randint(*QUESTION_TOKENS[name]) for _ in range(max(options.batch))]
        rows = rows_of_lengths([(max(length, TEMPLATE_TOKENS + 1), 2) for length in lengths])
        ids = Encoder(tokenizer).questions(rows)
        if name == "shared":
            ids = [[*ids[0][:SHARED_TOKENS], *each[SHARED_TOKENS:]] for each in ids]
        cases += [Case(name, batch, ids[:batch]) for batch in options.batch]
    return cases


def compare(
    model: Path, precision: str, virtual_tokens: int, cases: list[Case], place: Place, options: argparse.Namespace
) -> list[Result]:
    """Both sides in turns over all cases, with one random prompt."""
    results = [Result(precision, virtual_tokens, case.questions, case.batch) for case in cases]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_random_prompt(folder, model, virtual_tokens)
        (folder / "cases.json").write_text(json.dumps([case.rows for case in cases]), "utf-8")
        words = [str(model), str(folder), str(folder / "cases.json"), "--precision", precision]
        words += ["--new-tokens", str(options.new_tokens), "--device", place.device]
        for number in range(options.rounds):
            ids = {}
            for side in SIDES:
                print(f"{precision}, P={virtual_tokens}, round {number + 1}: {side}", file=sys.stderr, flush=True)
                output, _ = run_script(SCRIPTS / "decoder.py", [side, *words], place)
                ids[side] = record(results, side, output["cases"], options.new_tokens)
            for result, ours, theirs in zip(results, ids["softprompt"], ids["peft"], strict=True):
                result.equal_rows = sum(our == their for our, their in zip(ours, theirs, strict=True))
    return results


def record(results: list[Result], side: str, outputs: list[dict], new_tokens: int) -> list[list[list[int]]]:
    """Add one process's rates to the results; returns the new ids of every case."""
    for result, output in zip(results, outputs, strict=True):
        seconds = statistics.median(output["seconds"])
        result.rates[side].append(result.batch * new_tokens / seconds)
        result.token_seconds[side].append((seconds - output["first_seconds"]) / (new_tokens - 1))
        result.read_seconds.append(output["read_seconds"])
        result.weight_bytes = output["weight_bytes"]
    return [output["ids"] for output in outputs]


def save_random_prompt(folder: Path, model: Path, virtual_tokens: int) -> None:
    """A prompt file under PEFT's name, and the config that PEFT wants beside it."""
    from peft import PromptTuningConfig, TaskType

    config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
    generator = torch.Generator().manual_seed(0)
    weight = PROMPT_SCALE * torch.randn(virtual_tokens, config.hidden_size, generator=generator)  # [P, H]
    save_prompt(folder / "adapter_model.safetensors", SoftPromptEmbedding.from_tensor(weight), {"base": model.name})
    PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=virtual_tokens,
        token_dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_transformer_submodules=1,
        inference_mode=True,
    ).save_pretrained(folder)


def describe(options: argparse.Namespace, place: Place) -> str:
    """The table's caption: what was run, and on what."""
    where = f"CPU threads: {place.threads}" if place.device == "cpu" else torch.cuda.get_device_name()
    lengths = ", ".join(f"{name} {low}–{high}" for name, (low, high) in QUESTION_TOKENS.items())
    return (
        f"`{options.shape}`, {options.new_tokens} new tokens for each question (tokens of a question: {lengths}),"
        f" rounds: {options.rounds}, {where}, torch {torch.__version__.split('+')[0]},"
        f" transformers {transformers.__version__}"
    )


def table(results: Sequence[Result]) -> str:
    """Markdown, one line per case."""
    head = ["precision", "P", "questions", "batch", "softprompt, tokens/s", "`PeftModel.generate`, tokens/s"]
    head += ["ratio", "share of the bound", "PEFT's share", "equal answers"]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
    for result in results:
        rates = [f"{statistics.median(result.rates[side]):,.1f}" for side in SIDES]
        cells = [result.precision, str(result.virtual_tokens), result.questions, str(result.batch), *rates]
        shares = [f"{result.share(side):.0%}" if result.batch == 1 else "" for side in SIDES]
        cells += [f"{result.ratio:.2f}×", *shares, f"{result.equal_rows} of {result.batch}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bounds(results: Sequence[Result]) -> str:
    """How fast the weights of each precision were read, and the tokens per second that this allows one row."""
    lines = []
    for precision in dict.fromkeys(result.precision for result in results):
        own = [result for result in results if result.precision == precision]
        least, size = min(min(result.read_seconds) for result in own), own[0].weight_bytes
        lines.append(
            f"A plain read of the {size / 1e9:.2f} GB of weights in {precision} reached {size / least / 1e9:.1f} GB/s"
            f" at best: at most {1 / least:.1f} tokens/s for one row."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
