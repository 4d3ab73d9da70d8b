"""Every option once: name, type, default, help and validation. `command_line.py` builds the command line from these."""

import os
from dataclasses import dataclass
from pathlib import Path

from softprompt.config.options import expand_home, is_unicode, option, require, require_counts

DEFAULT_MODEL = "builtin:bloom-small@1"
DEFAULT_DATA = "builtin:polite"
DEFAULT_INIT_TEXT = "The following is a dialog between a human and a robot."
OPTIMS = ("soap", "adamw")
INITS = ("text", "answers", "vocab", "random")
TEST_DATA_HELP = "rows for one last figure that chose nothing (default: the test split, if it is not held out)"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(kw_only=True)
class TrainConfig:
    """Options of `train.py`; names are those of `transformers.TrainingArguments` for the same thing."""

    model: str = option(DEFAULT_MODEL, "frozen base: a folder, a hub id or the BLOOM that ships with softprompt")
    data: str = option(DEFAULT_DATA, "rows to train on: a JSON, JSONL, CSV or Parquet file, a folder, or a hub id")
    prompt_file: str = option("prompt.safetensors", "where the trained prompt is written when the run ends")
    run_dir: str | None = option(
        None, "checkpoints and metrics (default: NAME.run beside a prompt file NAME.safetensors)"
    )
    virtual_tokens: int | None = option(None, "number of virtual tokens P (default: token count of the init text)")
    init: str = option("text", "what the prompt starts from", choices=INITS)
    init_text: str = option(DEFAULT_INIT_TEXT, "text whose embeddings start the prompt with --init text")
    init_from: str | None = option(None, "start from this prompt file instead of --init")
    allow_other_base: bool = option(False, "accept an --init-from prompt that was trained on another base")
    max_length: int = option(256, "cut rows to this many text tokens (virtual tokens not counted)")
    per_device_train_batch_size: int = option(1, "times --gradient-accumulation-steps: the rows of a step")
    gradient_accumulation_steps: int = option(8, "times --per-device-train-batch-size: the rows of a step")
    max_tokens_per_pass: str = option(
        "auto", "a step's rows are packed into forward passes of at most this many tokens; auto: what memory allows"
    )
    num_train_epochs: float | None = option(
        None, "passes over the rows, 1 in the tutorial (default: 1, and as many more as make at least 200 steps)"
    )
    max_steps: int = option(-1, "stop after this many optimizer steps, whatever the epochs; -1: no limit")
    optim: str = option("soap", "SOAP that keeps each virtual token's norm, or torch's AdamW", choices=OPTIMS)
    learning_rate: float | None = option(
        None, "RMS of a first step (default: the prompt's RMS at initialisation, times 0.3 with soap)"
    )
    lr_scheduler_type: str = option(
        "linear", "shape of the rate over the run", choices=("linear", "cosine", "constant", "constant_with_warmup")
    )
    warmup_steps: float = option(0.0, "steps of linear warm-up; below 1: a share of all steps")
    weight_decay: float = option(0.0, "decoupled weight decay of --optim adamw")
    adam_beta1: float = option(0.8, "decay of the mean gradient")
    adam_beta2: float = option(0.95, "decay of the mean squared gradient")
    max_grad_norm: float | None = option(
        None, "clip the prompt's gradient to this norm; 0: no clipping (default: 0.03 over the prompt's RMS)"
    )
    logging_steps: int = option(10, "log every so many steps")
    save_steps: int = option(100, "save a checkpoint every so many steps")
    eval_steps: int | None = option(None, "held-out loss every so many steps (default: ten times in the run)")
    eval_data: str | None = option(
        None, "held-out rows: like --data (default: the data's own validation or test split)"
    )
    eval_fraction: float | None = option(
        None,
        "share of the rows to hold out when there is no held-out split (default: 0.1, at most 200 rows, from 80 on)",
    )
    test_data: str | None = option(None, TEST_DATA_HELP)
    eval_generate: int = option(0, "answer so many of these, or else of the held-out rows, and compare the texts")
    save_last: bool = option(False, "keep the last prompt instead of the one with the lowest held-out loss")
    early_stopping_patience: int | None = option(
        None, "evaluations without a lower loss that end a run (default: no end)"
    )
    precision: str = option("auto", "arithmetic of the frozen base; the prompt stays fp32", choices=PRECISIONS)
    gradient_checkpointing: bool = option(False, "recompute layers in the backward pass: less memory, slower")
    seed: int = option(42, "seed of the order of rows, the held-out share and the vocab and random inits")
    device: str = option("auto", "cpu, cuda, cuda:N or auto")
    resume: bool = option(False, "go on from the last checkpoint in the run folder")
    overwrite: bool = option(False, "replace an existing prompt file and run folder")

    def __post_init__(self) -> None:
        for name in ("prompt_file", "run_dir", "init_from"):
            expand_home(self, name)
        limit = self.max_tokens_per_pass
        whole = limit.isascii() and limit.isdecimal() and int(limit) >= 1
        require(limit == "auto" or whole, self, "max_tokens_per_pass", "must be auto or at least 1")
        require_counts(self, "virtual_tokens", "logging_steps", "save_steps", "eval_steps", "early_stopping_patience")
        require(self.eval_generate >= 0, self, "eval_generate", "must be 0 or above")
        epochs = self.num_train_epochs
        require(epochs is None or 0 < epochs < float("inf"), self, "num_train_epochs", "must be above 0")
        require(self.max_steps == -1 or self.max_steps >= 1, self, "max_steps", "must be -1 or at least 1")
        rate = self.learning_rate
        require(rate is None or 0 < rate < float("inf"), self, "learning_rate", "must be above 0")
        for name in ("warmup_steps", "weight_decay"):
            require(0 <= getattr(self, name) < float("inf"), self, name, "must be 0 or above")
        decays = self.weight_decay == 0 or self.optim == "adamw"
        require(decays, self, "weight_decay", "needs --optim adamw: soap keeps the norms")
        norm = self.max_grad_norm
        require(norm is None or 0 <= norm < float("inf"), self, "max_grad_norm", "must be 0 or above")
        for name in ("adam_beta1", "adam_beta2", "eval_fraction"):
            require(0 <= (getattr(self, name) or 0) < 1, self, name, "must be at least 0 and below 1")
        _check_training(self)

    @property
    def rows_per_step(self) -> int:
        """Rows in one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def run_folder(self) -> Path:
        """Where checkpoints and metrics go: `a/p.run` for `a/p.safetensors` unless given."""
        return Path(self.run_dir) if self.run_dir else _beside(self.prompt_file, ".run")


@dataclass(kw_only=True)
class GenerateConfig:
    """Options of `generate.py`; names are those of `transformers.GenerationConfig` for the same thing."""

    prompt_file: str = option("prompt.safetensors", "the trained prompt")
    model: str | None = option(None, "base to run it on (default: the base that the prompt file names)")
    allow_other_base: bool = option(False, "run the prompt on a base that it was not trained on")
    instruction: str | None = option(None, "the question; - reads it from standard input (default: a sample question)")
    input: str = option("", "extra input that belongs to the question")
    instructions: str | None = option(
        None, "answer every row of a JSON, JSONL, CSV or Parquet file, a folder or a hub id (default: one question)"
    )
    output_file: str | None = option(
        None, "where the answers to --instructions go, as JSONL (default: NAME.answers.jsonl beside the rows)"
    )
    per_device_eval_batch_size: int = option(8, "rows of --instructions that are answered together")
    max_length: int = option(128, "most text tokens, question and answer together (virtual tokens not counted)")
    max_new_tokens: int | None = option(None, "most tokens of the answer, instead of --max-length")
    do_sample: bool = option(True, "sample; otherwise take the most probable token every time")
    top_k: int = option(50, "sample from this many most probable tokens; 0: from all")
    top_p: float = option(0.95, "sample from the fewest tokens that together reach this probability")
    temperature: float = option(0.7, "divide the logits by this before sampling")
    repetition_penalty: float = option(1.0, "above 1: make tokens that the text already holds less probable")
    num_return_sequences: int = option(1, "answers to the question")
    compare: bool = option(False, "also print the base's answer without the prompt")
    seed: int | None = option(None, "seed of the sampling (default: drawn, and printed)")
    precision: str = option("auto", "arithmetic of the base", choices=PRECISIONS)
    device: str = option("auto", "cpu, cuda, cuda:N or auto")
    resume: bool = option(False, "go on where a stopped run over the same --instructions ended")
    overwrite: bool = option(False, "replace an existing output file and what a stopped run saved")

    def __post_init__(self) -> None:
        for name in ("prompt_file", "output_file"):
            expand_home(self, name)
        self._check_instructions()
        for name in ("instruction", "input"):
            require(is_unicode(getattr(self, name)), self, name, "is not UTF-8 text")
        require_counts(self, "per_device_eval_batch_size", "max_length", "max_new_tokens", "num_return_sequences")
        require(self.top_k >= 0, self, "top_k", "must be 0 or above")
        require(0 < self.top_p <= 1, self, "top_p", "must be above 0 and at most 1")
        for name in ("temperature", "repetition_penalty"):
            # smaller ones overflow the logits
            require(0.001 <= getattr(self, name) < float("inf"), self, name, "must be at least 0.001")
        several = self.num_return_sequences > 1 and not self.do_sample
        require(not several, self, "num_return_sequences", "needs --do-sample: without it all answers are the same")
        require(self.seed is None or 0 <= self.seed < 2**63, self, "seed", "must be from 0 to 2^63 - 1")

    def _check_instructions(self) -> None:
        """What goes with `--instructions`, what only with it, and what with one question only."""
        if self.instructions is None:
            for name in ("output_file", "resume", "overwrite"):
                require(getattr(self, name) in (None, False), self, name, "needs --instructions")
            return
        require(self.instructions.strip() != "", self, "instructions", "must name a file, a folder or a hub id")
        require(self.instruction is None, self, "instructions", "give it or --instruction, not both")
        require(self.input == "", self, "instructions", "give it or --input, not both")
        require(not self.compare, self, "instructions", "give it or --compare, not both")
        require(not (self.resume and self.overwrite), self, "resume", "give it or --overwrite, not both")
        require(self.output_file != "-", self, "output_file", "the answers need a file, from which --resume can go on")
        named = self.output_file is None or Path(self.output_file).name != ""
        require(named, self, "output_file", "must name a file")


@dataclass(kw_only=True)
class SweepConfig:
    """Options of `python -m softprompt sweep`; the rest of a run is as `train.py` does it by default."""

    model: str = option(DEFAULT_MODEL, "frozen base: a folder, a hub id or the BLOOM that ships with softprompt")
    data: str = option(DEFAULT_DATA, "rows to train on: a JSON, JSONL, CSV or Parquet file, a folder, or a hub id")
    prompt_file: str = option("prompt.safetensors", "where the best prompt is written")
    sweep_dir: str | None = option(
        None, "every trial's run folder and prompt (default: NAME.sweep beside a prompt file NAME.safetensors)"
    )
    virtual_tokens: tuple[int, ...] = option((4, 12, 32), "numbers of virtual tokens to try")
    relative_rates: tuple[float, ...] = option((0.1, 0.3, 1.0), "learning rates to try, times the prompt's RMS")
    init: tuple[str, ...] = option(("text", "answers"), "starts to try", choices=INITS)
    init_text: str = option(DEFAULT_INIT_TEXT, "text whose embeddings start the prompt with --init text")
    max_trials: int = option(12, "try a seeded choice of so many combinations")
    max_steps: int = option(200, "optimizer steps of the last round; the rounds before it take a half, a quarter, ...")
    max_length: int = option(256, "cut rows to this many text tokens (virtual tokens not counted)")
    per_device_train_batch_size: int = option(1, "times --gradient-accumulation-steps: the rows of a step")
    gradient_accumulation_steps: int = option(8, "times --per-device-train-batch-size: the rows of a step")
    eval_data: str | None = option(
        None, "held-out rows, which choose: like --data (default: the data's own validation or test split)"
    )
    eval_fraction: float | None = option(
        None,
        "share of the rows to hold out when there is no held-out split (default: 0.1, at most 200 rows, from 80 on)",
    )
    test_data: str | None = option(None, TEST_DATA_HELP)
    precision: str = option("auto", "arithmetic of the frozen base; the prompt stays fp32", choices=PRECISIONS)
    seed: int = option(42, "seed of the choice of trials and of every run")
    device: str = option("auto", "cpu, cuda, cuda:N or auto")
    resume: bool = option(False, "go on with a sweep that was stopped: trials that ended are not run again")
    overwrite: bool = option(False, "replace an existing prompt file and sweep folder")

    def __post_init__(self) -> None:
        for name in ("prompt_file", "sweep_dir"):
            expand_home(self, name)
        require(min(self.virtual_tokens) >= 1, self, "virtual_tokens", "must be at least 1")
        usable = all(0 < rate < float("inf") for rate in self.relative_rates)
        require(usable, self, "relative_rates", "must be above 0")
        require_counts(self, "max_trials", "max_steps")
        share = self.eval_fraction
        require(share is None or 0 < share < 1, self, "eval_fraction", "must be above 0 and below 1")
        _check_training(self)

    @property
    def sweep_folder(self) -> Path:
        """Where trials go: `a/p.sweep` for `a/p.safetensors` unless given."""
        return Path(self.sweep_dir) if self.sweep_dir else _beside(self.prompt_file, ".sweep")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Options of `python -m softprompt evaluate`."""

    prompt_file: tuple[str, ...] = option(("prompt.safetensors",), "prompt files of the same base")
    data: str = option(DEFAULT_DATA, "rows to score: a JSON, JSONL, CSV or Parquet file, a folder, or a hub id")
    split: str | None = option(None, "split of --data (default: test, else validation, else the only one)")
    max_rows: int | None = option(None, "score only the first so many rows (default: all)")
    model: str | None = option(None, "base to run them on (default: the base that the first prompt file names)")
    allow_other_base: bool = option(False, "accept prompts that were trained on another base")
    max_length: int = option(256, "cut rows to this many text tokens (virtual tokens not counted)")
    choices: tuple[str, ...] = option((), "labels of a classification: score each by its probability (default: none)")
    eval_generate: int = option(200, "answer this many of the rows greedily, for exact match; 0: none")
    max_new_tokens: int = option(128, "most tokens of such an answer")
    per_device_eval_batch_size: int = option(8, "rows that are answered together")
    bootstrap_samples: int = option(1000, "resamples of the rows behind every 95 % interval")
    output_file: str | None = option(None, "also write the table and every answer there, as JSON (default: nowhere)")
    seed: int = option(42, "seed of the resampling")
    precision: str = option("auto", "arithmetic of the base", choices=PRECISIONS)
    device: str = option("auto", "cpu, cuda, cuda:N or auto")
    overwrite: bool = option(False, "replace an existing output file")

    def __post_init__(self) -> None:
        self.prompt_file = tuple(os.path.expanduser(name) for name in self.prompt_file)
        expand_home(self, "output_file")
        counts = ("max_length", "max_new_tokens", "per_device_eval_batch_size", "bootstrap_samples", "max_rows")
        require_counts(self, *counts)
        require(self.eval_generate >= 0, self, "eval_generate", "must be 0 or above")
        require(len(self.choices) != 1, self, "choices", "give at least two labels")
        require(all(label.strip() for label in self.choices), self, "choices", "a label must not be blank")
        distinct = {label.strip() for label in self.choices}
        require(len(distinct) == len(self.choices), self, "choices", "a label is given twice")
        require(all(map(is_unicode, self.choices)), self, "choices", "is not UTF-8 text")
        named = self.output_file is None or (self.output_file != "-" and Path(self.output_file).name != "")
        require(named, self, "output_file", "must name a file")
        require(self.output_file is not None or not self.overwrite, self, "overwrite", "needs --output-file")
        require(0 <= self.seed < 2**63, self, "seed", "must be from 0 to 2^63 - 1")


@dataclass(kw_only=True)
class InspectConfig:
    """Options of `python -m softprompt inspect`, which takes the prompt file as its one word."""

    prompt_file: str = option("prompt.safetensors", "the prompt to look at")
    model: str | None = option(None, "base to compare it with (default: the base that the prompt file names)")
    allow_other_base: bool = option(False, "compare with a base that the prompt was not trained on")
    num_nearest: int = option(3, "nearest vocabulary tokens shown for each virtual token")
    run_dir: str | None = option(None, "run folder with the loss curve (default: NAME.run beside NAME.safetensors)")
    plot: str | None = option(None, "draw the loss curve to this PNG file (default: in the terminal)")
    overwrite: bool = option(False, "replace an existing plot")

    def __post_init__(self) -> None:
        for name in ("prompt_file", "run_dir", "plot"):
            expand_home(self, name)
        require_counts(self, "num_nearest")
        require(Path(self.prompt_file).name != "", self, "prompt_file", "must name a file")
        require(self.plot is None or self.plot.lower().endswith(".png"), self, "plot", "must name a .png file")
        require(self.plot is not None or not self.overwrite, self, "overwrite", "needs --plot")


def _check_training(config: TrainConfig | SweepConfig) -> None:
    """What one run and a sweep of them refuse alike."""
    require_counts(config, "max_length", "per_device_train_batch_size", "gradient_accumulation_steps")
    both = config.eval_fraction is not None and config.eval_data is not None
    require(not both, config, "eval_fraction", "give it or --eval-data, not both")
    require(0 <= config.seed < 2**63, config, "seed", "must be from 0 to 2^63 - 1")
    require(not (config.resume and config.overwrite), config, "resume", "give it or --overwrite, not both")
    require(is_unicode(config.init_text), config, "init_text", "is not UTF-8 text")
    require(Path(config.prompt_file).name != "", config, "prompt_file", "must name a file")


def _beside(prompt_file: str, suffix: str) -> Path:
    """`a/p` with `suffix` for `a/p.safetensors`."""
    path = Path(prompt_file)
    return path.with_name(path.name.removesuffix(".safetensors") + suffix)
