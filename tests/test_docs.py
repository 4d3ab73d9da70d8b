"""What the pages show is true: commands and flags are there, the README's run, links and paths lead somewhere."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from softprompt.__main__ import COMMANDS
from softprompt.config import commands as configs
from softprompt.config.command_line import read_options
from softprompt.config.options import flags_in
from softprompt.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TRANSLATIONS = ["docs/README.ko.md", "docs/README.zh.md"]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
# every command's options, and the one that it also takes without a flag
OPTIONS = {
    "train": (configs.TrainConfig, None),
    "generate": (configs.GenerateConfig, "instruction"),
    "chat": (configs.ChatConfig, "prompt_file"),
    "evaluate": (configs.EvaluateConfig, "prompt_file"),
    "inspect": (configs.InspectConfig, "prompt_file"),
    "sweep": (configs.SweepConfig, None),
    "export": (configs.ExportConfig, "prompt_file"),
    "import": (configs.ImportConfig, "adapter"),
}
DOORS = ("train.py", "generate.py")
SCRIPTS = ("benchmarks/", "scripts/")
START = r"(?:softprompt |python (?:train\.py|generate\.py|-m softprompt|benchmarks/|scripts/))"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAST_SECTION_OF_THE_FIRST_PAGE = "## How good"


@dataclass(frozen=True)
class Command:
    """A command of a page; `complaint` is what the page shows it to answer, if that is an error."""

    page: str
    words: tuple[str, ...]
    complaint: str = ""

    @property
    def softprompt_words(self):
        """What stands behind `softprompt`, however the command is started; None for a script."""
        if self.words[0] == "softprompt":
            return self.words[1:]
        if self.words[1] in DOORS:
            return (Path(self.words[1]).stem, *self.words[2:])
        return self.words[3:] if self.words[1:3] == ("-m", "softprompt") else None


def text_of(page):
    return (ROOT / page).read_text("utf-8")


def fences(text):
    """(language, content) of every block of code."""
    return FENCE.findall(text)


def prose(text):
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def commands_of_line(line):
    """The words of each command of a line: at its beginning, after `$ `, `&&` or a pipe."""
    line = line.removeprefix("$ ")
    if not re.search(rf"(?:^|&& |\| ){START}", line):
        return []
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|")
    lexer.whitespace_split = True
    parts = [[]]
    for word in lexer:
        if word in ("&&", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [tuple(part) for part in parts if re.match(START, " ".join(part) + " ")]


def commands_of(text, page):
    """The commands in the blocks of code of a page, in order."""
    found = []
    for language, content in fences(text):
        lines = content.splitlines() if not language else []
        for place, line in enumerate(lines):
            following = next((line for line in lines[place + 1 :] if line != "..."), "")
            complaint = following if re.match(r"[\w.]+: error: ", following) else ""
            found += [Command(page, words, complaint) for words in commands_of_line(line)]
    return found


def commands_in_sentences(page):
    """The same between backticks, but for those that stand for any command."""
    found = [line for line in re.findall(r"`([^`\n]+)`", prose(text_of(page))) if re.match(START, line + " ")]
    return [Command(page, words) for line in found if "COMMAND" not in line for words in commands_of_line(line)]


IN_BLOCKS = [command for page in PAGES for command in commands_of(text_of(page), page)]
ALL = IN_BLOCKS + [command for page in PAGES for command in commands_in_sentences(page)]


@cache
def flags_of_script(script):
    """The flags that a script's source adds to its parser."""
    flags = {"--help"}
    for node in ast.walk(ast.parse(text_of(script))):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if name in ("add", "add_argument"):
            flags |= {
                word.value for word in node.args if isinstance(word, ast.Constant) and str(word.value)[:2] == "--"
            }
    return flags


def test_the_table_here_is_complete():
    assert set(OPTIONS) == set(COMMANDS)


def test_commands_of_the_package_take_what_they_are_given():
    parsed, refused = set(), 0
    for command in ALL:
        name, *words = command.softprompt_words or [""]
        if not name or name in ("--version", "--help"):
            continue
        assert name in OPTIONS, command
        if not words and name in ("export", "import") and command not in IN_BLOCKS:
            continue  # a sentence names the command, which needs words to run
        config_class, positional = OPTIONS[name]
        try:
            config_class(
                **read_options(config_class, words, prog=f"softprompt {name}", description="", positional=positional)
            )
        except UserError as error:
            assert command.complaint == flags_in(f"softprompt: error: {error}"), command
            refused += 1
        parsed.add(name)
    assert parsed == set(COMMANDS) and refused == 1  # the flag that commands.md shows to be refused


def test_scripts_take_what_they_are_given():
    scripts, seen = set(), 0
    for command in ALL:
        if command.softprompt_words is None:
            script = command.words[1]
            assert (ROOT / script).is_file(), command
            flags = {word.partition("=")[0] for word in command.words[2:] if word.startswith("--")}
            assert flags <= flags_of_script(script), command
            scripts.add(script)
            seen += len(flags)
    assert len(scripts) > 8 and seen > 20


def test_no_benchmark_that_a_page_shows_is_left_out():
    shown = {command.words[1] for command in ALL if command.softprompt_words is None}
    table = {path for path in re.findall(r"\| `python (\S+\.py)", text_of("benchmarks/README.md"))}
    assert len(table) > 6 and table <= shown


def needs_more_than_what_ships(command, foreign):
    """Whether a command reads rows, a base or a prompt that are not there; notes prompts that it would write."""
    name, *words = command.softprompt_words
    config_class, positional = OPTIONS[name]
    options = read_options(config_class, words, prog=name, description="", positional=positional)
    inputs = [options.get(option) for option in ("data", "model", "instructions")]
    prompts = options.get("prompt_file", configs.DEFAULT_PROMPT_FILE)
    prompts = {prompts} if isinstance(prompts, str) else set(prompts)
    if any(value and not value.startswith("builtin:") for value in inputs):
        foreign |= prompts
        return True
    return bool(prompts & foreign)


@pytest.fixture
def clone(tmp_path):
    """A folder that looks like a clone to the commands, and is thrown away."""
    for name in ("softprompt", *DOORS):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run_python(words, folder):
    # one thread: the shipped base gains little from a second, which on a busy machine costs several times the seconds
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def masked(line):
    """A line without its figures and the width of its columns, which are the machine's and the run's."""
    return " ".join(re.sub(r"\d[\d.,e+-]*", "#", line).split())


def test_commands_of_the_readme_run(clone):
    readme = text_of("README.md")
    foreign, ran, out = set(), [], ""
    for command in commands_of(readme, "README.md"):
        words = command.softprompt_words
        if words is None or words[0] not in OPTIONS or needs_more_than_what_ships(command, foreign):
            continue
        started = command.words[1:] if command.words[0] == "python" else ("-m", "softprompt", *words)
        out += run_python(started, clone)
        ran.append(words[0])
    assert {"train", "generate", "evaluate", "inspect"} <= set(ran) and len(ran) > 5
    shown = [
        line
        for language, content in fences(readme)
        if not language and not content.startswith("{") and "pip install" not in content
        and not commands_of(f"```\n{content}```", "README.md")
        for line in content.splitlines()
        if line != "..."
    ]  # fmt: skip
    printed = {masked(line) for line in out.splitlines()}
    assert len(shown) > 10 and [line for line in shown if masked(line) not in printed] == []


def test_python_blocks_of_the_readme_run(clone):
    blocks = [content for language, content in fences(text_of("README.md")) if language == "python"]
    printed = [run_python(["-c", content], clone) for content in blocks]
    assert blocks and all(text.strip() for text in printed)
    assert list(clone.glob("*.safetensors"))


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_translations_have_the_code_of_the_readme(page):
    first_part, _, rest = text_of("README.md").partition(LAST_SECTION_OF_THE_FIRST_PAGE)
    assert rest
    ours = commands_of(text_of(page), "")
    assert len(ours) > 7 and ours == commands_of(first_part, "")
    blocks = [content for language, content in fences(text_of(page)) if language == "python"]
    assert blocks and blocks == [content for language, content in fences(first_part) if language == "python"]
    known = [content for _, content in fences(first_part)]
    assert [content for _, content in fences(text_of(page)) if content not in known] == []


@cache
def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_relative_links_lead_somewhere():
    links = anchored = 0
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), (page, link)
            links += 1
            if anchor:
                assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), (page, link)
                anchored += 1
    assert links > 60 and anchored > 8


def test_named_paths_exist():
    named = {
        (page, path)
        for page in PAGES
        for path in re.findall(r"(?<![\w/.-])(?:softprompt|benchmarks|scripts|tests)/[\w./-]*\w", text_of(page))
    }
    assert len({path for _, path in named}) > 40
    assert [each for each in sorted(named) if not (ROOT / each[1]).exists()] == []


def test_the_map_of_the_code_names_every_file_once():
    table = text_of("docs/architecture.md").partition("## The rooms")[2].partition("\n## ")[0]
    named, room = [], ""
    for line in table.splitlines():
        first = line.split("|")[1] if line.startswith("| ") else ""
        if found := re.search(r"\*\*`(\w+/)`\*\*", first):
            room = found[1]
        named += [room + name for name in re.findall(r"`(\w+\.py)`", first) if room]
        named += re.findall(r"`softprompt/(\w+\.py)`", first)
    package = ROOT / "softprompt"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    files = {name for name in files if name == "__init__.py" or not name.endswith("__init__.py")}
    assert len(files) > 50 and sorted(named) == sorted(files)


def test_nothing_is_left_to_fill_in():
    assert len(PAGES) > 12
    assert [(page, left) for page in PAGES for left in re.findall(r"@[A-Z]+@|<!-- CHECK", text_of(page))] == []


def test_the_readme_is_short():
    assert 50 < len(text_of("README.md").splitlines()) <= 150


def test_ci_runs_the_tests_as_the_readme_does():
    (block,) = [content for _, content in fences(text_of("README.md")) if "-m pytest" in content]
    command = block.strip().partition("activate && ")[2]
    assert "requirements-dev.txt" in command and command in text_of(".ci/run")


def test_rows_that_a_page_shows_are_json():
    rows = [
        line
        for page in PAGES
        for _, content in fences(text_of(page))
        for line in content.splitlines()
        if line[:2] == '{"'
    ]
    assert len(rows) > 3 and all("instruction" in json.loads(row) for row in rows)
