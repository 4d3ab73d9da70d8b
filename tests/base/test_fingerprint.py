"""Which base is which: the hash of what is stored, and a sketch that knows a base in another precision."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.commands import snapshot
from helpers.models import FAMILIES, make_model, make_tokenizer
from safetensors.torch import load_file, save_file

from softprompt import UserError
from softprompt.base import fingerprint as fingerprints
from softprompt.base.checkpoint import weight_files
from softprompt.base.fingerprint import Fingerprint, Likeness, compare_fingerprints, fingerprint
from softprompt.base.loading import load_base
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import load_prompt, save_prompt
from softprompt.prompt.fit import REMARKS, check_same_base


def save(folder, model, **options):
    model.save_pretrained(folder, **options)
    return folder


def store(folder, tensors):
    """A checkpoint with exactly these tensors."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "base", make_model("bloom"))


@pytest.fixture
def tensors(folder):
    return load_file(folder / "model.safetensors")


def between(one, other):
    """How far two folders are the same, which must not depend on the side."""
    a, b = fingerprint(one), fingerprint(other)
    assert compare_fingerprints(a, b) is compare_fingerprints(b, a)
    return compare_fingerprints(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_weights_same_hash(family, tmp_path):
    one, other = (save(tmp_path / name, make_model(family)) for name in ("one", "other"))
    assert fingerprint(one) == fingerprint(other)
    assert between(one, other) is Likeness.SAME
    assert len(fingerprint(one).sha256) == 64


def test_shards_and_pickles_do_not_matter(folder, tensors, tmp_path):
    model = make_model("bloom")
    sharded = save(tmp_path / "sharded", model, max_shard_size="20KB")
    assert len(weight_files(sharded)) > 2
    assert fingerprint(sharded) == fingerprint(folder)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(tensors, pickled / "pytorch_model.bin")
    assert [file.name for file in weight_files(pickled)] == ["pytorch_model.bin"]
    assert fingerprint(pickled) == fingerprint(folder)


def test_safetensors_go_before_pickles(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions(family, dtype, tmp_path):
    full = save(tmp_path / "full", make_model(family))
    half = save(tmp_path / "half", make_model(family).to(dtype))
    assert fingerprint(full).sha256 != fingerprint(half).sha256
    assert between(full, half) is Likeness.ROUNDED
    widened = save(tmp_path / "widened", make_model(family).to(dtype).float())
    assert between(half, widened) is Likeness.SAME  # the same values, stored wider
    assert between(full, widened) is Likeness.ROUNDED


def test_precisions_on_two_ways(tmp_path):
    straight = save(tmp_path / "straight", make_model("bloom").bfloat16())
    detour = save(tmp_path / "detour", make_model("bloom").half().bfloat16())
    half = save(tmp_path / "half", make_model("bloom").half())
    assert between(straight, detour) is Likeness.ROUNDED
    assert between(straight, half) is Likeness.ROUNDED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_are_another_base(family, dtype, tmp_path):
    one = save(tmp_path / "one", make_model(family))
    model = make_model(family)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    assert between(one, save(tmp_path / "other", model.to(dtype))) is Likeness.OTHER


def test_any_one_changed_tensor_is_another_base(tensors, folder, tmp_path):
    changed = [name for name, tensor in tensors.items() if tensor.abs().max() > 0]
    assert len(changed) > 10
    for place, name in enumerate(changed):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            # 2 % is more than bf16's rounding of 0.4 %
            mixed = {key: (tensor * 1.02 if key == name else tensor).to(dtype) for key, tensor in tensors.items()}
            assert between(folder, store(tmp_path / f"{place}-{dtype}", mixed)) is Likeness.OTHER, name


def test_one_changed_entry_is_seen_in_fp32(tensors, folder, tmp_path):
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[77] += 0.1
    assert between(folder, store(tmp_path / "entry", tensors)) is Likeness.OTHER


def test_other_shapes_and_names_are_another_base(tensors, folder, tmp_path):
    name = "transformer.h.0.mlp.dense_h_to_4h.bias"
    flat = tensors | {name: tensors[name][:-1]}
    assert between(folder, store(tmp_path / "shape", flat)) is Likeness.OTHER
    fewer = {key: tensor for key, tensor in tensors.items() if key != name}
    assert between(folder, store(tmp_path / "fewer", fewer)) is Likeness.OTHER
    assert between(folder, save(tmp_path / "llama", make_model("llama"))) is Likeness.OTHER


def test_bloom_files_without_the_prefix(tensors, folder, tmp_path):
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert plain.keys() != tensors.keys()
    original = store(tmp_path / "plain", plain)
    assert between(folder, original) is Likeness.ROUNDED  # accepted, though the names make another hash
    half = store(tmp_path / "half", {name: tensor.bfloat16() for name, tensor in plain.items()})
    assert between(folder, half) is Likeness.ROUNDED


def test_a_stored_tied_head_does_not_matter(tensors, folder, tmp_path):
    head = {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}
    assert between(folder, store(tmp_path / "head", tensors | head)) is Likeness.ROUNDED


def test_a_quantised_base_is_compared_by_the_rest(tensors, folder, tmp_path):
    name = "transformer.h.0.mlp.dense_h_to_4h.weight"
    packed = tensors | {name: torch.ones(3, 3, dtype=torch.uint8), name + ".scales": torch.ones(2)}
    assert between(folder, store(tmp_path / "packed", packed)) is Likeness.QUANTISED
    packed["transformer.word_embeddings.weight"] = packed["transformer.word_embeddings.weight"] * 1.1
    assert between(folder, store(tmp_path / "other", packed)) is Likeness.OTHER


def test_every_likeness_by_the_fingerprints_alone(tensors, folder, tmp_path):
    """As a prompt file keeps them: without the checkpoint that they are of."""
    name = "transformer.h.0.mlp.dense_h_to_4h.weight"
    own, half = fingerprint(folder), {key: tensor.half() for key, tensor in tensors.items()}
    packed = tensors | {name: torch.ones(3, 3, dtype=torch.uint8)}
    others = {
        Likeness.SAME: Fingerprint(own.sha256, "{}"),  # an equal hash is enough
        Likeness.ROUNDED: fingerprint(store(tmp_path / "half", half)),
        Likeness.QUANTISED: fingerprint(store(tmp_path / "packed", packed)),
        Likeness.OTHER: fingerprint(store(tmp_path / "other", tensors | {name: 2 * tensors[name]})),
    }
    assert [*others] == [*Likeness]
    for likeness, other in others.items():
        kept = Fingerprint(other.sha256, other.sketch)
        assert compare_fingerprints(own, kept) is compare_fingerprints(kept, own) is likeness
    for sketch in ("{}", json.dumps({"another.tensor": ["F32", [1], "AAAAAAAAAAA="]})):
        assert compare_fingerprints(own, Fingerprint("", sketch)) is Likeness.OTHER
    assert REMARKS.keys() == set(Likeness) - {Likeness.OTHER}
    assert "quantised" in REMARKS[Likeness.QUANTISED]


@pytest.fixture
def computed(monkeypatch):
    """Folders that were really hashed."""
    calls, real = [], fingerprints._compute
    monkeypatch.setattr(fingerprints, "_compute", lambda files: calls.append(files) or real(files))
    return calls


def test_cache(folder, tensors, tmp_path, computed):
    first = fingerprint(folder)
    assert fingerprint(folder) == first and len(computed) == 1
    assert len([*(tmp_path / "cache" / "softprompt").iterdir()]) == 1
    (folder / "config.json").write_text("{}")  # not a weight file
    assert fingerprint(folder) == first and len(computed) == 1


def test_cache_notices_a_changed_file(folder, tensors, computed):
    first, file = fingerprint(folder), folder / "model.safetensors"
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    tensors["transformer.word_embeddings.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert file.stat().st_size == size
    os.utime(file, ns=(time, time + 1))
    second = fingerprint(folder)
    assert len(computed) == 2 and second.sha256 != first.sha256
    os.utime(file, ns=(time, time + 2))
    assert fingerprint(folder) == second and len(computed) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"sha256": "x"}', b"\xff\xfe"])
def test_a_damaged_cache_is_computed_anew(folder, tmp_path, computed, content):
    first = fingerprint(folder)
    (cached,) = (tmp_path / "cache" / "softprompt").iterdir()
    cached.write_bytes(content)
    assert fingerprint(folder) == first and len(computed) == 2
    assert fingerprint(folder) == first and len(computed) == 2


def test_a_cache_that_cannot_be_written_is_harmless(folder, tmp_path, monkeypatch, computed):
    first = fingerprint(folder)
    (tmp_path / "blocked").write_text("a file where a folder should be")
    for place in (tmp_path / "blocked", Path("/proc/nothing")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        assert fingerprint(folder) == first
    assert len(computed) == 3


def test_the_folder_is_only_read(folder):
    before = snapshot(folder)
    fingerprint(folder)
    assert before and snapshot(folder) == before


def test_no_weights(tmp_path, folder):
    with pytest.raises(UserError, match="no weights"):
        weight_files(tmp_path)
    sharded = save(tmp_path / "sharded", make_model("bloom"), max_shard_size="20KB")
    weight_files(sharded)[1].unlink()
    with pytest.raises(UserError, match="model.safetensors.index.json names model-00002-.*not there"):
        weight_files(sharded)


def full_base(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return load_base(str(folder), device=torch.device("cpu"), precision="fp32")


def test_check_same_base(tmp_path):
    base = full_base(tmp_path / "one", make_model("bloom"))
    path = tmp_path / "prompt.safetensors"

    def check(base, allow_other=False, width=32, metadata=base.metadata):
        save_prompt(path, SoftPromptEmbedding(torch.ones(2, width)), metadata)
        return check_same_base(load_prompt(path), base, prompt_file="p.safetensors", allow_other=allow_other)

    assert check(base) == ""
    half = full_base(tmp_path / "half", make_model("bloom").half())
    assert check(half) == "the same base in another precision"
    with pytest.raises(UserError) as caught:
        check(base, allow_other=True, width=64)
    for word in ("p.safetensors", "hidden size 64", "hidden size 32", "one"):
        assert word in str(caught.value)

    other = make_model("bloom")
    with torch.no_grad():
        other.transformer.h[0].mlp.dense_h_to_4h.weight.mul_(1.5)
    other = full_base(tmp_path / "other", other)
    with pytest.raises(UserError) as caught:
        check(other)
    sides = (str(tmp_path / "one"), base.fingerprint.sha256[:12], str(tmp_path / "other"))
    for word in ("p.safetensors", "another base", "`allow_other_base`", *sides, other.fingerprint.sha256[:12]):
        assert word in str(caught.value)
    assert "another base" in check(other, allow_other=True)

    unsaid = {name: value for name, value in base.metadata.items() if name not in ("base_sha256", "base_sketch")}
    with pytest.raises(UserError, match="does not say which weights"):
        check(base, metadata=unsaid)
    assert "another base" in check(base, allow_other=True, metadata=unsaid)

    swapped = make_tokenizer()
    state = json.loads(swapped.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    swapped = type(swapped)(
        tokenizer_object=type(swapped.backend_tokenizer).from_str(json.dumps(state)), eos_token="</s>"
    )
    with pytest.raises(UserError, match="another tokenizer"):
        check(full_base(tmp_path / "swapped", make_model("bloom"), swapped))
