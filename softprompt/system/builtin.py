"""What ships with the package: the small BLOOM and the default rows, by name."""

from pathlib import Path

from softprompt.errors import UserError

PREFIX = "builtin:"
ASSETS = Path(__file__).parents[1] / "assets"
MODELS = {"bloom-small@1": ASSETS / "bloom-small"}

SAMPLE_QUESTION = "What is the capital of France?"


def is_builtin(name: str) -> bool:
    """Whether `name` means something that ships with the package."""
    return name.startswith(PREFIX)


def model_folder(name: str) -> Path:
    """The folder of a shipped base such as `builtin:bloom-small@1`."""
    return _look_up(name, MODELS, "model")


def data_folder(name: str) -> Path:
    """The folder of a shipped data set such as `builtin:polite`."""
    return _look_up(name, {folder.name: folder for folder in sorted((ASSETS / "data").iterdir())}, "data set")


def _look_up(name: str, known: dict[str, Path], kind: str) -> Path:
    short = name.removeprefix(PREFIX)
    if short not in known:
        raise UserError(f"no {kind} {name!r} ships with softprompt; there is {', '.join(PREFIX + k for k in known)}")
    return known[short]
