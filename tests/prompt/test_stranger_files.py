"""A prompt file of a stranger, with a checksum that fits: every command refuses it in one line, soon and unharmed."""

import hashlib
import json
import os
import shutil
import struct
import time

import pytest
import torch
from helpers.commands import assert_one_line, run_command
from helpers.models import HIDDEN_SIZE, make_model, make_tokenizer
from helpers.prompts import save_for

import softprompt
from softprompt import SoftPromptEmbedding, UserError, load_prompt, save_prompt
from softprompt.base.known import is_known_base, remember_base
from softprompt.base.loading import load_base
from softprompt.config.commands import MAX_INIT_TEXT, MAX_SYSTEM_TEXT
from softprompt.prompt.metadata import MAX_TEXT
from softprompt.system.cache import cache_folder, read_cached, write_cached

DEEP = "[" * 100_000 + "]" * 100_000
OTHER = {"base_sha256": "0" * 64}
SECONDS = 10
COMMANDS = ("generate", "chat", "evaluate", "inspect", "train")

# what is changed -> words of the line
METADATA = {
    "sketch no JSON": ({"base_sketch": "not json", **OTHER}, "base_sketch"),
    "sketch a list": ({"base_sketch": "[1,2]", **OTHER}, "base_sketch"),
    "sketch a number": ({"base_sketch": "5", **OTHER}, "base_sketch"),
    "sketch an entry": ({"base_sketch": '{"word_embeddings.weight": 5}', **OTHER}, "base_sketch"),
    "sketch empty values": ({"base_sketch": '{"h": ["F32", [9], ""]}', **OTHER}, "base_sketch"),
    "sketch deep": ({"base_sketch": DEEP, **OTHER}, "base_sketch"),
    "training deep": ({"training": DEEP}, "training"),
    "training deep inside": ({"training": '{"a": ' + "[" * 200 + "]" * 200 + "}"}, "training"),
    "training a list": ({"training": "[1]"}, "training"),
    "training step": ({"training": json.dumps({"curve": [[10**400, 1.0]]})}, "training"),
    "training loss": ({"training": json.dumps({"held_out_loss": {"trained_prompt": "low"}})}, "training"),
    "training NaN": ({"training": '{"curve": [[1, NaN]]}'}, "training"),
    "training digits": ({"training": '{"steps": ' + "9" * 5000 + "}"}, "training"),
    "rows deep": ({"rows_sketch": DEEP}, "rows_sketch"),
    "rows a text": ({"rows_sketch": '{"train": "00"}'}, "rows_sketch"),
    "ids beyond": ({"init": "answers", "init_ids": "[1000000000]"}, "1000000000"),
    "ids far beyond": ({"init": "answers", "init_ids": f"[{10**30}]"}, "init_ids"),
    "ids negative": ({"init": "answers", "init_ids": "[-1]"}, "init_ids"),
    "ends beyond": ({"end_ids": "[260]"}, "260"),
    "front beyond": ({"before_ids": "[260]"}, "260"),
    "text long": ({"init_text": "word " * (MAX_INIT_TEXT // 4)}, "init_text"),
    "system long": ({"system": "z" * (MAX_SYSTEM_TEXT + 1)}, "system"),
    "name long": ({"base": "x" * (MAX_TEXT + 1)}, "base"),
    "half a character": ({"base": "\ud83d"}, "base"),
    "escape": ({"base": "\x1b[31mred\x07", **OTHER}, r"\x1b[31mred\x07"),
    "right to left": ({"base": "a\u202egnp", **OTHER}, r"\u202e"),
    "elsewhere": ({"base": "/a/folder/of/another/machine", "base_sha256": ""}, "--model /a/folder"),
    "template": ({"template": "\x1b]0;title\x07"}, r"\x1b]0;title\x07"),
}  # fmt: skip


def rewrite(path, *, tensor=None, shape=None, header=None, raw_header=None, **changes):
    """Change a prompt file and give it the checksum that fits, as whoever means harm would."""
    source = path.read_bytes()
    (length,) = struct.unpack("<Q", source[:8])
    content, raw = json.loads(source[8 : 8 + length]), source[8 + length :]
    raw = raw if tensor is None else tensor
    metadata = {key: value for key, value in (content["__metadata__"] | changes).items() if key != "sha256"}
    metadata["sha256"] = hashlib.sha256(raw + json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    content["__metadata__"] = metadata
    if shape is not None:
        content["prompt_embeddings"] |= {"shape": shape, "data_offsets": [0, len(raw)]}
    content |= header or {}
    new = json.dumps(content).encode() if raw_header is None else raw_header
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw)


@pytest.fixture
def work(tmp_path, monkeypatch, rows_file):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prompt(work, model_folder):
    return save_for(model_folder, work / "p.safetensors")


@pytest.fixture
def run(capfd, work, model_folder, rows_file, monkeypatch):
    """Run a command on `p.safetensors`; `train` takes it as `--init-from`."""
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115

    def call(command, *argv):
        if command == "train":
            argv = ["--init-from", "p.safetensors", "--prompt-file", "new.safetensors", *argv]
            argv += ["--model", model_folder, "--data", rows_file, "--max-steps", 1]
        else:
            argv = ["--prompt-file", "p.safetensors", *argv]
        argv += ["--data", rows_file, "--eval-generate", 0] if command == "evaluate" else []
        argv += ["--instruction", "x", "--max-new-tokens", 2] if command == "generate" else []
        start = time.monotonic()
        result = run_command(capfd, command, *argv)
        assert time.monotonic() - start < SECONDS
        return result

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_the_file_is_good_as_it_is(prompt, run, command):
    assert run(command).status == 0


@pytest.mark.parametrize("case", METADATA)
def test_hostile_metadata_is_one_line(prompt, run, case):
    changes, words = METADATA[case]
    rewrite(prompt, **changes)
    commands = ["generate", "inspect", "evaluate"]
    if case.startswith(("ids beyond", "ends", "sketch", "training", "rows", "text", "half")):
        commands.append("train")
    for command in commands:
        if case == "template" and command != "generate":
            continue
        result = run(command)
        assert_one_line(result, "p.safetensors", words)
        assert result.err[:-1].isprintable() and "\x1b" not in result.out and not os.path.exists("new.safetensors")


SHOWN = {
    "losses beyond fp32": {"training": json.dumps({"curve": [[2**62, 1e308], [0, -1e308], [1, 2.0]]})},
    "long names and texts": {"training": json.dumps({"x" * 9000: "y" * 900_000, "a": {"b" * 9000: 1}})},
    "long own texts": {"system": "z" * MAX_SYSTEM_TEXT, "init_text": "z" * 90_000},
    "many names": {"training": json.dumps({f"name {number}": number for number in range(9000)})},
}


@pytest.mark.parametrize("case", SHOWN)
def test_what_is_odd_but_harmless_is_shown_in_short(prompt, run, case):
    rewrite(prompt, **SHOWN[case])
    result = run("inspect")
    assert result.status == 0 and len(result.out) < 1_000_000


def test_what_a_terminal_would_obey_is_escaped_in_rows_and_questions(prompt, run, rows_file):
    rewrite(prompt, template="file", template_text="\x1b[2J\u202e{{ messages[0]['content'] }}\n")
    shown = run("generate", "--no-do-sample").err
    rows_file.write_text(json.dumps({"instruction": "a\x1b]0;title\x07\n\tb", "output": "c\u202ed"}) + "\n")
    shown += run("train").out
    assert r"\x1b[2J\u202ex" in shown and r"a\x1b]0;title\x07" in shown and "\tb" in shown and r"c\u202ed" in shown
    assert all(character not in shown for character in "\x1b\x07\u202e")


def claim(count, width):
    return {"shape": [count, width], "num_virtual_tokens": str(count), "hidden_size": str(width)}


def entry(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


VALUES = 4 * HIDDEN_SIZE
TENSORS = {
    "huge": ({"tensor": struct.pack(f"<{VALUES}f", *[3e38] * VALUES)}, "3e+38"),
    "infinite": ({"tensor": struct.pack(f"<{VALUES}f", *[float("inf")] * VALUES)}, "infinity"),
    "one row less": ({"shape": [3, HIDDEN_SIZE]}, "its metadata says"),
    "flat": ({"shape": [VALUES]}, "its metadata says"),
    "negative": ({"shape": [-4, -HIDDEN_SIZE]}, "its metadata says"),
    "floats": ({"shape": [4.0, 32.0]}, "its metadata says"),
    "none": ({"shape": [0, HIDDEN_SIZE], "tensor": b"", "num_virtual_tokens": "0"}, "its metadata says"),
    "claims a terabyte": (claim(1 << 20, 1 << 18), "cut short"),
    "claims more": (claim(2**62, 2**62), "cut short"),
    "entry a list": ({"header": {"prompt_embeddings": [1]}}, "not a softprompt prompt"),
    "metadata a list": ({"header": {"__metadata__": [1]}}, "not a prompt file"),
    "metadata a number": ({"header": {"__metadata__": {"base": 1}}}, "not a prompt file"),
    "another tensor": ({"header": {"more": entry([0], 0, 0)}}, "not a softprompt"),
    "offsets": ({"header": {"prompt_embeddings": entry([4, 32], 4, 516)}}, "cut short"),
    "header deep": ({"raw_header": DEEP.encode()}, "nested too deeply"),
    "header a list": ({"raw_header": b"[1]"}, "no JSON object"),
    "header binary": ({"raw_header": b"\xff\xfe"}, "not a prompt file"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_a_hostile_tensor_is_one_line(prompt, run, case):
    changes, words = TENSORS[case]
    rewrite(prompt, **changes)
    for command in ("generate", "inspect", "train"):
        assert_one_line(run(command), "p.safetensors", words)


def test_a_header_that_claims_to_be_huge_is_not_read(prompt):
    for length in (2**63, 2**40, 10**8):
        prompt.write_bytes(struct.pack("<Q", length) + prompt.read_bytes()[8:])
        with pytest.raises(UserError, match="cut short"):
            load_prompt(prompt)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("p.safetensors", path)])
def test_what_is_no_file(work, run, make):
    make(work / "p.safetensors")
    for command in COMMANDS:
        assert_one_line(run(command), "p.safetensors")


def test_what_would_be_refused_is_not_written(work):
    whole, huge = (SoftPromptEmbedding.from_tensor(torch.full((2, 4), value)) for value in (1.0, 1e20))
    for prompt, metadata in ((whole, {"training": "{broken"}), (whole, {"init_ids": "[-1]"}), (huge, {})):
        with pytest.raises(UserError, match="prompt that was to be written"):
            save_prompt(work / "bad.safetensors", prompt, metadata)
    assert not (work / "bad.safetensors").exists()


# the base that a file names


@pytest.fixture
def elsewhere(work, model_folder):
    """A prompt that was trained on another machine, and the base as it is here."""
    base = shutil.copytree(model_folder, work / "base")
    return save_for(base, work / "p.safetensors", known=False, base="./base")


@pytest.mark.parametrize("command", ["generate", "chat", "evaluate", "inspect"])
def test_a_base_that_was_not_trained_on_here_is_not_loaded(elsewhere, run, command, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("softprompt.prompt.fit.load_base", lambda *a, **k: pytest.fail("loaded"))
        assert_one_line(run(command), "p.safetensors", "./base", "nothing was trained here", "--model ./base")
    assert run(command, "--model", "./base").status == 0
    assert run(command).status == 2  # to use a prompt once is not to train


def test_a_base_that_was_trained_on_here_is_loaded(elsewhere, run, model_folder):
    with pytest.raises(UserError, match=r"add `model` \./base"):
        softprompt.load(elsewhere)
    assert softprompt.load(elsewhere, model="./base").metadata["base"] == "./base"
    assert run("train", "--model", "./base").status == 0
    assert run("generate").status == 0 and softprompt.load(elsewhere).metadata["base"] == "./base"


def test_a_hub_id_is_not_asked_for(elsewhere, run, monkeypatch):
    monkeypatch.setattr("softprompt.system.sources.model_snapshot", lambda *a, **k: pytest.fail("fetched"))
    rewrite(elsewhere, base="someone/model", base_revision="abc")
    assert_one_line(run("generate"), "--model someone/model")
    # a known hash with another name is not a known base
    remember_base("other/model", "abc", load_prompt(elsewhere).facts.base_sha256)
    assert_one_line(run("generate"), "--model someone/model")


def test_a_folder_that_moved_is_known_by_its_weights(elsewhere, run, work):
    remember_base("./base", "", load_prompt(elsewhere).facts.base_sha256)
    os.rename("base", "moved")
    rewrite(elsewhere, base="./moved")
    assert run("generate").status == 0
    other = make_model("llama")
    other.save_pretrained("other")
    make_tokenizer().save_pretrained("other")
    rewrite(elsewhere, base="./other")
    assert_one_line(run("generate"), "nothing was trained here", "--model ./other")


def test_a_shipped_base_is_always_known(work):
    assert is_known_base("builtin:bloom-small@1", "", "")
    assert not is_known_base("./base", "", "") and not is_known_base("a/b", "", "0" * 64)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": "x", "value": []}', DEEP, "[" * 3, '{"value": 1}'])
def test_a_damaged_list_counts_as_empty(elsewhere, content):
    sha256 = load_prompt(elsewhere).facts.base_sha256
    remember_base("./base", "", sha256)
    assert is_known_base("./base", "", sha256)
    (path,) = cache_folder().glob("trained-bases.json")
    path.write_text(content)
    assert not is_known_base("./base", "", sha256)
    remember_base("./base", "", sha256)
    assert is_known_base("./base", "", sha256)


def test_the_list_is_bounded_and_typed(elsewhere):
    sha256 = load_prompt(elsewhere).facts.base_sha256
    write_cached("trained-bases.json", [7, [sha256], [sha256, 1], {"a": 1}, *([str(n), "x"] for n in range(1500))])
    assert not is_known_base("./base", "", sha256)
    remember_base("./base", "", sha256)
    assert len(read_cached("trained-bases.json")) == 1000 and is_known_base("./base", "", sha256)


def test_without_a_home_nothing_is_kept(elsewhere, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_folder() is None
    remember_base("./base", "", "0" * 64)
    assert read_cached("trained-bases.json") is None
    assert load_base("./base", device=torch.device("cpu"), precision="fp32").fingerprint.sha256
