"""The prompt file: equal bytes for equal results, a strict reader, and writing that never leaves a part."""

import errno
import hashlib
import json
import os
import resource
import stat
import struct

import pytest
import torch
from helpers.commands import run_python, snapshot
from safetensors.torch import load_file, save_file

from softprompt import SoftPromptEmbedding, UserError, load_prompt, save_prompt
from softprompt.prompt.file import prompt_bytes
from softprompt.system.files import atomic_folder, require_writable, write_atomic

METADATA = {"base": "./somewhere", "zebra": "last", "init_text": '你好 "quoted"\nline', "alpha": ""}
OURS = {"format": "softprompt", "format_version": "2"}
ADDED = {"format", "format_version", "num_virtual_tokens", "hidden_size", "sha256"}


def make_prompt(count=5, width=6, seed=0):
    weight = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return SoftPromptEmbedding.from_tensor(weight)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prompt.safetensors"


@pytest.fixture
def saved(path):
    save_prompt(path, make_prompt(), METADATA)
    return path


def parts(raw):
    """Header, as stored, and tensor bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_prompt(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("shape", [(1, 1), (5, 6), (100, 3)])
def test_round_trip(shape, path):
    prompt = make_prompt(*shape)
    save_prompt(path, prompt, METADATA)
    file = load_prompt(path)
    assert torch.equal(file.weight, prompt.weight) and file.weight.dtype == torch.float32
    assert file.metadata.items() >= METADATA.items()
    assert file.metadata.keys() == METADATA.keys() | ADDED
    assert [file.metadata["num_virtual_tokens"], file.metadata["hidden_size"]] == [str(size) for size in shape]


def test_saving_what_was_loaded_gives_the_same_bytes(saved, tmp_path):
    file = load_prompt(saved)
    save_prompt(tmp_path / "again", SoftPromptEmbedding.from_tensor(file.weight), file.metadata)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_weights_of_another_layout_and_dtype(path):
    weight = torch.randn(6, 5, dtype=torch.float64).T
    prompt = SoftPromptEmbedding.from_tensor(weight).to(torch.float64)
    save_prompt(path, prompt, {})
    assert torch.equal(load_prompt(path).weight, weight.float())


def test_other_readers_understand_it(saved):
    assert load_file(saved).keys() == {"prompt_embeddings"}
    assert torch.equal(load_file(saved)["prompt_embeddings"], make_prompt().weight)


def test_header_is_sorted_and_the_tensor_aligned(saved):
    raw = saved.read_bytes()
    header, tensor = parts(raw)
    assert [*header] == ["__metadata__", "prompt_embeddings"]
    assert [*header["__metadata__"]] == sorted(METADATA.keys() | ADDED)
    assert header["prompt_embeddings"] == {"dtype": "F32", "shape": [5, 6], "data_offsets": [0, 120]}
    assert len(tensor) == 120 and (len(raw) - 120) % 8 == 0


def test_checksum_is_over_the_tensor_and_all_other_keys(saved):
    header, tensor = parts(saved.read_bytes())
    metadata = header["__metadata__"]
    stored = metadata.pop("sha256")
    assert stored == hashlib.sha256(tensor + json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def test_bytes_are_the_same_in_every_process(tmp_path):
    code = (
        "import sys, torch; from softprompt import SoftPromptEmbedding, save_prompt\n"
        "keys = {f'key{i}' for i in range(40)}\n"  # a set: its order follows the hash seed
        "print([*keys][:3])\n"
        "prompt = SoftPromptEmbedding.from_tensor(torch.arange(12.).reshape(3, 4))\n"
        "save_prompt(sys.argv[1] if sys.argv[1:] else 'p', prompt, {key: 'value' for key in keys})"
    )
    contents, orders = set(), set()
    for seed in ("0", "1", "2"):
        done = run_python(code, tmp_path, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        contents.add((tmp_path / "p").read_bytes())
        orders.add(done.stdout)
    assert len(orders) == 3 and len(contents) == 1


def test_bytes_differ_where_the_result_does():
    contents = {prompt_bytes(make_prompt(seed=seed), {"base": base}) for seed in (0, 1) for base in "ab"}
    assert len(contents) == 4


def test_not_there(tmp_path):
    assert "no such prompt file" in refusal(tmp_path / "gone.safetensors")
    assert "no such prompt file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"not safetensors at all", b"\xff" * 64, b"PK\x03\x04" + bytes(100)])
def test_not_safetensors(content, path):
    path.write_bytes(content)
    assert "not a prompt file" in refusal(path)


def test_truncated(saved):
    raw = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(raw) - 120, len(raw) - 119, len(raw) - 4, len(raw) - 1):
        saved.write_bytes(raw[:length])
        assert "cut short" in refusal(saved)
    saved.write_bytes(raw + b"\0")
    assert "not a prompt file" in refusal(saved)
    saved.write_bytes(raw)
    load_prompt(saved)


def test_every_altered_byte_is_noticed(saved):
    raw = saved.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    end = len(raw[: 8 + length].rstrip(b" "))  # spaces behind the header carry nothing
    for place in [*range(end), *range(8 + length, len(raw))]:
        for bit in (1, 128):
            saved.write_bytes(raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :])
            refusal(saved)


def test_altered_metadata_is_noticed(saved):
    raw = saved.read_bytes()
    assert raw.count(b"./somewhere") == 1
    saved.write_bytes(raw.replace(b"./somewhere", b"./elsewhere"))
    assert "checksum" in refusal(saved)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"weight": torch.ones(2, 3)}, None),
        ({"weight": torch.ones(2, 3)}, {"format": "pt"}),
        ({"prompt_embeddings": torch.ones(2, 3)}, None),  # PEFT's own file
        ({"prompt_embeddings": torch.ones(2, 3)}, {"format": "pt"}),
        ({"prompt_embeddings": torch.ones(2, 3), "more": torch.ones(1)}, OURS),
        ({"weight": torch.ones(2, 3)}, OURS),
    ],
)
def test_foreign_safetensors(tensors, metadata, path):
    save_file(tensors, path, metadata=metadata)
    assert "not a softprompt prompt" in refusal(path)


def rewrite(path, weight, **changes):
    """A file with a correct checksum over changed content."""
    metadata = load_prompt(path).metadata | changes
    metadata.pop("sha256")
    raw = weight.contiguous().numpy().tobytes()
    metadata["sha256"] = hashlib.sha256(raw + json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    save_file({"prompt_embeddings": weight.contiguous()}, path, metadata=metadata)


def test_rewrite_helper_is_accepted(saved):
    rewrite(saved, make_prompt(seed=3).weight.detach())
    assert torch.equal(load_prompt(saved).weight, make_prompt(seed=3).weight)


def test_a_file_of_version_1_is_still_read(saved):
    rewrite(saved, make_prompt().weight.detach(), format_version="1")
    assert torch.equal(load_prompt(saved).weight, make_prompt().weight.detach())


def test_newer_version(saved):
    rewrite(saved, make_prompt().weight.detach(), format_version="3")
    message = refusal(saved)
    assert "version 3" in message and "update" in message


@pytest.mark.parametrize("changes", [{"num_virtual_tokens": "4"}, {"hidden_size": "7"}], ids=str)
def test_stated_shape_must_fit(saved, changes):
    rewrite(saved, make_prompt().weight.detach(), **changes)
    assert "[5, 6]" in refusal(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(saved, dtype):
    rewrite(saved, make_prompt().weight.detach().to(dtype))
    assert "fp32" in refusal(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(saved, value):
    weight = make_prompt().weight.detach().clone()
    weight[2, 3] = value
    rewrite(saved, weight)
    assert "NaN or infinity" in refusal(saved)


def test_write_atomic(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new and longer", b""):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert [*snapshot(tmp_path)] == [str(path)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("there", [True, False])
def test_a_failing_write_leaves_everything_as_it_was(step, there, tmp_path, monkeypatch):
    path = tmp_path / "prompt.safetensors"
    if there:
        save_prompt(path, make_prompt(), METADATA)
    before = snapshot(tmp_path)
    assert bool(before) == there
    with monkeypatch.context() as patched:
        patched.setattr(os, step, full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_prompt(path, make_prompt(seed=1), METADATA)
    assert snapshot(tmp_path) == before
    save_prompt(path, make_prompt(seed=1), METADATA)
    assert torch.equal(load_prompt(path).weight, make_prompt(seed=1).weight)


def test_a_disk_that_fills_while_writing(saved, tmp_path):
    """The kernel itself refuses, after part of the file is written."""
    before = snapshot(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_prompt(saved, make_prompt(700, 1024), METADATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert str(saved) in str(caught.value.filename)  # the line that the user sees names the file
    assert snapshot(tmp_path) == before


def test_interrupted_write_leaves_nothing(saved, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = snapshot(tmp_path)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_prompt(saved, make_prompt(seed=1), METADATA)
    assert snapshot(tmp_path) == before


def test_atomic_folder(tmp_path):
    with atomic_folder(tmp_path / "whole") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "whole").exists()
    assert [*snapshot(tmp_path)] == [str(tmp_path / "whole"), str(tmp_path / "whole" / "file")]
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == 0o777 & ~current_umask()


@pytest.mark.parametrize("step", ["block", "rename", "fsync"])
def test_a_failing_folder_leaves_nothing(step, tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("kept")
    before = snapshot(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        if step != "block":
            patched.setattr(os, step, full_disk)
        with atomic_folder(tmp_path / "whole") as folder:
            (folder / "file").write_text("content")
            if step == "block":
                full_disk()
    assert snapshot(tmp_path) == before


def test_require_writable(tmp_path):
    (tmp_path / "file").write_text("")
    before = snapshot(tmp_path)
    require_writable(tmp_path / "new" / "deep", what="`run_dir` x")
    for place in (tmp_path / "file" / "below", "/proc/nothing"):
        with pytest.raises(UserError, match="^`run_dir` x: cannot write in .*another place"):
            require_writable(place, what="`run_dir` x")
    assert snapshot(tmp_path) == before
