"""Read a command line into a config dataclass, whose fields are the flags."""

import argparse
import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from softprompt.config.options import flag, groups_of, plain_type
from softprompt.errors import UserError

Config = TypeVar("Config")

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
# names of other programs for options of ours, to suggest the right one
OTHER_NAMES = {
    "lr": "learning_rate", "rate": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs",
    "steps": "max_steps", "batch_size": "per_device_train_batch_size", "batch": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size", "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps", "num_virtual_tokens": "virtual_tokens",
    "prompt_length": "virtual_tokens", "prompt_tuning_init": "init", "prompt_tuning_init_text": "init_text",
    "base": "model", "base_model": "model", "model_name_or_path": "model", "model_name": "model",
    "dataset": "data", "dataset_name": "data", "train_file": "data", "train_data": "data",
    "validation_file": "eval_data", "test_file": "test_data", "max_seq_length": "max_length",
    "cutoff_len": "max_length", "output_dir": "run_dir", "output": "prompt_file", "prompt": "prompt_file",
    "dtype": "precision", "bf16": "precision", "fp16": "precision", "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
    "question": "instruction", "questions": "instructions", "max_tokens": "max_new_tokens", "temp": "temperature",
    "resume_from_checkpoint": "resume", "force": "overwrite",
}  # fmt: skip


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    positional: str | None = None,
) -> Config:
    """Read `argv` into a `config_class`; both `--a-b` and `--a_b` are understood.

    Args:
        positional: the option whose value may also be given without its flag.

    Raises:
        UserError: a flag is unknown, a value has the wrong type, or the config refuses it.
    """
    return config_class(**read_options(config_class, argv, prog=prog, description=description, positional=positional))


def read_options(
    config_class: type, argv: Sequence[str] | None, *, prog: str, description: str, positional: str | None = None
) -> dict[str, Any]:
    """Return the options that `argv` gives, by name, without defaults. Arguments and errors are those of `parse`."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    hints = typing.get_type_hints(config_class)
    if positional:
        several = isinstance(fields[positional].default, tuple)
        help_text = f"the same as {flag(positional)}"
        parser.add_argument("positional", nargs="*" if several else "?", metavar=positional.upper(), help=help_text)
    for heading, members in groups_of(config_class).items():
        group = parser.add_argument_group(heading)
        for field in members:
            _add_flag(group, field, hints[field.name])
    argv = sys.argv[1:] if argv is None else argv
    switches = {flag(name) for name in fields if plain_type(hints[name]) is bool}
    values, unknown = parser.parse_known_args(list(_spelled(argv, switches)))
    if unknown:
        raise UserError(_unknown(unknown[0], list(fields), prog))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(values).items()}
    given = options.pop("positional", None)
    if given is not None and positional:
        if positional in options:
            raise UserError(f"`{positional}`: {' '.join(given) if isinstance(given, tuple) else given} is given too")
        options[positional] = given
    return options


def _spelled(argv: Sequence[str], switches: set[str]) -> list[str]:
    """Return the words with dashes in flags and a value in every switch: `--do_sample False` is `--do-sample=false`.

    A switch may have a value, as with transformers' HfArgumentParser, or none. The word behind it may also be the
    question, so it counts as the value only if it is one of `TRUE` and `FALSE`.
    """
    words: list[str] = []
    for place, word in enumerate(argv):
        if word == "--":
            return [*words, *argv[place:]]
        word = re.sub(r"^--[\w-]+(?==|$)", lambda name: name[0].replace("_", "-"), word)
        if words and words[-1] in switches and word.lower() in TRUE + FALSE:
            words[-1] += f"={word.lower()}"
        else:
            words.append(word)
    return [f"{word}=true" if word in switches else word for word in words]


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises `UserError` with one line instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the flags")


def _add_flag(group: Any, field: dataclasses.Field, hint: object) -> None:
    """Add the flag of one field to a group of the parser; its help states the default."""
    kind = plain_type(hint)
    help_text = field.metadata["help"].replace("%", "%%")
    if kind is bool:
        help_text += f" (default: {'on' if field.default else 'off'})"
        group.add_argument(flag(field.name), type=_truth, nargs=None, metavar="", help=help_text)
        if field.default:
            negated = flag(f"no_{field.name}")
            group.add_argument(
                negated, dest=field.name, action="store_false", help=f"the opposite of {flag(field.name)}"
            )
        return
    if "(default:" not in help_text:
        help_text += f" (default: {field.default!r})".replace("%", "%%")
    group.add_argument(
        flag(field.name),
        type=kind,
        nargs=_number_of_words(hint),
        choices=field.metadata["choices"],
        metavar=None if field.metadata["choices"] else kind.__name__.upper(),
        help=help_text,
    )


def _number_of_words(hint: object) -> str | int | None:
    """How many words a flag takes, as argparse spells it: one or more for a `tuple[str, ...]`, two for two types."""
    if typing.get_origin(hint) is not tuple:
        return None
    types = typing.get_args(hint)
    return "+" if Ellipsis in types else len(types)


def _truth(word: str) -> bool:
    if word.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() in TRUE


def _unknown(word: str, names: list[str], prog: str) -> str:
    """Return the message for a word that no option takes, which suggests an option of similar name."""
    if not word.startswith("-"):
        return f"{word!r} belongs to no flag; {prog} --help lists the flags"
    typed = word.lstrip("-").partition("=")[0].replace("-", "_")
    meant = nearest_option(typed, names)
    advice = f"did you mean {flag(meant)}?" if meant else f"{prog} --help lists the flags"
    return f"{word.partition('=')[0]}: no such flag; {advice}"


def nearest_option(typed: str, names: list[str]) -> str | None:
    """Return the option that an unknown name may mean: by another program's name or similar spelling, or None."""
    if OTHER_NAMES.get(typed) in names:
        return OTHER_NAMES[typed]
    return next(iter(difflib.get_close_matches(typed, names, 1)), None)
