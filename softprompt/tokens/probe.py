"""A template, which may be a stranger's, is first rendered in a child process, with little time and memory.

The sandbox keeps a template from reaching out of the text, but not from looping for ever or filling the memory.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from softprompt.errors import UserError
from softprompt.system.cache import read_cached, write_cached
from softprompt.system.foreign import decode_json

SECONDS = 5
LARGEST_TEXT = 1 << 15  # characters of one rendered row
LARGEST_MEMORY = 4 << 30  # bytes of address space, of which Python and the libraries take about one
FILE, MOST = "harmless-templates.json", 1000  # hashes of templates that were harmless here; the oldest go first
PROGRAM = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
print("ready", flush=True)
given = json.loads(sys.stdin.readline())
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (given.pop("memory"),) * 2)
except (ImportError, OSError, ValueError):
    given.pop("memory", None)
try:
    asked, answered = given.pop("conversations")
    (asked,), _ = render_jinja_template(conversations=[asked], add_generation_prompt=True, **given)
    (answered,), _ = render_jinja_template(conversations=[answered], **given)
    print(json.dumps({"length": max(len(asked), len(answered))}))
except BaseException as error:
    print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())[:160]}))
"""


_harmless: set[str] = set()  # hashes of templates that were harmless in this process


def require_harmless_once(text: str, names: Mapping[str, object], *, what: str, own: bool) -> None:
    """Do the same as `require_harmless` for a template that this user has not used yet.

    Args:
        own: whether the base has this template itself. Then rows may suit it better than the one here, and its errors
            are left to them; only what cannot be stopped any more is refused.
    """
    key = hashlib.sha256(json.dumps([text, dict(names), own], sort_keys=True, default=str).encode()).hexdigest()
    if key in _harmless:
        return
    found = read_cached(FILE)
    known = [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
    if key not in known:
        require_harmless(text, names, what=what, own=own)
        write_cached(FILE, [*known, key][-MOST:])
    _harmless.add(key)


def require_harmless(text: str, names: Mapping[str, object], *, what: str, own: bool = False) -> None:
    """Render a template in a child process on one row, as a question and with its answer.

    Args:
        text: the Jinja text.
        names: the special tokens that the template may use.
        what: how messages begin, such as the option that names the file.
        own: as in `require_harmless_once`.

    Raises:
        UserError: it fails, takes longer than `SECONDS` or writes more than 32,768 characters.
    """
    asked = [{"role": "user", "content": "a"}]
    answered = [*asked, {"role": "assistant", "content": "b"}]
    given = {"conversations": [asked, answered], "chat_template": text, "memory": LARGEST_MEMORY, **names}
    # the package's own folder must not be first on the path, where a file of the user's could stand in for a library
    command = [sys.executable, "-P", "-c", PROGRAM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, encoding="utf-8", cwd=Path(sys.prefix), **pipes) as child:  # type: ignore[call-overload]
        try:
            child.stdout.readline()  # the libraries are imported, which is not the template's time
            answer, _ = child.communicate(json.dumps(given) + "\n", timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{what}: the template does not end within {SECONDS} s; give another") from error
        finally:
            child.kill()
    try:
        found = decode_json(answer)
    except ValueError as error:
        raise UserError(f"{what}: the template ends its process; give another") from error
    failure = found.get("error")
    if failure and own and not failure.startswith("MemoryError"):
        return
    if failure:
        raise UserError(f"{what}: the template cannot be rendered ({failure})")
    if found["length"] > LARGEST_TEXT:
        raise UserError(f"{what}: the template writes {found['length']:,} characters for one row; give another")
