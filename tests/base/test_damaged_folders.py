"""Whatever is damaged in a model folder ends in one line that names the folder, soon, and without what it claims."""

import json
import os
import shutil
import struct
import time

import pytest
import torch
from helpers.models import HIDDEN_SIZE, VOCAB_SIZE, make_model, make_tokenizer
from safetensors.torch import load_file, save_file

from softprompt import UserError
from softprompt.base.fingerprint import Likeness, compare_fingerprints, parse_sketch
from softprompt.base.loading import load_base
from softprompt.system.process import quiet_libraries

CPU = torch.device("cpu")
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 912384\n"
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = 10**400
SECONDS = 20  # far more than any of these takes, and far less than what the worst of them used to take


def edit(folder, file, **changes):
    path = folder / file
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value != "DELETE"}))


def config(**changes):
    return lambda folder: edit(folder, "config.json", **changes)


def text(file, content):
    def damage(folder):
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def nested(file, *path, value):
    """Replace what stands at `path` in a JSON file."""

    def damage(folder):
        content = json.loads((folder / file).read_text("utf-8"))
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return damage


def header(change):
    """Change the header of the weights, as parsed, and keep the tensors' bytes."""

    def damage(folder):
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        content = json.loads(raw[8 : 8 + length])
        content = change(content) or content
        new = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return damage


def entry(**changes):
    def change(content):
        content["transformer.word_embeddings.weight"] |= changes

    return header(change)


def tensors(change):
    def damage(folder):
        stored = load_file(folder / "model.safetensors")
        stored = {name: tensor.contiguous() for name, tensor in change(stored).items()}
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def pickled(content):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        if isinstance(content, bytes | str):
            text("pytorch_model.bin", content)(folder)
        else:
            torch.save(content, folder / "pytorch_model.bin")

    return damage


def index(content):
    def damage(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        text("model.safetensors.index.json", content)(folder)

    return damage


def special(file, make):
    def damage(folder):
        (folder / file).unlink()
        make(folder / file)

    return damage


def loop(path):
    path.symlink_to(path.name)


def dangling(path):
    path.symlink_to("gone")


QUANTISED = {
    "bnb": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "unknown": {"quant_method": "mine"},
    "no method": {"bits": 4},
    "a number": {"quant_method": 4},
    "a list": [4],
}
WORD = "transformer.word_embeddings.weight"

# damage -> words of the line
REFUSED = {
    "config empty": (text("config.json", ""), "config.json is empty"),
    "config cut": (text("config.json", '{"model_type": "blo'), "config.json is not JSON"),
    "config list": (text("config.json", "[]"), "not a JSON object"),
    "config number": (text("config.json", "7"), "not a JSON object"),
    "config utf16": (text("config.json", '{"model_type": "bloom"}'.encode("utf-16")), "not JSON"),
    "config latin1": (text("config.json", b'{"model_type": "bl\xe9"}'), "not JSON"),
    "config deep": (text("config.json", DEEP), "nested too deeply"),
    "config long number": (text("config.json", '{"n_layer": ' + "1" * 5000 + "}"), "not JSON"),
    "config LFS": (text("config.json", LFS), "git lfs pull"),
    "config binary": (text("config.json", bytes(range(256))), "config.json"),
    "config loop": (special("config.json", loop), "config.json"),
    "config dangling": (special("config.json", dangling), "config.json"),
    "config FIFO": (special("config.json", os.mkfifo), "no plain file"),
    "config folder": (special("config.json", os.mkdir), "no plain file"),
    "newer family": (config(model_type="bloom9"), "perhaps a newer one knows it"),
    "type a list": (config(model_type=["bloom"]), "unknown to transformers"),
    "type escape": (config(model_type="\x1b[31mred\x07"), r"\x1b[31mred\x07"),
    "architectures text": (config(architectures="BloomForCausalLM"), "config.json"),
    "architectures number": (config(architectures=5), "config.json"),
    "architectures dict": (config(architectures=[{"a": 1}]), "config.json"),
    "hidden text": (config(hidden_size="64"), "config.json"),
    "hidden null": (config(hidden_size=None), "config.json"),
    "hidden float": (config(hidden_size=32.5), "config.json"),
    "hidden list": (config(hidden_size=[32]), "config.json"),
    "hidden 0": (config(hidden_size=0), "config.json"),
    "hidden negative": (config(hidden_size=-32), "config.json"),
    "hidden 10^9": (config(hidden_size=10**9), "config.json"),
    "hidden 10^30": (config(hidden_size=10**30), "config.json"),
    "hidden 10^400": (config(hidden_size=HUGE), "config.json"),
    "layers 10^9": (config(n_layer=10**9), "n_layer is 1000000000"),
    "layers 90,000": (config(n_layer=90_000), "many more tensors"),
    "layers 10^400": (config(n_layer=HUGE), "n_layer"),
    "layers text": (config(n_layer="2"), "config.json"),
    "layers negative": (config(n_layer=-10**9), "n_layer"),
    "layers -1": (config(num_hidden_layers=-1), "-1 layers"),
    "layers 0": (config(n_layer=0), "0 layers"),
    "an old key": (config(rope_scaling=7), "config.json"),
    "layers 3": (config(n_layer=3), "lack"),
    "labels 10^9": (config(num_labels=10**9), "num_labels"),
    "heads 0": (config(n_head=0), "config.json"),
    "heads 7": (config(n_head=7), "config.json"),
    "heads 10^9": (config(n_head=10**9), "n_head"),
    "vocabulary 10^9": (config(vocab_size=10**9), f"{WORD} is [{VOCAB_SIZE}, {HIDDEN_SIZE}]"),
    "vocabulary text": (config(vocab_size="many"), "config.json"),
    "vocabulary 0": (config(vocab_size=0), "config.json"),
    "pad beyond": (config(pad_token_id=VOCAB_SIZE), f"pad_token_id {VOCAB_SIZE}"),
    "pad far beyond": (config(pad_token_id=10**12), "pad_token_id"),
    "pad negative": (config(pad_token_id=-(10**6)), "pad_token_id"),
    "pad text": (config(pad_token_id="<pad>"), "config.json"),
    "epsilon text": (config(layer_norm_epsilon="small"), "config.json"),
    "dropout beyond": (config(hidden_dropout=10**30), "hidden_dropout is 1000"),
    "dropout negative": (config(attention_dropout=-1), "attention_dropout is -1"),
    **{
        f"{key} {type(value).__name__}": (config(**{key: value}), f"{key} is")
        for key in ("max_position_embeddings", "n_positions", "seq_length", "sliding_window", "attention_chunk_size")
        for value in ({}, "x" * 500, 1e308, -1, True, [4])
    },
    "window nested": (config(text_config={"sliding_window": "wide"}), "sliding_window is 'wide'"),
    "kinds of layers": (config(layer_types=["none"] * 2), "config.json"),
    "kinds of layers a text": (config(layer_types="full_attention"), "config.json"),
    "an encoder too": (config(is_encoder_decoder=True), "an encoder and a decoder"),
    "dtype unknown": (config(dtype="float7"), "config.json"),
    **{f"quantised {name}": (config(quantization_config=each), "copy") for name, each in QUANTISED.items()},
    "own code": (config(model_type="ownlm", auto_map={"AutoConfig": "own.C"}), "never runs"),
    "weights empty": (text("model.safetensors", ""), "model.safetensors is empty"),
    "weights LFS": (text("model.safetensors", LFS), "git lfs pull"),
    "weights HTML": (text("model.safetensors", "<!DOCTYPE html><html>not found</html>"), "not a safetensors file"),
    "weights FIFO": (special("model.safetensors", os.mkfifo), "no plain file"),
    "weights folder": (special("model.safetensors", os.mkdir), "no plain file"),
    "weights loop": (special("model.safetensors", loop), "no weights"),
    "weights header huge": (text("model.safetensors", struct.pack("<Q", 2**63) + b"{}"), "not a safetensors file"),
    "weights header list": (header(lambda _: [1]), "no JSON object"),
    "weights header deep": (header(lambda _: DEEP.encode()), "nested too deeply"),
    "weights header binary": (header(lambda _: b"\xff\xfe\x00"), "not a safetensors file"),
    "weights nothing": (text("model.safetensors", struct.pack("<Q", 2) + b"{}"), "holds no tensor"),
    "entry number": (header(lambda content: content | {WORD: 5}), WORD),
    "entry shape text": (entry(shape="wide"), WORD),
    "entry shape negative": (entry(shape=[-VOCAB_SIZE, -HIDDEN_SIZE]), WORD),
    "entry shape huge": (entry(shape=[2**62, 2**62]), WORD),
    "entry shape float": (entry(shape=[260.0, 32.0]), WORD),
    "entry offsets reversed": (entry(data_offsets=[100, 0]), WORD),
    "entry offsets far": (entry(data_offsets=[2**62, 2**62 + VOCAB_SIZE * HIDDEN_SIZE * 4]), "cut short"),
    "entry offsets three": (entry(data_offsets=[0, 1, 2]), WORD),
    "entry dtype unknown": (entry(dtype="F7"), "weights cannot be loaded"),
    "entry dtype number": (entry(dtype=7), WORD),
    "entry dtype whole": (entry(dtype="I32"), "whole numbers (I32)"),
    "tensor missing": (tensors(lambda t: {n: v for n, v in t.items() if n != WORD}), "lack"),
    "tensor narrower": (tensors(lambda t: t | {WORD: t[WORD][:, :-1]}), f"is [{VOCAB_SIZE}, {HIDDEN_SIZE - 1}]"),
    "tensor flat": (tensors(lambda t: t | {WORD: t[WORD].flatten()}), WORD),
    "tensors whole": (tensors(lambda t: {n: v.long() for n, v in t.items()}), "whole numbers (I64)"),
    "tensors bool": (tensors(lambda t: {n: v > 0 for n, v in t.items()}), "whole numbers (BOOL)"),
    "tensors complex": (tensors(lambda t: t | {WORD: t[WORD].to(torch.complex64)}), "complex numbers"),
    "pickle complex": (pickled({WORD: torch.ones(2, dtype=torch.complex64)}), "complex numbers"),
    "an adapter": (text("adapter_config.json", "{}"), "merge it into its base"),
    "an adapter of others": (
        text("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "someone/base", "a": 1}'),
        "merge it into its base",
    ),
    "tensors renamed": (tensors(lambda t: {f"other.{n}": v for n, v in t.items()}), "lack"),
    "pickle empty": (pickled(b""), "pytorch_model.bin is empty"),
    "pickle text": (pickled("a text"), "cannot be loaded"),
    "pickle LFS": (pickled(LFS), "git lfs pull"),
    "pickle list": (pickled([torch.ones(2)]), "not a checkpoint"),
    "pickle numbers": (pickled({1: torch.ones(2)}), "not a checkpoint"),
    "pickle values": (pickled({"a": "b"}), "is not a tensor"),
    "pickle one": (pickled(torch.ones(2)), "not a checkpoint"),
    "pickle others": (pickled({"a": torch.ones(2)}), "lack"),
    "pickle wide view": (pickled({WORD: torch.ones(1).expand(10**7, 100)}), "larger than the file"),
    "index empty": (index(""), "index.json is empty"),
    "index list": (index("[]"), "not a JSON object"),
    "index without": (index("{}"), "not an index"),
    "index numbers": (index('{"weight_map": {"a": 1}}'), "not an index"),
    "index text": (index('{"weight_map": "all"}'), "not an index"),
    "index nothing": (index('{"weight_map": {}}'), "not an index"),
    "index missing": (index('{"weight_map": {"a": "gone.safetensors"}}'), "gone.safetensors"),
    "index outside": (index('{"weight_map": {"a": "../../secret.safetensors"}}'), "not the name of a file"),
    "index absolute": (index('{"weight_map": {"a": "/etc/passwd"}}'), "not the name of a file"),
    "index LFS": (index(LFS), "git lfs pull"),
    "tokenizer empty": (text("tokenizer.json", ""), "tokenizer.json is empty"),
    "tokenizer cut": (text("tokenizer.json", '{"version": "1.0"'), "tokenizer"),
    "tokenizer list": (text("tokenizer.json", "[]"), "tokenizer"),
    "tokenizer LFS": (text("tokenizer.json", LFS), "git lfs pull"),
    "tokenizer deep": (text("tokenizer.json", DEEP), "tokenizer"),
    "tokenizer FIFO": (special("tokenizer.json", os.mkfifo), "no plain file"),
    "merges newer": (nested("tokenizer.json", "model", "merges", value=[["a"]]), "tokenizer"),
    "merges unknown": (nested("tokenizer.json", "model", "merges", value=[["qq", "zz"]]), "tokenizer"),
    "model newer": (nested("tokenizer.json", "model", value={"type": "Next", "vocab": {}}), "tokenizer"),
    "model null": (nested("tokenizer.json", "model", value=None), "tokenizer"),
    "vocabulary list": (nested("tokenizer.json", "model", "vocab", value=[1, 2]), "tokenizer"),
    "vocabulary negative": (nested("tokenizer.json", "model", "vocab", "a", value=-4), "tokenizer"),
    "vocabulary texts": (nested("tokenizer.json", "model", "vocab", "a", value="4"), "tokenizer"),
    "decoder newer": (nested("tokenizer.json", "decoder", value={"type": "Next"}), "tokenizer"),
    "splitting newer": (nested("tokenizer.json", "pre_tokenizer", value={"type": "Next"}), "tokenizer"),
    "added text": (nested("tokenizer.json", "added_tokens", value="none"), "tokenizer"),
    "settings cut": (text("tokenizer_config.json", "{"), "tokenizer_config.json"),
    "settings list": (text("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "settings LFS": (text("tokenizer_config.json", LFS), "git lfs pull"),
    "special tokens cut": (text("special_tokens_map.json", "{"), "tokenizer"),
    "eos null": (nested("tokenizer_config.json", "eos_token", value=None), "eos"),
    "eos number": (nested("tokenizer_config.json", "eos_token", value=2), "eos"),
    "template number": (nested("tokenizer_config.json", "chat_template", value=0.5), "chat template is no text"),
    "template list": (nested("tokenizer_config.json", "chat_template", value=[1, 2]), "tokenizer"),
    "template named number": (
        nested("tokenizer_config.json", "chat_template", value=[{"name": "default", "template": 5}]),
        "chat template is no text",
    ),
    "eos list": (nested("tokenizer_config.json", "eos_token", value=["</s>"]), "tokenizer"),
}  # fmt: skip
# damage that concerns nothing of ours
HARMLESS = {
    "generation empty": text("generation_config.json", ""),
    "generation list": text("generation_config.json", "[]"),
    "generation deep": text("generation_config.json", DEEP),
    "generation types": text("generation_config.json", '{"temperature": "hot", "top_k": [], "max_length": "x"}'),
    "generation own": text("generation_config.json", '{"stop_strings": ["a"], "return_dict_in_generate": true}'),
    "module": text("modeling_own.py", "raise SystemExit"),
    "outputs": config(output_hidden_states="float16", output_attentions=[1]),
    "a tuple": config(return_dict=False),
    "a text": config(return_dict=""),
    "kernel": config(attn_implementation="someone/kernel"),
    "unknown keys": config(a={"b": [None, DEEP]}, ten=10**400),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders") / "whole"
    make_model("bloom").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_the_folder_is_good_as_it_is(copy):
    assert load_base(str(copy), device=CPU, precision="fp32").fingerprint.sha256


@pytest.mark.parametrize("damage", REFUSED)
def test_damage_is_one_line(copy, damage, capfd):
    change, words = REFUSED[damage]
    change(copy)
    start = time.monotonic()
    with pytest.raises(UserError) as caught, quiet_libraries():
        load_base(str(copy), device=CPU, precision="auto")
    message = str(caught.value)
    assert str(copy) in message and words in message
    assert message.isprintable() and len(message) < 800
    assert time.monotonic() - start < SECONDS
    assert capfd.readouterr() == ("", "")  # a library's own complaint would be a second line


@pytest.mark.parametrize("damage", HARMLESS)
def test_damage_to_what_is_not_used_does_nothing(copy, damage):
    HARMLESS[damage](copy)
    base = load_base(str(copy), device=CPU, precision="fp32")
    assert base.fingerprint.sha256 and base.model.generation_config.stop_strings is None
    assert base.model.config.output_hidden_states is False
    ids = torch.tensor([[4, 5, 6]])
    assert (
        base.model(ids).logits.shape == (1, 3, VOCAB_SIZE) and base.model.generate(ids, max_new_tokens=2).shape[1] > 3
    )


def test_values_beyond_fp32_have_a_fingerprint(copy):
    tensors(lambda t: t | {WORD: torch.full_like(t[WORD], 3e38)})(copy)
    base = load_base(str(copy), device=CPU, precision="fp32")
    norm = parse_sketch(base.fingerprint.sketch)["word_embeddings.weight"][2][0]
    assert norm == torch.inf  # 3e38 times the root of 8,320 is more than fp32 holds
    assert compare_fingerprints(base.fingerprint, base.fingerprint) is Likeness.SAME


def test_a_sharded_folder_is_compared_too(tmp_path):
    folder = tmp_path / "sharded"
    make_model("llama").save_pretrained(folder, max_shard_size="20KB")
    make_tokenizer().save_pretrained(folder)
    assert load_base(str(folder), device=CPU, precision="fp32").fingerprint.sha256
    edit(folder, "config.json", intermediate_size=10**9)
    with pytest.raises(UserError, match=r"is \[64, 32\], its config.json says \[1000000000, 32\]"):
        load_base(str(folder), device=CPU, precision="fp32")


def test_every_prefix_of_the_weights_is_refused(copy):
    path = copy / "model.safetensors"
    raw = path.read_bytes()
    for length in [*range(0, 40, 3), *range(100, len(raw), len(raw) // 12), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_base(str(copy), device=CPU, precision="fp32")
