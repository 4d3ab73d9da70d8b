"""The text around a row: what stands in front of the response.

A prompt file names the template that it was trained with, and whoever uses the prompt reads that name back, so that
a question is always asked as it was in training.
"""

from dataclasses import dataclass

from softprompt.errors import UserError


@dataclass(frozen=True)
class Template:
    """How a question is written. `name` is what a prompt file calls it."""

    name: str

    def question(self, instruction: str, input: str = "") -> str:
        """The text before the response. An empty input leaves no blank line."""
        return "\n".join(["Human: " + instruction, input]).strip() + "\n\nAssistant: "


TUTORIAL = Template("alpaca")


def template_named(name: str, *, prompt_file: str) -> Template:
    """The template that a prompt file names; the tutorial's where it names none.

    Raises:
        UserError: this version knows no template of that name, so it would ask in another form than training did.
    """
    if name not in (TUTORIAL.name, ""):
        raise UserError(f"{prompt_file}: was trained with the template {name!r}, which is not known; update softprompt")
    return TUTORIAL
