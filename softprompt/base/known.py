"""The bases that this user trained prompts on, in one small file of the user's cache folder.

A prompt file names its base, and the file may be a stranger's. So the base it names is loaded without being asked for
only if it ships with softprompt or is on this list.
"""

from pathlib import Path

from softprompt.base.fingerprint import fingerprint
from softprompt.errors import UserError
from softprompt.system import sources
from softprompt.system.cache import read_cached, write_cached

FILE = "trained-bases.json"
MOST = 1000  # entries of the list; the oldest go first


def remember_base(name: str, revision: str, sha256: str) -> None:
    """Put a base that is trained on at the end of the list."""
    if sources.is_builtin(name):
        return
    entry = [sha256, _place(name, revision)]
    entries = _entries()
    if entries[-1:] != [entry]:
        write_cached(FILE, [*(each for each in entries if each != entry), entry][-MOST:])


def is_known_base(name: str, revision: str, sha256: str) -> bool:
    """Whether the base that a prompt file names may be loaded.

    A folder that has moved is known by its weights, whose hash is computed before anything of it is loaded.
    """
    if sources.is_builtin(name):
        return True
    entries = _entries()
    if not sha256 or sha256 not in [hash for hash, _ in entries]:
        return False
    if [sha256, _place(name, revision)] in entries:
        return True
    if not sources.is_path(name):
        return False
    try:
        folder = sources.local_path(name, "model")
        # where nothing is, nothing can be loaded, and the message about that is the better one
        return not folder.is_dir() or fingerprint(folder).sha256 == sha256
    except (OSError, UserError):
        return False


def _place(name: str, revision: str) -> str:
    """Where a base is: the absolute path of a folder, or a hub id with its commit."""
    return str(Path(name).expanduser().resolve()) if sources.is_path(name) else f"{name}@{revision}"


def _entries() -> list[list[str]]:
    """The list as it is on disk, or an empty one; each entry is the hash of a base and its place."""
    found = read_cached(FILE)
    if not isinstance(found, list):
        return []
    return [each for each in found if isinstance(each, list) and len(each) == 2 and all(type(t) is str for t in each)]
