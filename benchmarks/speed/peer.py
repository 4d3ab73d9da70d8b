"""The peer's side of `compare_peft.py`: PEFT + transformers' Trainer on Alpaca rows, as one JSON line.

usage: python benchmarks/speed/peer.py MODEL ROWS.jsonl [--method prompt] [--virtual-tokens 12]
       [--batch 1] [--loading fp32]

Rows, template, cut, epochs and rows per step are those of the tutorial that softprompt replaces. The first rows of the
file warm the process up in a Trainer of their own and are not timed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

INIT_TEXT = "The following is a dialog between a human and a robot."
ROWS_PER_STEP = 8


class Clock(TrainerCallback):
    """Seconds of every optimizer step; fetching and padding its rows is not in them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__) -> None:
        self.begin = self._now()

    def on_step_end(self, *_, **__) -> None:
        self.seconds.append(self._now() - self.begin)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    options = parse()
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    lines = Path(options.rows).read_text("utf-8").splitlines()
    rows = [encode(json.loads(line), tokenizer, options.max_length) for line in lines]
    model = load(options)
    train(model, tokenizer, rows[: options.warm_up_rows], options)
    rows = rows[options.warm_up_rows :]
    seconds = train(model, tokenizer, rows, options)
    supervised = sum(label != -100 for row in rows for label in row["labels"])
    text = sum(len(row["input_ids"]) for row in rows)
    print(json.dumps({"step_seconds": seconds, "supervised_tokens": supervised, "text_tokens": text}), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--method", choices=["prompt", "lora", "lora-all-linear"], default="prompt")
    parser.add_argument("--virtual-tokens", type=int, default=12)
    parser.add_argument("--loading", choices=["fp32", "autocast", "bf16"], default="fp32", help="autocast: fp32 too")
    parser.add_argument("--batch", type=int, default=1, help="rows per forward pass, of 8 per step")
    parser.add_argument("--sampling", choices=["sequential", "group_by_length"], default="sequential")
    parser.add_argument("--warm-up-rows", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args()


def encode(row: dict[str, str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list[int]]:
    """The tutorial's encoding: labels cover answer and eos."""
    question = "\n".join(["Human: " + row["instruction"], row["input"]]).strip() + "\n\nAssistant: "
    question_ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    ids = (question_ids + answer_ids)[:max_length]
    labels = ([-100] * len(question_ids) + answer_ids)[:max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def load(options: argparse.Namespace) -> PeftModel:
    """The base with a prompt, or with LoRA of rank 8 on PEFT's default targets or on every linear layer."""
    dtype = torch.bfloat16 if options.loading == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=False, dtype=dtype)
    if options.method == "prompt":
        config = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            prompt_tuning_init=PromptTuningInit.TEXT,
            prompt_tuning_init_text=INIT_TEXT,
            num_virtual_tokens=options.virtual_tokens,
            tokenizer_name_or_path=options.model,
        )
    else:
        targets = "all-linear" if options.method == "lora-all-linear" else None
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, target_modules=targets)
    return get_peft_model(base, config)


def train(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], options: argparse.Namespace
) -> list[float]:
    """One epoch; returns the seconds of its steps."""
    if not rows:
        return []
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.batch,
            gradient_accumulation_steps=ROWS_PER_STEP // options.batch,
            num_train_epochs=1,
            train_sampling_strategy=options.sampling,
            bf16=options.loading == "autocast",
            use_cpu=options.device == "cpu" or not torch.cuda.is_available(),
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds


if __name__ == "__main__":
    main()
