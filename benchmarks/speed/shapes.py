"""Checkpoints to measure on: real shapes with random weights (speed does not depend on their values) and a tokenizer.

usage: python benchmarks/speed/shapes.py --shape bloom-389m-zh [--precision fp32 bf16] [--data PATH] [--cache DIR]

The other benchmarks make what they need themselves; this command only does it ahead of time, or shows a shape's size.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from rows import choose_rows
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from softprompt.data.row import Row
from softprompt.system.process import silence_libraries
from softprompt.tokens.template import TUTORIAL
from softprompt.tokens.turns import pieces_of

DEFAULT_CACHE = Path(tempfile.gettempdir()) / "softprompt-benchmarks"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
BLOOM_PIECES = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # BLOOM's pre-tokenizer
# On two thousand Alpaca rows this gives about the characters per token of BLOOM itself (1.8 Chinese, 4.5 English);
# a vocabulary of 42,437 trained on so little would hold whole half-sentences.
TOKENIZER_SIZE = 16_000


def bloom(hidden: int, layers: int, heads: int, vocabulary: int) -> BloomConfig:
    """A BLOOM config."""
    return BloomConfig(vocab_size=vocabulary, hidden_size=hidden, n_layer=layers, n_head=heads, **SPECIAL_IDS)


def llama(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> LlamaConfig:
    """A Llama config with tied embeddings."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


SHAPES = {
    "bloom-389m-zh": bloom(1024, 24, 16, 42_437),
    "bloom-560m": bloom(1024, 24, 16, 250_880),
    "bloom-1b4-zh": bloom(2048, 24, 16, 46_145),
    "llama-135m": llama(576, 30, 9, 3, 1536, 49_152),  # SmolLM2-135M
    "llama-360m": llama(960, 32, 15, 5, 2560, 49_152),  # SmolLM2-360M
    "tiny": bloom(64, 2, 4, 4_096),
    "tiny-llama": llama(64, 2, 4, 2, 128, 4_096),
}


def make_checkpoint(name: str, config: PreTrainedConfig, precision: str, rows: Iterable[Row], cache: Path) -> Path:
    """Folder `cache/NAME-PRECISION` with random weights stored in `precision`, and a tokenizer of the rows' text.

    Weights that are there are used again (equal for both precisions, but for rounding); the tokenizer is made anew.
    """
    folder = cache / f"{name}-{precision}"
    if not (folder / "config.json").exists():
        _save_weights(config, precision, folder)
    make_tokenizer(rows, config.vocab_size).save_pretrained(folder)
    return folder


def make_tokenizer(rows: Iterable[Row], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BLOOM's pieces, special ids and left padding, trained on rows; `vocabulary` ids at most."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BLOOM_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(SPECIAL_TOKENS.values())
    size = min(TOKENIZER_SIZE, vocabulary)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [piece.text for row in rows for piece in pieces_of(row, TUTORIAL)]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **SPECIAL_TOKENS)


def _save_weights(config: PreTrainedConfig, precision: str, folder: Path) -> None:
    """Draw the weights in fp32, store them in `precision`; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(DTYPES[precision]).save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--data", help="rows to train the tokenizer on, as for train.py (default: generated rows)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    silence_libraries()
    _, rows = choose_rows(options.data, 1)
    for precision in options.precision:
        folder = make_checkpoint(options.shape, SHAPES[options.shape], precision, rows, options.cache)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
