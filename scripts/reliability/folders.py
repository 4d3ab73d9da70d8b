"""Damaged model folders: small whole ones, and the kinds of damage that `fuzz.py --folders` does to them."""

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import RAN, ROOT

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 912384\n"
HTML = "<!DOCTYPE html><html>not found</html>"
DEEP = "[" * 50_000 + "]" * 50_000
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**9, 10**400, 0.5, -2.5, 1e308, "", "0", "4", "nan", "auto",
    "\0", "\x1b[2J", "a\u202eb", "x" * 5000, [], [1], [None], [[]], ["a"], {}, {"a": 1}, {"a": {"b": []}}, [0] * 1000,
    "/etc/passwd", "../..", "someone/model", "https://example.com/x", "float16", "bfloat16", "float64", "int8",
]  # fmt: skip
CODE = f"import pathlib\npathlib.Path({RAN!r}).write_text(__file__)\nclass C:\n    pass\n"
# keys of configs that transformers acts on
CONFIG_KEYS = (
    "model_type", "architectures", "vocab_size", "hidden_size", "n_layer", "num_hidden_layers", "n_head", "head_dim",
    "num_attention_heads", "num_key_value_heads", "intermediate_size", "pad_token_id", "eos_token_id", "bos_token_id",
    "tie_word_embeddings", "dtype", "torch_dtype", "is_encoder_decoder", "is_decoder", "use_cache", "text_config",
    "rope_scaling", "rope_theta", "rope_parameters", "max_position_embeddings", "sliding_window", "layer_types",
    "hidden_act", "rms_norm_eps", "layer_norm_epsilon", "attention_bias", "attention_dropout", "num_labels",
    "id2label", "auto_map", "_attn_implementation", "attn_implementation", "_name_or_path", "quantization_config",
    "base_model_tp_plan", "transformers_version", "trust_remote_code", "add_cross_attention", "chunk_size_feed_forward",
    "pruned_heads", "output_attentions", "output_hidden_states", "return_dict", "torchscript", "pretraining_tp",
    "slow_but_exact", "initializer_range", "experts_implementation", "num_experts", "compression_config", "adapter",
)  # fmt: skip
TOKENIZER_KEYS = (
    "tokenizer_class", "auto_map", "chat_template", "eos_token", "bos_token", "pad_token", "unk_token", "vocab_file",
    "tokenizer_file", "model_max_length", "added_tokens_decoder", "extra_special_tokens", "padding_side",
    "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "from_slow",
    "special_tokens_map_file", "name_or_path", "split_special_tokens", "processor_class", "fix_mistral_regex",
)  # fmt: skip
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
    "{{ raise_exception('no') }}",
    "{{ messages[0]['content'] }}{{ eos_token }}",
    "{% if %}",
    "{{ messages.nothing.more }}",
    "\x1b[2J{{ messages }}",
)


def whole_folders(place: Path) -> list[Path]:
    """Two small folders, of BLOOM and of Llama, the second in shards, with the shipped base's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "softprompt" / "assets" / "bloom-small")
    known = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "hidden_size": 16}
    bloom = BloomForCausalLM(BloomConfig(**known, n_layer=2, n_head=2))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llama = LlamaForCausalLM(LlamaConfig(**known, **heads, num_hidden_layers=2, intermediate_size=32))
    for name, model, most in (("bloom", bloom, "1GB"), ("llama", llama, "100KB")):
        model.save_pretrained(place / name, max_shard_size=most)
        tokenizer.save_pretrained(place / name)
    return [place / "bloom", place / "llama"]


def damage(folder: Path, source: random.Random) -> str:
    """Do one to three kinds of damage to a folder, and return their names."""
    names = []
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        change = source.choice(KINDS)
        try:
            change(folder, source)
        except Exception:  # also of safetensors and torch
            continue  # an earlier kind left nothing that this one could change
        names.append(change.__name__)
    return " ".join(names)


def a_file(folder: Path, source: random.Random, suffix: str = "") -> Path:
    """A plain file, since to read what an earlier kind put there could last for ever."""
    files = [path for path in folder.iterdir() if path.name.endswith(suffix) and path.is_file()]
    return source.choice(sorted(path for path in files if not path.is_symlink()))


def plain(path: Path) -> Path:
    """Return `path`, where a plain file is or nothing; to open a pipe would wait for ever."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise OSError(f"{path} is no plain file")
    return path


def some_bytes(folder: Path, source: random.Random) -> None:
    path = a_file(folder, source)
    raw = bytearray(path.read_bytes())
    begin = 0 if source.random() < 0.5 else source.randrange(len(raw))
    for _ in range(source.randint(1, 8)):
        raw[min(begin + source.randrange(3000), len(raw) - 1)] = source.randrange(256)
    path.write_bytes(raw)


def length(folder: Path, source: random.Random) -> None:
    path = a_file(folder, source)
    raw = path.read_bytes()
    path.write_bytes(raw[: source.randrange(len(raw))] if source.random() < 0.7 else raw + source.randbytes(40))


def content(folder: Path, source: random.Random) -> None:
    path = a_file(folder, source)
    path.write_bytes(source.choice([b"", LFS.encode(), HTML.encode(), DEEP.encode(), b"[]", b"{}", b"7", b"\0" * 99]))


def what_it_is(folder: Path, source: random.Random) -> None:
    """Put a link, a pipe, a folder or nothing in the place of a file."""
    path = a_file(folder, source)
    path.unlink()
    kinds: list[Callable[[], object]] = [
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("gone"),
        lambda: path.symlink_to("/etc/passwd"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(".."),
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: None,
    ]
    source.choice(kinds)()


def json_value(folder: Path, source: random.Random) -> None:
    path = a_file(folder, source, ".json")
    value = json.loads(path.read_text("utf-8"))
    for _ in range(source.randint(1, 3)):
        place, key = some_place(value, source)
        kind = source.randrange(4)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[source.choice(["a", key + "s", ""])] = place.pop(key)
        else:
            place[key] = source.choice(VALUES)
    path.write_text(json.dumps(value))


def some_place(value: Any, source: random.Random) -> tuple[Any, Any]:
    """A container within a JSON value, and a key of it."""
    while True:
        key = source.choice(list(value)) if isinstance(value, dict) else source.randrange(len(value))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or source.random() < 0.4:
            return value, key
        value = inner


def claims(folder: Path, source: random.Random) -> None:
    """Let a config say what transformers acts on."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = plain(folder / "config.json")
    value = json.loads(path.read_text("utf-8"))
    for _ in range(source.randint(1, 3)):
        key = source.choice(CONFIG_KEYS)
        value[key] = source.choice(VALUES)
        if key == "model_type" and source.random() < 0.8:
            value[key] = source.choice(sorted(CONFIG_MAPPING_NAMES))
        if key == "architectures" and source.random() < 0.8:
            value[key] = [source.choice(sorted(map(str, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())))]
        if key == "quantization_config" and source.random() < 0.8:
            methods = ["bitsandbytes", "gptq", "awq", "fp8", "hqq", "quanto", "mxfp4", "torchao", "compressed-tensors"]
            value[key] = {"quant_method": source.choice(methods), "bits": source.choice(VALUES)}
        if key == "auto_map" and source.random() < 0.8:
            (folder / "own.py").write_text(CODE)
            value[key] = {"AutoConfig": "own.C", "AutoModelForCausalLM": source.choice(["own.C", "a/b--own.C"])}
    path.write_text(json.dumps(value))


def tokenizer_claims(folder: Path, source: random.Random) -> None:
    path = plain(folder / "tokenizer_config.json")
    value = json.loads(path.read_text("utf-8"))
    for _ in range(source.randint(1, 3)):
        key = source.choice(TOKENIZER_KEYS)
        value[key] = source.choice(VALUES)
        if key == "chat_template" and source.random() < 0.8:
            value[key] = source.choice(TEMPLATES)
        if key == "tokenizer_class" and source.random() < 0.5:
            value[key] = source.choice(["LlamaTokenizer", "GPT2Tokenizer", "T5Tokenizer", "BertTokenizer", "Own"])
        if key == "auto_map" and source.random() < 0.8:
            (folder / "own.py").write_text(CODE)
            value[key] = {"AutoTokenizer": ["own.C", "own.C"]}
        if key == "added_tokens_decoder" and source.random() < 0.8:
            token = {"content": source.choice(["a", "</s>", "", "x" * 500]), "special": True}
            value[key] = {str(source.choice([0, 5, 2200, 10**6, -1, "a"])): token}
    path.write_text(json.dumps(value))


def template_file(folder: Path, source: random.Random) -> None:
    plain(folder / "chat_template.jinja").write_text(source.choice(TEMPLATES))


def more_files(folder: Path, source: random.Random) -> None:
    """Add a file that transformers looks for beside the usual ones."""
    name = source.choice([
        "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "special_tokens_map.json",
        "added_tokens.json", "processor_config.json", "preprocessor_config.json", "vocab.json", "merges.txt",
        "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.model", "custom_generate/generate.py",
        "configuration_own.py", "modeling_own.py", "torch.py", "transformers.py", "quantize_config.json",
        "kernels.lock", "params.json", "tekken.json",
    ])  # fmt: skip
    path = plain(folder / name)
    path.parent.mkdir(exist_ok=True)
    value = {"base_model_name_or_path": "someone/model", "peft_type": "LORA", "auto_map": {"AutoConfig": "own.C"}}
    texts = [json.dumps(value), json.dumps(source.choice(VALUES)), LFS, DEEP, ""]
    path.write_text(CODE if name.endswith(".py") else source.choice(texts))


def weights_header(folder: Path, source: random.Random) -> None:
    """Change an entry of a header of weights, with the tensors' bytes as they are."""
    path = a_file(folder, source, ".safetensors")
    header, data = parts_of(path.read_bytes())
    name = source.choice(sorted(header))
    kind = source.choice(["dtype", "shape", "data_offsets", "whole", "gone", "renamed", "exchanged"])
    others = [each for each in header if each not in (name, "__metadata__")]
    if kind == "whole":
        header[name] = source.choice(VALUES)
    elif kind == "gone":
        del header[name]
    elif kind == "renamed":
        header[source.choice(["a", name + ".a", "lm_head.weight", "transformer." + name])] = header.pop(name)
    elif kind == "exchanged":
        other = source.choice(others)
        header[name], header[other] = header[other], header[name]
    elif kind == "dtype":
        header[name]["dtype"] = source.choice([*VALUES, "F16", "BF16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3"])
    elif kind == "shape":
        shape = header[name]["shape"]
        header[name]["shape"] = source.choice([shape[::-1], [*shape, 1], shape[:-1], [2**62, 2**62], [-1], [0]])
    else:
        begin, end = header[name]["data_offsets"]
        offsets = [[end, begin], [begin, end + 4], [0, 2**62], [begin], [0, end - begin], [begin - 4, end - 4]]
        header[name]["data_offsets"] = source.choice(offsets)
    path.write_bytes(joined(header, data))


def weights_values(folder: Path, source: random.Random) -> None:
    """Change tensors as such: their numbers, dtype or shape, in a file that is whole."""
    import torch
    from safetensors.torch import load_file, save_file

    path = a_file(folder, source, ".safetensors")
    tensors = load_file(path)
    for name in source.sample(sorted(tensors), source.randint(1, min(3, len(tensors)))):
        tensor = tensors[name]
        number = source.choice([float("nan"), float("inf"), 0.0, 3e38, 1e10, -1e-40])
        changes: list[Callable[[], torch.Tensor]] = [
            lambda tensor=tensor, number=number: torch.full_like(tensor, number),
            lambda tensor=tensor: tensor.to(source.choice([torch.float16, torch.bfloat16, torch.float64])),
            lambda tensor=tensor: tensor.to(source.choice([torch.int64, torch.int8, torch.bool, torch.uint8])),
            lambda tensor=tensor: tensor[..., :-1],
            lambda tensor=tensor: tensor.flatten(),
            lambda tensor=tensor: tensor.unsqueeze(0),
            lambda tensor=tensor: tensor.t() if tensor.dim() == 2 else tensor[:0],
            lambda tensor=tensor: tensor * 1e6,
        ]
        tensors[name] = source.choice(changes)().contiguous()
        if source.random() < 0.2:
            del tensors[name]
    save_file(tensors, path, metadata={"format": source.choice(["pt", "pt", "pt", "tf", "mlx", "x"])})


def pickled(folder: Path, source: random.Random) -> None:
    """Put a pickle in the place of the weights."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[Any, Any] = {}
    for path in sorted(folder.glob("*.safetensors*")):
        if path.suffix == ".safetensors" and not path.is_symlink():
            tensors |= load_file(path)
        path.unlink()
    target = plain(folder / "pytorch_model.bin")
    kind = source.randrange(7)
    if kind == 0:
        target.write_bytes(pickle.dumps(Harmful(), protocol=2))
        return
    if kind == 1:
        tensors["more"] = Harmful()
    elif kind == 2:
        tensors[source.choice([1, None, "more"])] = source.choice([*VALUES, torch.ones(1).expand(10**7, 100)])
    elif kind == 3:
        tensors.pop(source.choice(sorted(tensors)))
    elif kind == 4:
        name = source.choice(sorted(tensors))
        tensors[name] = source.choice([tensors[name].to_sparse(), tensors[name].to(torch.complex64), tensors[name][:1]])
    torch.save(source.choice([tensors, tensors, tensors, [tensors], torch.nn.Linear(1, 1)]), target)
    if kind == 5:
        raw = bytearray(target.read_bytes())
        for _ in range(source.randint(1, 8)):
            raw[source.randrange(len(raw))] = source.randrange(256)
        target.write_bytes(raw)


class Harmful:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, (RAN,))


def parts_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


KINDS: list[Callable[[Path, random.Random], None]] = [
    some_bytes, some_bytes, length, content, what_it_is, json_value, json_value, json_value, claims, claims, claims,
    tokenizer_claims, tokenizer_claims, template_file, more_files, weights_header, weights_values, pickled,
]  # fmt: skip


def copied(whole: Path, target: Path) -> Path:
    return Path(shutil.copytree(whole, target))
