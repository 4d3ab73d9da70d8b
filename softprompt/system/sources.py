"""What a name for data or a model means: something that ships with the package, a path or a hub id.

A hub that does not answer is reported within five seconds.
"""

import contextlib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from softprompt.errors import UserError

# of one request; a hub that does not answer is reported within 5 s
TIMEOUT_S = 3.0
ROW_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PACKED = ".gz"  # behind any of them
DATA_SUFFIXES = (*ROW_SUFFIXES, PACKED)

PROMPT_SUFFIXES = (".safetensors", ".npy", ".bin", ".pt")
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

PREFIX = "builtin:"
ASSETS = Path(__file__).parents[1] / "assets"
MODELS = {"bloom-small@1": ASSETS / "bloom-small"}
SAMPLE_QUESTION = "What is the capital of France?"

Result = TypeVar("Result")


def is_builtin(name: str) -> bool:
    """Whether `name` names something that ships with the package."""
    return name.startswith(PREFIX)


def model_folder(name: str) -> Path:
    """Return the folder of a shipped base such as `builtin:bloom-small@1`; an unknown name raises `UserError`."""
    return _look_up(name, MODELS, "model")


def data_folder(name: str) -> Path:
    """Return the folder of a shipped data set such as `builtin:polite`; an unknown name raises `UserError`."""
    return _look_up(name, {folder.name: folder for folder in sorted((ASSETS / "data").iterdir())}, "data set")


def text_file(name: str) -> Path:
    """Return the file of a shipped text such as `builtin:politeness`; an unknown name raises `UserError`."""
    return _look_up(name, {path.stem: path for path in sorted((ASSETS / "texts").iterdir())}, "text")


def _look_up(name: str, known: dict[str, Path], kind: str) -> Path:
    short = name.removeprefix(PREFIX)
    if short not in known:
        raise UserError(f"no {kind} {name!r} ships with softprompt; there is {', '.join(PREFIX + k for k in known)}")
    return known[short]


def is_path(name: str) -> bool:
    """Whether a name for data or a model is a path: it exists, has a data suffix, or starts with `.`, `/` or `~`."""
    return name.startswith((".", "/", "~")) or name.lower().endswith(DATA_SUFFIXES) or Path(name).exists()


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, in small letters and without `.gz`."""
    return Path(path.name.lower().removesuffix(PACKED)).suffix


def stem_of(path: Path) -> str:
    """The name of a file without its suffix, and without `.gz` behind it."""
    return Path(path.name[: -len(PACKED)] if path.name.lower().endswith(PACKED) else path.name).stem


def local_path(name: str, option: str) -> Path:
    """Return the path that `name` means, with a leading `~` expanded.

    Raises:
        UserError: `name` begins with `~user`, and there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"`{option}` {name}: there is no such home folder") from error


def model_snapshot(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Download the model `name`, or find it in the cache, and return its folder and its commit.

    The weights are `pytorch_model.bin` only if the repository has no safetensors.

    Args:
        revision: the commit that a prompt file names; None takes the newest.

    Raises:
        UserError: there is no such model, no access to it, or no connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download

    cached = functools.partial(_cached_snapshot, revision=revision)
    info = _ask("model", name, lambda: HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S), cached)
    if isinstance(info, Path):
        return info, info.name
    assert info.siblings is not None and info.sha is not None  # None only if the request names fewer properties
    names = [sibling.rfilename for sibling in info.siblings]
    weights = "*.safetensors" if any(n.endswith(".safetensors") for n in names) else "pytorch_model*.bin"
    patterns = [weights, "*.json", "*.model", "*.txt", "*.jinja"]
    folder = _ask("model", name, lambda: snapshot_download(name, revision=info.sha, allow_patterns=patterns), None)
    return Path(folder), info.sha


def is_adapter_id(name: str) -> bool:
    """Whether a name for a prompt, of which no file or folder is here, may be a hub id (OWNER/NAME)."""
    return HUB_ID.fullmatch(name) is not None and not name.lower().endswith(PROMPT_SUFFIXES)


def adapter_snapshot(name: str) -> Path:
    """Download the adapter `name`, or find it in the cache, and return its folder; its weights are one file.

    Raises:
        UserError: there is no such adapter, no access to it, or no connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download

    cached = functools.partial(_cached_snapshot, revision=None)
    info = _ask("prompt_file", name, lambda: HfApi().model_info(name, timeout=TIMEOUT_S), cached)
    if isinstance(info, Path):
        return info
    download = functools.partial(snapshot_download, name, revision=info.sha, allow_patterns=ADAPTER_FILES)
    return Path(_ask("prompt_file", name, download, None))


def require_dataset(name: str, option: str) -> None:
    """Raise `UserError` unless the hub answers that it has the data set `name`."""
    from huggingface_hub import HfApi

    _ask(option, name, lambda: HfApi().dataset_info(name, timeout=TIMEOUT_S), None)


def _ask(
    option: str, name: str, request: Callable[[], Result], cached: Callable[[str], Path | None] | None
) -> Result | Path:
    """Return the answer to `request`, or the cached copy if the hub cannot be reached.

    Raises:
        UserError: the hub has nothing of that name that may be read, or it cannot be reached and nothing is cached.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    what = f"`{option}` {name}: no file or folder of that name is here"
    try:
        with _quiet_client():
            return request()
    except HFValidationError as error:
        raise UserError(f"{what}, and it is not a hub id (OWNER/NAME)") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code < 500:
            raise UserError(f"{what}, and the hub has none that you may read (HTTP {code}); check the id") from error
    except (OSError, OfflineModeIsEnabled, _connection_error()):
        pass
    folder = cached(name) if cached else None
    if folder is None:
        raise UserError(f"{what}, and the hub cannot be reached; give a local path or connect to the network")
    return folder


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """Let the hub client log no retries and send no usage report, which would wait for another 3 s."""
    from huggingface_hub import constants

    client = logging.getLogger("huggingface_hub")
    level, reports = client.level, constants.HF_HUB_DISABLE_TELEMETRY
    client.setLevel(logging.CRITICAL)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        client.setLevel(level)
        constants.HF_HUB_DISABLE_TELEMETRY = reports


def _connection_error() -> type[Exception]:
    """Return the transport error of the HTTP client that the hub library uses, whichever client that is."""
    from huggingface_hub.utils import get_session

    return sys.modules[type(get_session()).__module__.partition(".")[0]].TransportError


def _cached_snapshot(name: str, *, revision: str | None) -> Path | None:
    """Return the snapshot of a model in the local cache, of that commit or the newest; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
