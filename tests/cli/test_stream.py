"""What a terminal shows of an answer while it grows is in the end the text of the whole answer."""

import random
import unicodedata

import pytest
import torch
from helpers.models import make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softprompt.analysis.comparison import Side, encode_eval_set
from softprompt.answering.batch import text_of
from softprompt.cli.terminal import AnswerStream
from softprompt.config.commands import EvaluateConfig
from softprompt.data.row import Row
from softprompt.system.foreign import visible
from softprompt.tokens.encoding import Encoder, encode_row, encode_text

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
PIECES = [
    "▁",
    "▁▁",
    "▁▁▁▁",
    "▁if",
    "▁x",
    "▁return",
    "x",
    "if",
    ":",
    "▁你",
    "好",
    ".",
    "▁.",
    "▁n",
    "'t",
    "▁do",
    "\n",
    "\t",
    "!",
]


def llama_like(clean=False):
    """SentencePiece as Llama has it: blanks are `▁`, bytes stand for other characters, a blank in front is dropped."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=clean, **SPECIAL)


def word_like():
    """WordPiece, which normalises to small letters and puts blanks between words."""
    tokens = ["<unk>", "<s>", "</s>", "paris", "is", "the", "##er", "new", "##s", ".", ",", "'", "s", "n", "t", "do"]
    tokenizer = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True, **SPECIAL)


TOKENIZERS = {
    "bytes": make_tokenizer,
    "llama": llama_like,
    "llama cleaned": lambda: llama_like(clean=True),
    "words": word_like,
}


def streamed(ids, tokenizer, capsys):
    """What is on the screen, as it grows: one text for each id, and the last."""
    stream, shown = AnswerStream(Encoder(tokenizer)), [""]
    stream.put(torch.tensor([[5, 6, 7]]))  # the question
    for each in ids:
        stream.put(torch.tensor([each]))
        shown.append(shown[-1] + capsys.readouterr().out)
    stream.end()
    return [*shown, shown[-1] + capsys.readouterr().out]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_answers(name, capsys):
    tokenizer, draw = TOKENIZERS[name](), random.Random(0)
    # single bytes of a Llama are no text: how a decoder writes some of them depends on those that follow
    first = len(tokenizer) - len(PIECES) if name.startswith("llama") else 3
    printable = [n for n in range(first, len(tokenizer)) if text_of([n], Encoder(tokenizer)).isprintable()]
    again = 0
    for _ in range(200):
        ids = [draw.choice(printable) for _ in range(draw.randrange(30))]
        text = text_of(ids, Encoder(tokenizer))
        whole = "".join(c if unicodedata.category(c) != "Cc" or c in "\n\t" else visible(c) for c in text)
        *_, before, last = streamed(ids, tokenizer, capsys)
        # a decoder that takes something back is shown once more, as a whole
        assert last in (whole + "\n", f"{before}\n{whole}\n")
        again += last != whole + "\n"
    assert again <= (4 if name == "words" else 0)


def test_indented_lines_keep_their_blanks(capsys):
    tokenizer = llama_like()
    ids = tokenizer.convert_tokens_to_ids(["▁if", "▁x", ":", "\n", "▁▁▁▁", "return", "▁x", "\n", "▁▁▁▁", "x", "\n"])
    ids[5] = tokenizer.convert_tokens_to_ids("▁return")
    shown = streamed(ids, tokenizer, capsys)
    assert shown[-1] == text_of(ids, Encoder(tokenizer)) + "\n" == "if x:\n     return x\n    x\n\n"
    assert len(set(shown)) > 5  # and it did grow


@pytest.mark.parametrize("name", ["bytes", "llama"])
def test_no_half_characters(capsys, name):
    tokenizer = TOKENIZERS[name]()
    ids = encode_text("您好, été 🙂 end", tokenizer)
    if name == "llama":
        ids = [3 + byte for byte in "您好, été 🙂 end".encode()]
    shown = streamed(ids, tokenizer, capsys)
    assert shown[-1] == "您好, été 🙂 end\n"
    assert all("\ufffd" not in text and shown[-1].startswith(text) for text in shown)
    assert "您" in shown and "您好" in shown  # without a blank, characters appear as they come


def test_control_characters_are_shown(capsys):
    tokenizer = make_tokenizer()
    assert streamed(encode_text("a\x1b[31m\x07b\n\tc", tokenizer), tokenizer, capsys)[-1] == "a\\x1b[31m\\x07b\n\tc\n"


def test_a_reference_is_what_the_tokenizer_can_write():
    """`evaluate` compares with the text that `train --eval-generate` compares with."""
    row, encoder = Row.asked("New", "", "Paris is the newer."), Encoder(word_like())
    eval_set = encode_eval_set([row], [Side("no prompt", encoder)], EvaluateConfig(eval_generate=1), name="rows")
    encoded = encode_row(row, encoder, max_length=256)
    assert eval_set.references == [text_of(encoded.input_ids[-encoded.num_supervised :], encoder)]
    assert eval_set.references == ["paris is the newer."]
