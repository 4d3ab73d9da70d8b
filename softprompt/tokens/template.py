"""The template: the text that is put in front of a row's response.

A prompt file names the template that the prompt was trained with, and generation and scoring read that name. A question
is therefore always written as it was in training.
"""

from dataclasses import dataclass

from softprompt.data.row import Row
from softprompt.errors import UserError


@dataclass(frozen=True)
class Template:
    """How a question is written; `name` is the template's name in a prompt file."""

    name: str

    def question(self, row: Row) -> str:
        """The text before the response. An empty input leaves no blank line."""
        return f"Human: {row.messages[-1]['content']}".strip() + "\n\nAssistant: "


TUTORIAL = Template("tutorial")
OLD_NAMES = ("", "alpaca")  # of the tutorial's template, in prompt files of format version 1


def template_named(name: str, *, prompt_file: str) -> Template:
    """The template with the name that a prompt file gives, or the tutorial's if the name is "".

    Raises:
        UserError: this version has no template of that name and would write questions in another form than training.
    """
    if name not in (TUTORIAL.name, *OLD_NAMES):
        raise UserError(f"{prompt_file}: was trained with the template {name!r}, which is not known; update softprompt")
    return TUTORIAL
