"""Every option, declared once: name, type, default, help and validation, in groups that the commands share."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from softprompt.config.options import MOST, Group, expand_home, is_unicode, option, require, require_counts
from softprompt.errors import UserError

DEFAULT_MODEL = "builtin:bloom-small@1"
DEFAULT_DATA = "builtin:polite"
DEFAULT_PROMPT_FILE = "prompt.safetensors"
DEFAULT_INIT_TEXT = "The following is a dialog between a human and a robot."
MAX_INIT_TEXT = 100_000  # characters; a prompt file keeps the text
MAX_SYSTEM_TEXT = 1 << 15  # characters; every question of a prompt file has the text, which costs time and memory
OPTIMS = ("soap", "adamw")
INITS = ("text", "answers", "vocab", "random")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PLACEMENTS = ("front", "system")
EXPORTS = ("peft", "baked", "gguf", "vllm", "npy")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
DEFAULT_MAX_LENGTH = 128  # tokens of one question and its answer together, as in the tutorial
# Tokens of an answer to a row of a file. They do not count the question, or one long question would refuse the file.
DEFAULT_NEW_TOKENS = 128

# names that a column of rows may have, or be given by `columns`
COLUMN_NAMES = (
    "instruction", "input", "output", "system", "history", "prompt", "completion", "question", "answer", "query",
    "response", "context", "messages", "conversations", "tools", "text", "sentence", "label", "input_ids", "labels",
)  # fmt: skip
COLUMNS_HELP = "columns under other names, such as instruction=question,output=answer (default: the usual names)"
CONFIG_HELP = "configuration of a hub id (default: its only one)"
SPLIT_HELP = "split of a hub id, or a part such as train[:10%] (default: all its splits)"


@dataclass(kw_only=True)
class Hardware(Group):
    """The device and the precision of the base."""

    heading: ClassVar[str] = "hardware"

    precision: str = option("auto", "arithmetic of the frozen base; the prompt stays fp32", choices=PRECISIONS)
    device: str = option("auto", "cpu, cuda, cuda:N or auto", decides=False)


@dataclass(kw_only=True)
class BaseOptions(Hardware):
    """The frozen base of a training run."""

    heading: ClassVar[str] = "frozen base"

    model: str = option(
        DEFAULT_MODEL, "frozen base: a folder, a hub id or the BLOOM that ships with softprompt", decides=False
    )


@dataclass(kw_only=True)
class PromptBaseOptions(Group):
    """The base that a finished prompt is run on."""

    heading: ClassVar[str] = "frozen base"

    model: str | None = option(None, "base to run the prompt on (default: the base that the prompt file names)")
    allow_other_base: bool = option(False, "accept a prompt that was trained on another base")


@dataclass(kw_only=True)
class RowOptions(Group):
    """The rows to train on, those that choose the prompt, and those that only report."""

    heading: ClassVar[str] = "rows"

    data: str = option(
        DEFAULT_DATA, "rows to train on: a JSON, JSONL, CSV or Parquet file, a folder, or a hub id", decides=False
    )
    eval_data: str | None = option(
        None,
        "held-out rows, which choose the prompt: like --data (default: the data's own validation or test split)",
        decides=False,
    )
    eval_fraction: float | None = option(
        None,
        "share of the rows to hold out when there is no held-out split (default: 0.1, at most 200 rows, from 80 on)",
    )
    test_data: str | None = option(
        None,
        "rows for one last figure that chose nothing (default: the test split, if it is not held out)",
        decides=False,
    )
    columns: str | None = option(None, COLUMNS_HELP)
    data_config: str | None = option(None, CONFIG_HELP, decides=False)
    data_split: str | None = option(None, SPLIT_HELP, decides=False)
    max_train_rows: int | None = option(None, "train on the first so many of the training rows (default: all)")
    max_length: int = option(256, "cut rows to this many text tokens (virtual tokens not counted)")
    per_device_train_batch_size: int = option(1, "times --gradient-accumulation-steps: the rows of a step")
    gradient_accumulation_steps: int = option(8, "times --per-device-train-batch-size: the rows of a step")
    seed: int = option(42, "seed of the order of rows, the held-out share and the vocab and random inits")

    @property
    def rows_per_step(self) -> int:
        """Rows in one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def check(self) -> None:
        column_map(self.columns)
        counts = ("max_train_rows", "max_length", "per_device_train_batch_size", "gradient_accumulation_steps")
        require_counts(self, *counts)
        share = self.eval_fraction
        require(share is None or 0 <= share < 1, self, "eval_fraction", "must be at least 0 and below 1")
        both = share is not None and self.eval_data is not None
        require(not both, self, "eval_fraction", "give it or `eval_data`, not both")
        require(0 <= self.seed < 2**63, self, "seed", "must be from 0 to 2^63 - 1")


@dataclass(kw_only=True)
class TemplateOptions(Group):
    """How the turns of a row become text, and where in it the prompt stands."""

    heading: ClassVar[str] = "how rows are written"

    template: str = option(
        "auto",
        "auto (chat if the base has a chat template, else tutorial), tutorial, chat, plain, or a Jinja file",
        decides=False,
    )
    system: str = option("", "system text of rows that have none of their own")
    last_turn_only: bool = option(False, "learn the last answer of a conversation alone, not every assistant turn")
    placement: str = option(
        "front", "prompt in front of everything, or inside the system turn of a chat template", choices=PLACEMENTS
    )

    def check(self) -> None:
        require(is_unicode(self.system), self, "system", "is not UTF-8 text")
        if (length := len(self.system)) > MAX_SYSTEM_TEXT:
            raise UserError(f"`system`: has {length:,} characters, of which {MAX_SYSTEM_TEXT:,} are allowed")
        require(bool(self.template.strip()), self, "template", "is empty; give a name or a file")


@dataclass(kw_only=True)
class DistillOptions(Group):
    """A text that the prompt is to stand for: the base with that text in front is the teacher."""

    heading: ClassVar[str] = "distillation"

    distill_text: str | None = option(
        None, "train the prompt to answer as the base does with the text of this file in its place", decides=False
    )
    distill_from_data: bool = option(False, "take the answers of the rows, instead of sampling the teacher's own")
    distill_answers: int = option(1, "answers that the teacher gives to each question")
    distill_new_tokens: int = option(DEFAULT_NEW_TOKENS, "most tokens of such an answer")
    distill_questions: int = option(0, "let the teacher write so many questions, instead of those of --data")
    distill_context: str | None = option(None, "a column that the teacher sees in front of each question")
    distill_replay: str | None = option(
        None,
        "questions that have nothing to do with the text; on 1 of 8 training rows, the base alone is then the teacher",
        decides=False,
    )
    distill_temperature: float = option(1.0, "divide the logits of both sides by this in the loss")
    distill_ce: float = option(0.0, "share of cross-entropy on the answers in the loss")

    def check(self) -> None:
        expand_home(self, "distill_text", "distill_replay")
        require_counts(self, "distill_answers", "distill_new_tokens")
        require(self.distill_questions >= 0, self, "distill_questions", "must be 0 or above")
        require(0.01 <= self.distill_temperature <= 100, self, "distill_temperature", "must be from 0.01 to 100")
        require(0 <= self.distill_ce < 1, self, "distill_ce", "must be at least 0 and below 1")
        own = {each.name: each.default for each in dataclasses.fields(DistillOptions)}
        for name, default in own.items() if self.distill_text is None else ():
            require(getattr(self, name) == default, self, name, "needs `distill_text`")
        for name in ("distill_answers", "distill_questions"):
            both = self.distill_from_data and getattr(self, name) != own[name]
            require(not both, self, name, "give it or `distill_from_data`, not both")
        for name in ("distill_questions", "distill_from_data"):
            both = getattr(self, name) and self.distill_context is not None
            require(not both, self, "distill_context", f"give it or `{name}`, not both")


@dataclass(kw_only=True)
class StartOptions(Group):
    """The tensor that the prompt starts from."""

    heading: ClassVar[str] = "start of the prompt"

    virtual_tokens: int | None = option(None, "number of virtual tokens P (default: token count of the init text)")
    init: str = option("text", "what the prompt starts from", choices=INITS)
    init_text: str = option(DEFAULT_INIT_TEXT, "text whose embeddings start the prompt with --init text")
    init_from: str | None = option(None, "start from this prompt file instead of --init", decides=False)
    allow_other_base: bool = option(
        False, "accept an --init-from prompt that was trained on another base", decides=False
    )

    def check(self) -> None:
        expand_home(self, "init_from")
        require_counts(self, "virtual_tokens")
        _check_init_text(self)


@dataclass(kw_only=True)
class StepOptions(Group):
    """The number of steps, and how each of them moves the prompt."""

    heading: ClassVar[str] = "steps"

    num_train_epochs: float | None = option(
        None, "passes over the rows, 1 in the tutorial (default: 1, and as many more as make at least 200 steps)"
    )
    max_steps: int = option(-1, "stop after this many optimizer steps, whatever the epochs; -1: no limit")
    optim: str = option("soap", "SOAP that keeps each virtual token's norm, or torch's AdamW", choices=OPTIMS)
    learning_rate: float | None = option(
        None, "RMS of a first step (default: the prompt's RMS at initialisation, times 0.3 with soap)"
    )
    lr_scheduler_type: str = option("linear", "shape of the rate over the run", choices=SCHEDULES)
    warmup_steps: float = option(0.0, "steps of linear warm-up; below 1: a share of all steps")
    weight_decay: float = option(0.0, "decoupled weight decay of --optim adamw")
    adam_beta1: float = option(0.8, "decay of the mean gradient")
    adam_beta2: float = option(0.95, "decay of the mean squared gradient")
    max_grad_norm: float | None = option(
        None, "clip the prompt's gradient to this norm; 0: no clipping (default: 0.03 over the prompt's RMS)"
    )
    max_tokens_per_pass: str = option(
        "auto", "a step's rows are packed into forward passes of at most this many tokens; auto: what is fast and fits"
    )
    gradient_checkpointing: bool = option(False, "recompute layers in the backward pass: less memory, slower")

    def check(self) -> None:
        epochs, rate, norm = self.num_train_epochs, self.learning_rate, self.max_grad_norm
        require(epochs is None or 0 < epochs <= MOST, self, "num_train_epochs", f"must be above 0, and at most {MOST}")
        require(self.max_steps == -1 or self.max_steps >= 1, self, "max_steps", "must be -1 or at least 1")
        require(rate is None or 0 < rate < float("inf"), self, "learning_rate", "must be above 0")
        for name in ("warmup_steps", "weight_decay"):
            require(0 <= getattr(self, name) < float("inf"), self, name, "must be 0 or above")
        decays = self.weight_decay == 0 or self.optim == "adamw"
        require(decays, self, "weight_decay", "needs `optim` adamw: soap keeps the norms")
        require(norm is None or 0 <= norm < float("inf"), self, "max_grad_norm", "must be 0 or above")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, self, name, "must be at least 0 and below 1")
        limit = str(self.max_tokens_per_pass)
        whole = limit.isascii() and limit.isdecimal() and len(limit) <= 19 and 1 <= int(limit) <= MOST
        message = f"must be auto, or from 1 to {MOST}"
        require(limit == "auto" or whole, self, "max_tokens_per_pass", message)


@dataclass(kw_only=True)
class SelectionOptions(Group):
    """What is measured during a run, and which prompt is kept."""

    heading: ClassVar[str] = "evaluation and log"

    logging_steps: int = option(10, "log every so many steps", decides=False)
    save_steps: int = option(100, "save a checkpoint every so many steps", decides=False)
    save_total_limit: int = option(2, "keep this many of the last checkpoints; 0: all", decides=False)
    eval_steps: int | None = option(None, "held-out loss every so many steps (default: ten times in the run)")
    eval_generate: int = option(
        0, "answer so many of the test or else held-out rows, and compare the texts", decides=False
    )
    save_last: bool = option(False, "keep the last prompt instead of the one with the lowest held-out loss")
    early_stopping_patience: int | None = option(
        None, "evaluations without a lower loss that end a run (default: no end)"
    )
    verbose: bool = option(False, "print the model's whole module tree", decides=False)

    def check(self) -> None:
        require_counts(self, "logging_steps", "save_steps", "eval_steps", "early_stopping_patience")
        for name in ("eval_generate", "save_total_limit"):
            require(getattr(self, name) >= 0, self, name, "must be 0 or above")


@dataclass(kw_only=True)
class OutputOptions(Group):
    """Where results are written, and what happens to those that are already there."""

    heading: ClassVar[str] = "output"

    prompt_file: str = option(DEFAULT_PROMPT_FILE, "where the trained prompt is written at the end", decides=False)
    resume: bool = option(False, "go on where a stopped run ended, with the options that it had", decides=False)
    overwrite: bool = option(False, "replace what an earlier run wrote there", decides=False)

    def check(self) -> None:
        expand_home(self, "prompt_file")
        require(Path(self.prompt_file).name != "", self, "prompt_file", "must name a file")
        require(not (self.resume and self.overwrite), self, "resume", "give it or `overwrite`, not both")


@dataclass(kw_only=True)
class TrainConfig(
    BaseOptions,
    RowOptions,
    TemplateOptions,
    DistillOptions,
    StartOptions,
    StepOptions,
    SelectionOptions,
    OutputOptions,
):
    """The options of `train`, named as in `transformers.TrainingArguments` where they mean the same."""

    heading: ClassVar[str] = "output"

    run_dir: str | None = option(
        None, "checkpoints and metrics (default: NAME.run beside a prompt file NAME.safetensors)", decides=False
    )

    def check(self) -> None:
        expand_home(self, "run_dir")
        _check_one_source(self)

    @property
    def run_folder(self) -> Path:
        """The folder of checkpoints and metrics: `a/p.run` for `a/p.safetensors`, unless `run_dir` names another."""
        return run_folder_of(self.prompt_file, self.run_dir)


@dataclass(kw_only=True)
class SweepConfig(BaseOptions, RowOptions, TemplateOptions, DistillOptions, OutputOptions):
    """The options of `sweep`; all others of its runs have the defaults of `train`."""

    heading: ClassVar[str] = "search"

    sweep_dir: str | None = option(
        None,
        "every trial's run folder and prompt (default: NAME.sweep beside a prompt file NAME.safetensors)",
        decides=False,
    )
    virtual_tokens: tuple[int, ...] = option((4, 12, 32), "numbers of virtual tokens to try")
    relative_rates: tuple[float, ...] = option((0.1, 0.3, 1.0), "learning rates to try, times the prompt's RMS")
    init: tuple[str, ...] = option(("text", "answers"), "starts to try", choices=INITS)
    init_text: str = option(DEFAULT_INIT_TEXT, "text whose embeddings start the prompt with --init text")
    max_trials: int = option(12, "try a seeded choice of so many combinations")
    max_steps: int = option(200, "optimizer steps of the last round; the rounds before it take a half, a quarter, ...")

    def check(self) -> None:
        expand_home(self, "sweep_dir")
        require(min(self.virtual_tokens) >= 1, self, "virtual_tokens", "must be at least 1")
        usable = all(0 < rate < float("inf") for rate in self.relative_rates)
        require(usable, self, "relative_rates", "must be above 0")
        require_counts(self, "max_trials", "max_steps")
        share = self.eval_fraction
        require(share is None or share > 0, self, "eval_fraction", "must be above 0 and below 1")
        _check_init_text(self)
        _check_one_source(self)

    @property
    def sweep_folder(self) -> Path:
        """The folder of the trials: `a/p.sweep` for `a/p.safetensors`, unless `sweep_dir` names another."""
        return Path(self.sweep_dir) if self.sweep_dir else _beside(self.prompt_file, ".sweep")


@dataclass(kw_only=True)
class Sampling(Group):
    """How an answer is generated; names are as in `transformers.GenerationConfig` where they mean the same."""

    heading: ClassVar[str] = "answers"

    max_length: int | None = option(
        None,
        "most text tokens, question and answer together (default: 128 under the tutorial's template, where"
        " --max-new-tokens is not given)",
    )
    max_new_tokens: int | None = option(
        None,
        "most tokens of the answer, instead of --max-length (default: 128 with --instructions and under any template"
        " but the tutorial's, else no limit)",
    )
    do_sample: bool = option(True, "sample; otherwise take the most probable token every time")
    top_k: int = option(50, "sample from this many most probable tokens; 0: from all")
    top_p: float = option(0.95, "sample from the fewest tokens that together reach this probability")
    temperature: float = option(0.7, "divide the logits by this before sampling; 0: the same as --no-do-sample")
    repetition_penalty: float = option(1.0, "above 1: make tokens that the text already holds less probable")
    num_return_sequences: int = option(1, "answers to the question")

    def check(self) -> None:
        require_counts(self, "max_length", "max_new_tokens", "num_return_sequences")
        require(self.top_k >= 0, self, "top_k", "must be 0 or above")
        require(0 < self.top_p <= 1, self, "top_p", "must be above 0 and at most 1")
        # the logits are divided by it, and overflow if it is smaller; 0 stands for greedy decoding
        usable = self.temperature == 0 or 0.001 <= self.temperature < float("inf")
        require(usable, self, "temperature", "must be 0, which takes the most probable token, or at least 0.001")
        penalty = self.repetition_penalty
        require(0.001 <= penalty < float("inf"), self, "repetition_penalty", "must be at least 0.001")
        several = self.num_return_sequences > 1 and not self.samples
        require(not several, self, "num_return_sequences", "needs `do_sample`: without it all answers are the same")

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled: if `do_sample` is set and the temperature is above 0."""
        return self.do_sample and self.temperature > 0


@dataclass(kw_only=True)
class PromptFileOptions(Group):
    """The prompt file of a command that reads one."""

    heading: ClassVar[str] = "prompt"

    prompt_file: str = option(DEFAULT_PROMPT_FILE, "the trained prompt")

    def check(self) -> None:
        expand_home(self, "prompt_file")


@dataclass(kw_only=True)
class ChatConfig(PromptFileOptions, PromptBaseOptions, Hardware, Sampling):
    """The options of `chat`, which answers one line after another."""

    heading: ClassVar[str] = "answers"

    seed: int | None = option(None, "seed of the sampling (default: drawn, and printed)")

    def check(self) -> None:
        require(self.seed is None or 0 <= self.seed < 2**63, self, "seed", "must be from 0 to 2^63 - 1")


@dataclass(kw_only=True)
class GenerateConfig(ChatConfig):
    """The options of `generate`, which answers one question or a file of them."""

    heading: ClassVar[str] = "questions"

    instruction: str | None = option(None, "the question; - reads it from standard input (default: a sample question)")
    input: str = option("", "extra input that belongs to the question")
    instructions: str | None = option(
        None, "answer every row of a JSON, JSONL, CSV or Parquet file, a folder or a hub id (default: one question)"
    )
    columns: str | None = option(None, COLUMNS_HELP)
    data_config: str | None = option(None, CONFIG_HELP)
    data_split: str | None = option(None, SPLIT_HELP)
    output_file: str | None = option(
        None, "where the answers to --instructions go, as JSONL (default: NAME.answers.jsonl beside the rows)"
    )
    per_device_eval_batch_size: int = option(8, "rows of --instructions that are answered together")
    ensemble: tuple[str, ...] = option(
        (), "prompt files that answer together, by the mean of their distributions, instead of --prompt-file"
    )
    compare: bool = option(False, "also print the base's answer without the prompt")
    resume: bool = option(False, "go on where a stopped run over the same --instructions ended")
    overwrite: bool = option(False, "replace an existing output file and what a stopped run saved")

    def check(self) -> None:
        expand_home(self, "output_file")
        _check_ensemble(self)
        if self.ensemble:  # what a prompt file says of its base is read from the first
            self.prompt_file = self.ensemble[0]
        require_counts(self, "per_device_eval_batch_size")
        for name in ("instruction", "input"):
            require(is_unicode(getattr(self, name)), self, name, "is not UTF-8 text")
        if self.instructions is None:
            for name in ("columns", "data_config", "data_split", "output_file", "resume", "overwrite"):
                require(getattr(self, name) in (None, False), self, name, "needs `instructions`")
        else:
            self._check_instructions(self.instructions)

    def _check_instructions(self, instructions: str) -> None:
        """Check what goes with `instructions` and what goes with a single question only, and set the default length."""
        require(instructions.strip() != "", self, "instructions", "must name a file, a folder or a hub id")
        require(self.instruction is None, self, "instructions", "give it or `instruction`, not both")
        require(self.input == "", self, "instructions", "give it or `input`, not both")
        column_map(self.columns)
        require(not self.compare, self, "instructions", "give it or `compare`, not both")
        require(not (self.resume and self.overwrite), self, "resume", "give it or `overwrite`, not both")
        require(self.output_file != "-", self, "output_file", "the answers need a file, from which `resume` can go on")
        named = self.output_file is None or Path(self.output_file).name != ""
        require(named, self, "output_file", "must name a file")
        if self.max_length is None and self.max_new_tokens is None:
            self.max_new_tokens = DEFAULT_NEW_TOKENS


@dataclass(kw_only=True)
class EvaluateConfig(PromptBaseOptions, Hardware):
    """The options of `evaluate`, which compares prompts on rows."""

    heading: ClassVar[str] = "comparison"

    prompt_file: tuple[str, ...] = option((DEFAULT_PROMPT_FILE,), "prompt files of the same base")
    data: str | None = option(
        None,
        "rows to score: a file, a folder or a hub id (default: the first prompt's own test or else held-out rows,"
        " which its run folder names)",
    )
    split: str | None = option(None, "split of --data (default: test, else validation, else the only one)")
    columns: str | None = option(None, COLUMNS_HELP)
    data_config: str | None = option(None, CONFIG_HELP)
    held_out: bool = option(False, "score the prompt's held-out rows, which chose it, instead of its test rows")
    run_dir: str | None = option(None, "run folder of the first prompt (default: NAME.run beside NAME.safetensors)")
    distill_text: str | None = option(
        None, "instead of the table, tell how much of the effect of this file's text each prompt has"
    )
    text_prompt: str | None = option(
        None, "text that is written in front on the side to compare with (default: the first prompt's init text)"
    )
    max_rows: int | None = option(None, "score only the first so many rows (default: all)")
    max_length: int = option(256, "cut rows to this many text tokens (virtual tokens not counted)")
    ensemble: tuple[str, ...] = option(
        (), "prompt files that are also scored together: by majority vote, and answering by their mean distribution"
    )
    choices: tuple[str, ...] = option((), "labels of a classification: score each by its probability (default: none)")
    eval_generate: int = option(200, "answer this many of the rows greedily, for exact match; 0: none")
    max_new_tokens: int | None = option(
        None, "most tokens of such an answer (default: twice the longest reference; 128 with --distill-text)"
    )
    per_device_eval_batch_size: int = option(8, "rows that are answered together")
    bootstrap_samples: int = option(1000, "resamples of the rows behind every 95 % interval")
    seed: int = option(42, "seed of the resampling")
    output_file: str | None = option(None, "also write the table and every answer there, as JSON (default: nowhere)")
    overwrite: bool = option(False, "replace an existing output file")

    def check(self) -> None:
        self.prompt_file = tuple(os.path.expanduser(name) for name in self.prompt_file)
        expand_home(self, "output_file", "run_dir", "distill_text")
        _check_ensemble(self)
        if self.ensemble:  # its members are sides, too
            others = () if self.prompt_file == (DEFAULT_PROMPT_FILE,) else self.prompt_file
            self.prompt_file = tuple(dict.fromkeys([*others, *self.ensemble]))
        apart = self.distill_text is None or (self.text_prompt is None and not self.choices)
        require(apart, self, "distill_text", "give it without `text_prompt` and `choices`, which are of the table")
        counts = ("max_length", "max_new_tokens", "per_device_eval_batch_size", "bootstrap_samples", "max_rows")
        require_counts(self, *counts)
        require(self.eval_generate >= 0, self, "eval_generate", "must be 0 or above")
        for name in ("held_out", "run_dir"):
            both = self.data is not None and getattr(self, name)
            require(not both, self, name, "give it or `data`, not both")
        for name in ("split", "columns", "data_config"):
            require(getattr(self, name) is None or self.data is not None, self, name, "needs `data`")
        column_map(self.columns)
        require(is_unicode(self.text_prompt), self, "text_prompt", "is not UTF-8 text")
        self._check_choices()
        named = self.output_file is None or (self.output_file != "-" and Path(self.output_file).name != "")
        require(named, self, "output_file", "must name a file")
        require(self.output_file is not None or not self.overwrite, self, "overwrite", "needs `output_file`")
        require(0 <= self.seed < 2**63, self, "seed", "must be from 0 to 2^63 - 1")

    def _check_choices(self) -> None:
        """Check that there are no choices, or at least two, none of them blank and none given twice."""
        require(len(self.choices) != 1, self, "choices", "give at least two labels")
        require(all(label.strip() for label in self.choices), self, "choices", "a label must not be blank")
        distinct = {label.strip() for label in self.choices}
        require(len(distinct) == len(self.choices), self, "choices", "a label is given twice")
        require(all(map(is_unicode, self.choices)), self, "choices", "is not UTF-8 text")


@dataclass(kw_only=True)
class InspectConfig(PromptFileOptions, PromptBaseOptions):
    """The options of `inspect`, which shows one prompt."""

    heading: ClassVar[str] = "report"

    num_nearest: int = option(3, "nearest vocabulary tokens shown for each virtual token")
    run_dir: str | None = option(None, "run folder with the loss curve (default: NAME.run beside NAME.safetensors)")
    plot: str | None = option(None, "draw the loss curve to this PNG file (default: in the terminal)")
    overwrite: bool = option(False, "replace an existing plot")

    def check(self) -> None:
        expand_home(self, "run_dir", "plot")
        require_counts(self, "num_nearest")
        require(Path(self.prompt_file).name != "", self, "prompt_file", "must name a file")
        require(self.plot is None or self.plot.lower().endswith(".png"), self, "plot", "must name a .png file")
        require(self.plot is not None or not self.overwrite, self, "overwrite", "needs `plot`")


@dataclass(kw_only=True)
class ExportConfig(PromptBaseOptions):
    """The options of `export`, which writes a prompt in the form that another program takes."""

    heading: ClassVar[str] = "export"

    prompt_file: tuple[str, ...] = option(
        (DEFAULT_PROMPT_FILE,), "the trained prompt; several with --to baked and gguf"
    )
    to: tuple[str, str] = option(
        (),
        f"the format, one of {', '.join(EXPORTS)}, and the folder (the file with npy) to write (default: none)",
    )
    push_to_hub: str | None = option(None, "also upload the folder of --to peft to this hub id, OWNER/NAME")
    overwrite: bool = option(False, "replace an earlier export there")

    def check(self) -> None:
        self.prompt_file = tuple(os.path.expanduser(name) for name in self.prompt_file)
        name, where = self.to or ("", "")
        if name not in EXPORTS:
            said = f" {name}" if name else ""
            raise UserError(f"`to`{said}: name a format, one of {', '.join(EXPORTS)}, and where to write")
        self.to = (name, os.path.expanduser(where))
        if not Path(where).name or (name == "npy") != where.endswith(".npy"):
            raise UserError(f"`to` {name} {where}: name a {'.npy file' if name == 'npy' else 'folder'} to write")
        several = len(self.prompt_file) > 1 and name not in ("baked", "gguf")
        require(not several, self, "prompt_file", "`to` baked and gguf take several prompts, the other formats one")
        pushed = self.push_to_hub
        require(pushed is None or name == "peft", self, "push_to_hub", "needs `to` peft")


@dataclass(kw_only=True)
class ImportConfig(Group):
    """The options of `import`, which writes the prompt of an adapter as a prompt file."""

    heading: ClassVar[str] = "import"

    adapter: str | None = option(
        None, "a folder that PEFT saved, a hub id, or a .npy file of a [P, H] matrix (default: none)"
    )
    task: int | None = option(None, "number of the task, from 0, in an adapter that holds several (default: the only)")
    model: str | None = option(None, "base of the prompt (default: the adapter's own, where that is a shipped one)")
    template: str = option("auto", "how rows are written, as for train; an adapter does not say it")
    system: str = option("", "system text of rows that have none of their own")
    prompt_file: str = option(DEFAULT_PROMPT_FILE, "where the prompt is written")
    overwrite: bool = option(False, "replace an existing prompt file")

    def check(self) -> None:
        expand_home(self, "adapter", "prompt_file")
        if not self.adapter:
            raise UserError("`adapter`: name a folder that PEFT saved, a hub id or a .npy file")
        require(is_unicode(self.system), self, "system", "is not UTF-8 text")
        require(bool(self.template.strip()), self, "template", "is empty; give a name or a file")
        require(self.task is None or self.task >= 0, self, "task", "must be 0 or above")
        require(Path(self.prompt_file).name != "", self, "prompt_file", "must name a file")


def column_map(columns: str | None) -> dict[str, str]:
    """Return for every name in `columns` the column that stands for it.

    Raises:
        UserError: it is not of the form NAME=COLUMN,NAME=COLUMN, a name is not known, or one is given twice.
    """
    mapping: dict[str, str] = {}
    for part in columns.split(",") if columns is not None else []:
        name, equals, column = (each.strip() for each in part.partition("="))
        if not (name and equals and column):
            raise UserError(
                f"`columns` {columns}: must be NAME=COLUMN pairs, such as instruction=question,output=answer"
            )
        if name not in COLUMN_NAMES:
            raise UserError(f"`columns` {columns}: {name} is none of {', '.join(COLUMN_NAMES)}")
        if name in mapping or column in mapping.values():
            raise UserError(f"`columns` {columns}: {name if name in mapping else column} is given twice")
        mapping[name] = column
    return mapping


def run_folder_of(prompt_file: str, run_dir: str | None) -> Path:
    """Return the folder in which the run that writes `prompt_file` keeps checkpoints and metrics."""
    return Path(run_dir) if run_dir else _beside(prompt_file, ".run")


def _beside(prompt_file: str, suffix: str) -> Path:
    """Return `a/p` with `suffix` at its end for `a/p.safetensors`."""
    path = Path(prompt_file)
    return path.with_name(path.name.removesuffix(".safetensors") + suffix)


def _check_ensemble(config: GenerateConfig | EvaluateConfig) -> None:
    """Expand a leading `~` in the members' paths, and check that there are none or at least two of them."""
    config.ensemble = tuple(os.path.expanduser(name) for name in config.ensemble)
    require(len(config.ensemble) != 1, config, "ensemble", "name at least two prompt files")


def _check_one_source(config: TrainConfig | SweepConfig) -> None:
    """Raise `UserError` if two options say what stands in the system turn, or where the questions come from."""
    if config.distill_text is not None:
        require(not config.system, config, "system", "give it or `distill_text`, not both: the text stands there")
    own_data = not config.distill_questions or config.data in (DEFAULT_DATA, "")
    require(own_data, config, "distill_questions", "give it or `data`, not both")


def _check_init_text(config: StartOptions | SweepConfig) -> None:
    """Raise `UserError` if a prompt file could not keep the text."""
    require(is_unicode(config.init_text), config, "init_text", "is not UTF-8 text")
    length = len(config.init_text)
    if length > MAX_INIT_TEXT:
        raise UserError(f"`init_text`: has {length:,} characters, of which {MAX_INIT_TEXT:,} are allowed")
