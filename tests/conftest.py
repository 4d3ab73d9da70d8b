"""Fakes that every test shares: random small models of three families, a byte-level tokenizer, a few rows."""

import json
import os
from pathlib import Path

# no test may reach for the network, and none needs more than one thread
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 260  # four special tokens and every byte
HIDDEN_SIZE = 32
FAMILIES = ("bloom", "llama", "gpt2")
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
ROWS = [
    {"instruction": f"Say {word}", "input": "twice" if place % 3 == 0 else "", "output": f"{word} {word}"}
    for place, word in enumerate(["red", "green", "blue", "one", "two", "three", "north", "south", "east", "west"])
]


def make_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of two layers; weights are large enough that prompts and positions matter."""
    sizes = {"vocab_size": VOCAB_SIZE, **SPECIAL}
    torch.manual_seed(0)
    if family == "bloom":
        model = BloomForCausalLM(BloomConfig(hidden_size=HIDDEN_SIZE, n_layer=2, n_head=4, **sizes))
    elif family == "llama":
        shape = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, **sizes))
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=HIDDEN_SIZE, n_layer=2, n_head=4, n_positions=512, **sizes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, behind the four special tokens of BLOOM."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)


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
