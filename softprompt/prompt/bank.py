"""Prompts of many files on one base, and which of them each row of a file of questions names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.base.loading import Base
from softprompt.data.row import Row
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.encoder import bound_to, encoder_of
from softprompt.prompt.file import PromptFile, load_prompt
from softprompt.prompt.fit import check_same_base
from softprompt.prompt.metadata import PromptMetadata
from softprompt.system import sources
from softprompt.tokens.encoding import Encoder

COLUMN = "prompt_file"  # of a file of questions


@dataclass(frozen=True, eq=False)
class BankedPrompt:
    """A prompt file that was read and checked against the base.

    Attributes:
        name: the path of the file as it was given.
        encoder: how rows are written for it; prompts whose rows are written alike share one.
        prompt: the tensor, on the base's device.
        remark: what the user should know of how it fits the base, or "".
    """

    name: str
    file: PromptFile
    encoder: Encoder
    prompt: SoftPromptEmbedding
    remark: str


class PromptBank:
    """The prompts of a base by the names of their files. Each file is read once, and again when it has changed."""

    def __init__(self, base: Base, *, allow_other: bool = False) -> None:
        """Begin without prompts; `allow_other` accepts those that were trained on another base."""
        self.base, self.allow_other = base, allow_other
        self._prompts: dict[str, tuple[tuple[int, ...], BankedPrompt]] = {}
        self._encoders: dict[str, Encoder] = {}

    def load(self, name: str) -> BankedPrompt:
        """Return the prompt of a file.

        Raises:
            UserError: the file is missing or cannot be read, or does not fit the base.
        """
        state = _state(name)
        known = self._prompts.get(name)
        if known is not None and known[0] == state:
            return known[1]
        file = load_prompt(name)
        remark = check_same_base(file, self.base, prompt_file=name, allow_other=self.allow_other)
        file = bound_to(self.base, file)
        how = repr(_writing(file.facts))
        if how not in self._encoders:
            self._encoders[how] = encoder_of(file.facts, self.base, prompt_file=name)
        prompt = SoftPromptEmbedding.from_tensor(file.weight).to(self.base.device)
        banked = BankedPrompt(name, file, self._encoders[how], prompt, remark)
        self._prompts[name] = (state, banked)
        return banked

    def forget(self, name: str) -> None:
        """Let go of a prompt, for instance since its file is gone."""
        self._prompts.pop(name, None)


def load_members(bank: PromptBank, names: Sequence[str]) -> list[BankedPrompt]:
    """Load the members of an ensemble.

    Raises:
        UserError: as `PromptBank.load`; or a file is given twice, or their rows are not written alike.
    """
    members = [bank.load(name) for name in names]
    for place, member in enumerate(members):
        if Path(member.name).resolve() in [Path(other.name).resolve() for other in members[:place]]:
            raise UserError(f"`ensemble` {member.name}: is given twice; name every file once")
        if member.encoder is not members[0].encoder:
            raise UserError(
                f"`ensemble` {member.name}: was trained with another template or placement than {members[0].name}, so"
                " they do not read the same ids"
            )
    return members


def prompt_files_of(rows: Sequence[Row], *, questions: str, default: str) -> list[str]:
    """Return the prompt file of every row; empty if no row has one in its column `prompt_file`.

    A path is relative to the folder that holds the questions: that of their file, or their folder itself. Where the
    questions are of a hub id or shipped, it is relative to the working folder.

    Args:
        questions: the name under which the rows were given.
        default: the file of a row whose value is missing or blank.
    """
    values = [str(row.others.get(COLUMN) or "").strip() for row in rows]
    if not any(values):
        return []
    folder = _folder_of(questions)
    return [os.path.join(folder, os.path.expanduser(value)) if value else default for value in values]


def load_for_rows(bank: PromptBank, files: Sequence[str], rows: Sequence[Row], name: str) -> list[BankedPrompt]:
    """Load the prompt of every row.

    Raises:
        UserError: as `PromptBank.load`; the message names the first such row.
    """
    found: dict[str, BankedPrompt] = {}
    for row, file in zip(rows, files, strict=True):
        if file not in found:
            try:
                found[file] = bank.load(file)
            except UserError as error:
                raise UserError(f"{name}, row {row.number}: {error}") from error
    return [found[file] for file in files]


def _folder_of(questions: str) -> str:
    """Return the folder that paths in the questions start from; "" is the working folder."""
    if sources.is_builtin(questions) or not sources.is_path(questions):
        return ""
    path = sources.local_path(questions, "instructions")
    folder = path if path.is_dir() else path.parent
    return "" if folder == Path(".") else str(folder)


def _writing(facts: PromptMetadata) -> tuple[object, ...]:
    """Return all that decides how rows are written."""
    names = ("bos_token", "end_ids", "template", "template_text", "template_date", "system", "learnt_turns")
    return tuple(getattr(facts, name) for name in (*names, "placement", "before_ids", "after_ids"))


def _state(name: str) -> tuple[int, ...]:
    """Return what changes when a file, or a file of an adapter's folder, is replaced or written; empty without one."""
    try:
        path = Path(name)
        files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        found = [file.stat() for file in files]
    except OSError:
        return ()
    return tuple(number for each in found for number in (each.st_mtime_ns, each.st_size, each.st_ino))
