"""Templates: how the turns of a conversation become text. A prompt file keeps the template that it was trained with.

Generation and scoring read the template from the file, so a question is always written as it was in training.
"""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from softprompt.errors import UserError

NAMES = ("tutorial", "chat", "plain", "file", "text")  # that a prompt file may name
ASKED_NAMES = ("auto", "tutorial", "chat", "plain")  # that the option may name, instead of a file
OLD_NAMES = ("", "alpaca")  # of the tutorial's template, in prompt files of format version 1
LARGEST_FILE = 1 << 20  # bytes of a template file
DATE_CALL = re.compile(r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(["'])((?:(?!\1).)*)\1\s*\)""")
# a call whose format is not written out there, or another name for the function
OTHER_DATE_USE = re.compile(r"\bstrftime_now\b(?!\s+is\s+(not\s+)?defined)")
DIRECTIVES = tuple(f"%{letter}" for letter in "AaBbdmYyjFDxHMSIpcX")


@dataclass(frozen=True)
class Template:
    """How turns are written.

    Attributes:
        name: `tutorial` ("Human: ...", "Assistant: "), `chat` (the tokenizer's own), `file` (a Jinja file), `plain`
            (question, answer and eos with nothing between) or `text` (rows are text, and so is a question).
        text: the Jinja text of `chat` and `file`.
        date: the day that stands in `text` if the template asks for the date, as YYYY-MM-DD.
        system: the system text of rows that have none.
    """

    name: str = "tutorial"
    text: str = ""
    date: str = ""
    system: str = ""

    @property
    def is_chat(self) -> bool:
        """Whether turns are written by a Jinja template."""
        return self.name in ("chat", "file")


TUTORIAL = Template()


def choose_template(
    asked: str, tokenizer: PreTrainedTokenizerBase, *, system: str = "", date: str | None = None
) -> Template:
    """The template that `template` asks for: auto, tutorial, chat, plain or the name of a Jinja file.

    Args:
        system: the system text of rows that have none.
        date: the day for templates that ask for the date, as YYYY-MM-DD; None takes today.

    Raises:
        UserError: the tokenizer has no chat template, or the file cannot be read.
    """
    own = own_template(tokenizer)
    if asked == "auto":
        asked = "chat" if own else "tutorial"
    if asked in ("tutorial", "plain"):
        return Template(asked, system=system)
    if asked == "chat":
        if not own:
            raise UserError("`template` chat: this tokenizer has no chat template; use tutorial, plain or a Jinja file")
        text = own
    else:
        text = _read(asked)
    text, date = with_date(text, date)
    return Template("chat" if asked == "chat" else "file", text, date, system)


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that a tokenizer has; "" if it has none.

    Of several it is the default, and for rows with tools the one named `tool_use`, as in transformers.
    """
    own = tokenizer.chat_template
    if not isinstance(own, dict):
        return own or ""
    default, with_tools = own.get("default", ""), own.get("tool_use")
    if not default or not with_tools:
        return default
    # jinja drops the line break behind a block, the last one of a file, and blanks in front of a block without a plus
    with_tools, default = with_tools.removesuffix("\n"), default.removesuffix("\n")
    return f"{{% if tools %}}\n{with_tools}{{%+ else %}}\n{default}{{%+ endif %}}"


def with_date(text: str, date: str | None) -> tuple[str, str]:
    """Put one date into a template that asks for it; returns the text, and the date or "" if it does not ask.

    A template that knew each day's date would write the same row differently tomorrow.
    """
    if not OTHER_DATE_USE.search(text):
        return text, ""
    day = datetime.date.fromisoformat(date) if date else datetime.date.today()
    text = DATE_CALL.sub(lambda call: repr(day.strftime(call[2])), text)
    if OTHER_DATE_USE.search(text):
        # a macro of that name stands in for the function; jinja drops the line break behind it
        written = {"%-d": str(day.day), "%-m": str(day.month)} | {each: day.strftime(each) for each in DIRECTIVES}
        parts = "".join(f".replace({directive!r}, {value!r})" for directive, value in written.items())
        text = f"{{% macro strftime_now(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{text}"
    return text, day.isoformat()


def template_of(name: str, *, text: str = "", date: str = "", system: str = "", prompt_file: str) -> Template:
    """The template that a prompt file states; a name of version 1 is the tutorial's.

    Raises:
        UserError: this version has no template of that name and would write questions in another form than training,
            or the date is none.
    """
    if name in OLD_NAMES:
        name = TUTORIAL.name
    if name not in NAMES or (name in ("chat", "file")) != bool(text):
        raise UserError(f"{prompt_file}: was trained with the template {name!r}, which is not known; update softprompt")
    try:
        datetime.date.fromisoformat(date or "2000-01-01")
    except ValueError as error:
        raise UserError(f"{prompt_file}: the date of its template, {date!r}, is no date; train it again") from error
    return Template(name, text, date, system)


def _read(name: str) -> str:
    """Read a template file.

    Raises:
        UserError: there is no such file, or it is empty, too large or no UTF-8 text.
    """
    try:
        path = Path(name).expanduser()
        if not path.is_file():
            known = "auto, tutorial, chat and plain"
            raise UserError(f"`template` {name}: no such file; the names of templates are {known}")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"`template` {name}: is larger than {LARGEST_FILE >> 20} MB, so it is no template")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # a RuntimeError: the home of ~someone is not known
        raise UserError(f"`template` {name}: cannot be read as UTF-8 text ({error})") from error
    if not text.strip():
        raise UserError(f"`template` {name}: is empty; give a Jinja file")
    return text
