"""The package and its versions: ranges for users, pins for our figures, and what the wheel must hold."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import softprompt
from softprompt.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
RANGES = {Requirement(text).name: Requirement(text) for text in PROJECT["project"]["dependencies"]}


def pins(name):
    """The exact versions of a requirements file, by package."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = {}
    for line in lines:
        text = line.partition("#")[0].strip()
        if text and not text.startswith("-r"):
            package, _, version = text.partition("==")
            assert version, f"{name}: {line} is no exact pin"
            found[package] = version
    return found


def test_the_user_s_card_names_the_run_time_packages():
    assert set(RANGES) == set(pins("requirements.txt")) == {"torch", "transformers", "datasets", "safetensors", "tqdm"}


@pytest.mark.parametrize("package", RANGES)
def test_every_pin_lies_in_the_range_for_users(package):
    version = pins("requirements.txt")[package]
    assert RANGES[package].specifier.contains(version)
    assert not RANGES[package].specifier.contains("0.0.1")  # a range without a lower end would hold anything


def test_every_version_has_a_reason():
    lines = [
        line for name in ("requirements.txt", "requirements-dev.txt") for line in (ROOT / name).read_text().splitlines()
    ]
    pinned = [line for line in lines if "==" in line]
    assert len(pinned) > 8 and all(re.search(r"\S  +# \w", line) for line in pinned)
    ranges = re.search(r"\ndependencies = \[\n(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    assert all("#" in line for line in ranges.strip().splitlines())


def test_the_extras_are_those_of_the_development_file():
    extras = PROJECT["project"]["optional-dependencies"]
    every = [text for each in ("dev", "plot", "serve") for text in extras[each]]
    named = {Requirement(text).name for text in every} - {"softprompt"}
    assert named == set(pins("requirements-dev.txt"))
    for text in every:
        requirement = Requirement(text)
        if requirement.name != "softprompt":
            assert requirement.specifier.contains(pins("requirements-dev.txt")[requirement.name])


def test_what_is_imported_late_is_an_extra():
    assert "matplotlib" in {Requirement(text).name for text in PROJECT["project"]["optional-dependencies"]["plot"]}


def test_the_wheel_holds_the_assets_and_the_mark_of_types():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["softprompt"]
    found = {
        str(path.relative_to(ROOT / "softprompt"))
        for pattern in patterns
        for path in (ROOT / "softprompt").glob(pattern)
    }
    assert {"py.typed", "assets/bloom-small/model.safetensors", "assets/bloom-small/tokenizer.json"} <= found
    assert any(name.startswith("assets/data/polite/") for name in found)


def test_every_room_is_a_package():
    folders = [
        path for path in (ROOT / "softprompt").iterdir() if path.is_dir() and path.name not in ("assets", "__pycache__")
    ]
    assert len(folders) > 10 and all((folder / "__init__.py").exists() for folder in folders)


def test_version_and_help(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"softprompt {softprompt.__version__}\n"
    main([])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_the_console_script_is_the_package_s_entry():
    module, _, name = PROJECT["project"]["scripts"]["softprompt"].partition(":")
    assert module == "softprompt.__main__" and callable(getattr(__import__(module, fromlist=[name]), name))


def test_public_names_load():
    assert {"train", "load", "SoftPromptEmbedding", "SoftPromptModel", "load_prompt", "save_prompt"} <= set(
        softprompt.__all__
    )
    for name in softprompt.__all__:
        assert getattr(softprompt, name) is not None
