"""For a base without a chat template not one id changes: rows are encoded as in the tutorial."""

import json
from pathlib import Path

import pytest
from helpers.rows import tutorial_question
from transformers import AutoTokenizer

from softprompt.data.row import Row
from softprompt.data.splits import load_splits
from softprompt.prompt.encoder import choose_template
from softprompt.system.sources import MODELS
from softprompt.tokens.encoding import Encoder, bos_of

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILES = ("alpaca_en_1k.json", "alpaca_zh_1k.json")


@pytest.fixture(scope="module")
def shipped():
    return AutoTokenizer.from_pretrained(MODELS["bloom-small@1"], trust_remote_code=False)


def assert_tutorial(rows, tokenizer):
    """Ids and labels of every row are those of question, answer and eos, each tokenised as the tutorial does."""
    encoder = Encoder(tokenizer, choose_template("auto", tokenizer), bos_id=bos_of(tokenizer))
    settings = {"add_special_tokens": False, "split_special_tokens": True}
    for row, encoded, question in zip(rows, encoder.encode(rows, max_length=128), encoder.questions(rows), strict=True):
        asked = tokenizer(tutorial_question(**row.columns), **settings).input_ids
        answer = [*tokenizer(row.output, **settings).input_ids, tokenizer.eos_token_id]
        assert question == asked
        assert encoded.input_ids == [*asked, *answer][:128]
        assert encoded.labels == [*(-100 for _ in asked), *answer][:128]


@pytest.mark.parametrize("name", FILES)
def test_public_rows(shipped, name):
    if not (SHARED / name).is_file():
        pytest.skip("the public rows are not beside this clone")
    rows = json.loads((SHARED / name).read_text("utf-8"))
    assert len(rows) > 900
    assert_tutorial([Row.asked(row["instruction"], row["input"], row["output"]) for row in rows], shipped)


@pytest.mark.parametrize("name", ["polite", "steps"])
def test_shipped_rows(shipped, name):
    splits = load_splits(f"builtin:{name}", seed=1)
    rows = [*splits.train_rows, *splits.eval_rows, *splits.test_rows]
    assert len(rows) > 2_000
    assert_tutorial(rows, shipped)
