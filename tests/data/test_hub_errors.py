"""What the hub or `datasets` says of a data set of the hub comes as one line that names the option to change."""

from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from softprompt.data import reading
from softprompt.data.splits import load_splits
from softprompt.errors import UserError

CARD = """---
configs:
- config_name: first
  data_files: [{split: train, path: one.jsonl}, {split: test, path: two.jsonl}]
- config_name: second
  data_files: [{split: train, path: two.jsonl}]
---
"""
ROW = '{"instruction": "a", "output": "b"}\n'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has `owner/rows`, which `datasets` itself reads from a folder with two configurations."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "README.md").write_text(CARD, "utf-8")
    for name in ("one", "two"):
        (folder / f"{name}.jsonl").write_text(ROW * 4, "utf-8")

    def load_dataset(name, config=None, *, split=None):
        return datasets.load_dataset(str(folder), config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(reading, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)


def refusal(**options):
    with pytest.raises(UserError) as caught:
        load_splits("owner/rows", seed=1, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("`data")
    return message


def test_a_configuration_and_a_split_are_found(hub):
    splits = load_splits("owner/rows", seed=1, data_config="first")
    assert len(splits.train_rows) == len(splits.eval_rows) == 4
    assert len(load_splits("owner/rows", seed=1, data_config="second", data_split="train").train_rows) == 4


def test_of_several_configurations_one_must_be_named(hub):
    assert "has several configurations; name one of first, second with `data_config`" in refusal()


def test_a_configuration_that_is_not_there(hub):
    assert refusal(data_config="third") == "`data_config` third: owner/rows has only first, second"


def test_a_split_that_is_not_there(hub):
    message = refusal(data_config="first", data_split="validation")
    assert message == "`data_split` validation: owner/rows has only train, test"


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        (RepositoryNotFoundError, 404, "the hub has none that you may read (HTTP 404)"),
        (GatedRepoError, 403, "the hub has none that you may read (HTTP 403)"),
        (HfHubHTTPError, 401, "the hub has none that you may read (HTTP 401)"),
        (HfHubHTTPError, 503, "cannot be reached"),
    ],
)
def test_what_the_hub_answers(monkeypatch, kind, status, words):
    response = SimpleNamespace(status_code=status, headers={}, request=None)

    def answer(*_, **__):
        raise kind("two\nlines", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    message = refusal()
    assert message.startswith("`data` owner/rows: ") and words in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x'\ndoes not exist"), "the hub has no such data set"),
        (datasets.exceptions.DatasetGenerationError("An error\noccurred"), "cannot be read (An error occurred)"),
        (ValueError("Couldn't infer\nthe same format"), "cannot be read (Couldn't infer the same format)"),
        (ConnectionError("went\naway"), "cannot be read (went away)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_the_download(hub, monkeypatch, error, words):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(reading, "load_dataset", load_dataset)
    assert refusal() == f"`data` owner/rows: {words}"
