"""Fixtures that every test shares: random small models of three families, a byte-level tokenizer, a few rows."""

import json
import os
from pathlib import Path

# no test may reach for the network, and none needs more than one thread
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from helpers.models import FAMILIES, make_model, make_tokenizer
from helpers.rows import ROWS
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(params=FAMILIES)
def base(request) -> PreTrainedModel:
    """A fresh model of each family in turn."""
    return make_model(request.param)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A saved random BLOOM with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "bloom"
    make_model("bloom").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path) -> Path:
    """Ten Alpaca rows as JSONL."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch) -> None:
    """Fingerprints are cached in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """An empty folder that the commands run in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
