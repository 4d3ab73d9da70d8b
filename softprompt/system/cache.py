"""Small JSON files under the user's own cache folder: bounded, with a checksum, and replaced whole.

They only save time or remember what this user did here, so a file that is damaged or missing counts as absent.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from softprompt.system.files import remove_temporaries, write_atomic
from softprompt.system.foreign import decode_json

MAX_BYTES = 1 << 26


def cache_folder() -> Path | None:
    """The folder of this user's cache, which need not exist; None for a user without a home.

    It is never a folder that users share: whoever can write there could make one base pass for another.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        root = Path(named)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~"))
    else:
        root = Path(os.path.expanduser("~")) / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return root / "softprompt" if root.is_absolute() else None


def read_cached(name: str) -> Any:
    """Return the value of the cache file `name`, or None if there is none that is whole."""
    folder = cache_folder()
    try:
        if folder is None or not (folder / name).is_file() or (folder / name).stat().st_size > MAX_BYTES:
            return None
        content = decode_json((folder / name).read_text("utf-8"))
        return content["value"] if content["sha256"] == _checksum(content["value"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_cached(name: str, value: Any) -> None:
    """Write the cache file `name`, as well as the disk allows; nothing depends on it."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder, re.escape(name), locked=False)
        write_atomic(folder / name, json.dumps({"sha256": _checksum(value), "value": value}).encode())


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
