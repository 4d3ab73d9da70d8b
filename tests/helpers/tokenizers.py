"""Small tokenizers of today's kinds, all with the same special tokens, so that every chat template goes with each."""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|bot|>", "[INST]", "[/INST]"]
PLAIN_ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # added tokens that are not special
NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
LINES = [
    "You are a helpful robot. What is the capital of France?",
    " The answer is Paris, and the other one is Rome.\n\nThen again: no.",
    "user\nsystem\nassistant\ntool\n the call of the name and the arguments",
    "Human: say it\n\nAssistant: it is the one.\n",
] * 9


def _trained(tokenizer, alphabet, size=420):
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _with_bytes(tokenizer):
    """The same sentencepiece-like BPE with a token for every byte, so that it can write any text."""
    model = _model_of(tokenizer)
    vocabulary, merges = dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return tokenizer


def _model_of(tokenizer):
    import json

    return json.loads(tokenizer.to_str())["model"]


def _bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet()))


def _metaspace(scheme):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _with_bytes(_trained(tokenizer, list("▁abcdefghijklmnopqrstuvwxyz")))


def _prepending():
    """As sentencepiece's oldest conversions: the normalizer writes the first blank."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_bytes(_trained(tokenizer, list("▁abcdefghijklmnopqrstuvwxyz")))


MAKERS = {
    "bytes": _bytes,
    "first": functools.partial(_metaspace, "first"),
    "always": functools.partial(_metaspace, "always"),
    "prepend": _prepending,
    "rstrip": _bytes,  # its special tokens swallow the blanks behind them
}
WITH_BOS = ("first", "always", "prepend")  # these put a bos in front of every text


@functools.cache
def _backend(kind):
    tokenizer = MAKERS[kind]()
    swallows = kind == "rstrip"
    tokenizer.add_special_tokens([AddedToken(text, rstrip=swallows, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN_ADDED])
    if kind in WITH_BOS:
        bos = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer.to_str()


def small_tokenizer(kind, template=None, **names):
    """A tokenizer of one of MAKERS' kinds; `names` are special tokens to be named otherwise, such as `eos_token`."""
    backend = Tokenizer.from_str(_backend(kind))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **(NAMES | names))
    tokenizer.chat_template = template
    return tokenizer
