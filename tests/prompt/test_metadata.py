"""What a prompt file says: every key once, with its type, and nothing of what a stranger's file says wrongly."""

import dataclasses
import json
import struct

import pytest
import torch

from softprompt import SoftPromptEmbedding, UserError, load_prompt, save_prompt
from softprompt.base.fingerprint import Fingerprint, compare_fingerprints
from softprompt.config.commands import MAX_INIT_TEXT, MAX_SYSTEM_TEXT
from softprompt.prompt.metadata import MAX_TEXT, PromptMetadata
from softprompt.prompt.start import why_no_start

FULL = PromptMetadata(
    base="builtin:bloom-small@1",
    base_revision="0123abc",
    base_sha256="ab" * 32,
    base_sketch='{"h": ["F32", [1], "AAAAAAAAAAA="]}',
    tokenizer_sha256="cd" * 32,
    eos_token="</s>",
    init="answers",
    init_text='你好 "quoted"\nline',
    init_ids=[5, 0, 2**63 - 1],
    bos_token="<bos>",
    end_ids=[7],
    template="chat",
    template_text="{{ messages }}",
    template_date="2026-01-02",
    system="Be brief.",
    learnt_turns="last",
    placement="system",
    before_ids=[1, 2],
    after_ids=[3],
    data="rows.jsonl",
    data_sha256="ef" * 32,
    rows_sketch={"train": ["00", "ff"], "held_out": []},
    training={"steps": 3, "curve": [[0, 1.5], [3, None]], "held_out_loss": {"trained_prompt": 0.1}, "optim": "soap"},
)
ADDED = {"format", "format_version", "num_virtual_tokens", "hidden_size", "sha256"}
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "1" * 5_000  # more digits than Python turns into a number


def keys():
    return [each.name for each in dataclasses.fields(PromptMetadata)]


def test_a_round_trip_keeps_every_key():
    # a key that is as it is by default would show nothing
    assert all(getattr(FULL, name) != getattr(PromptMetadata(), name) for name in keys())
    assert PromptMetadata.from_strings(FULL.to_strings()) == FULL


def test_a_round_trip_through_a_file(tmp_path):
    path = tmp_path / "prompt.safetensors"
    save_prompt(path, SoftPromptEmbedding(torch.ones(2, 3)), FULL.to_strings())
    file = load_prompt(path)
    assert file.facts == FULL and file.facts is file.facts
    assert file.metadata.keys() == set(keys()) | ADDED


def test_every_key_is_written_once_as_text():
    strings = FULL.to_strings()
    assert [*strings] == keys() and len(set(strings)) == len(strings)
    assert not strings.keys() & ADDED  # those belong to the file, and saving adds them
    assert all(isinstance(value, str) for value in strings.values())
    assert strings["init_text"] == FULL.init_text and json.loads(strings["init_ids"]) == FULL.init_ids


def test_what_is_absent_has_no_value():
    assert set(PromptMetadata().to_strings().values()) == {""}
    assert PromptMetadata.from_strings(PromptMetadata().to_strings()) == PromptMetadata()
    assert PromptMetadata.from_strings({}) == PromptMetadata()
    assert PromptMetadata.from_strings({"of another version": "[1]", "sha256": "x"}) == PromptMetadata()


def test_two_prompts_share_no_list():
    PromptMetadata.from_strings({}).init_ids.append(1)
    assert PromptMetadata.from_strings({}).init_ids == PromptMetadata().init_ids == []


@pytest.mark.parametrize("key", ["init_ids", "rows_sketch", "training"])
@pytest.mark.parametrize(
    "text",
    ["[1", "{", "no json", "null", "true", "7", '"text"', "1e999", "NaN", LONG, f"[{LONG}]", DEEP, "\0", "\ufeff[]"],
    ids=lambda text: repr(text[:12]),
)
def test_broken_json_and_other_types_are_refused(key, text):
    with pytest.raises(UserError, match=f"^{key} "):
        PromptMetadata.from_strings(FULL.to_strings() | {key: text})


@pytest.mark.parametrize(
    "ids",
    [[1, -2], [True], [5, True], [5, False, 7], [1.0], ["5"], [None], [[5]], [[5], 7], [{}], [2**63], [5, 10**400], {}],
    ids=lambda ids: repr(ids)[:20],
)
@pytest.mark.parametrize("key", ["init_ids", "end_ids", "before_ids", "after_ids"])
def test_a_list_with_one_id_that_is_none_is_refused(key, ids):
    with pytest.raises(UserError, match=f"^{key} is not a list of token ids"):
        PromptMetadata.from_strings({key: json.dumps(ids)})


def test_a_start_without_its_ids_cannot_be_made_again():
    assert "the tokens of the answers" in why_no_start(PromptMetadata.from_strings({"init": "answers"}))


@pytest.mark.parametrize("sketch", ["00", 7, True, None, {"00": 1}, [7], ["00", 7], [["00"]], ["00", None], [True]])
def test_a_sketch_that_is_no_list_of_texts_is_refused(sketch):
    with pytest.raises(UserError, match="^rows_sketch is not an object of lists of texts"):
        PromptMetadata.from_strings({"rows_sketch": json.dumps({"train": sketch, "held_out": ["ff"]})})


BAD_TRAINING = [
    *({"seed": seed} for seed in (None, True, False, -1, 1.0, "7", [7], 2**63, 10**400)),
    *({"curve": curve} for curve in (None, {}, "x", [1], [[1]], [[1, 2, 3]], [["1", 2]], [[1, "2"]], [[10**400, 1.0]])),
    *({"curve": [[1, loss]]} for loss in (True, [2], 10**400, {})),
    *({"held_out_loss": losses} for losses in ([1], "x", 7, {"trained_prompt": "1"}, {"trained_prompt": 10**400})),
    *({name: -1} for name in ("steps", "rows", "rows_per_step")),
]


@pytest.mark.parametrize("training", BAD_TRAINING, ids=lambda training: repr(training)[:40])
def test_figures_of_another_type_are_refused(training):
    with pytest.raises(UserError, match="^training is not an object of figures"):
        PromptMetadata.from_strings({"training": json.dumps(training)})


BAD_SKETCHES = [
    "not json", "[1,2]", "5", "null", DEEP, '{"h": 5}', '{"h": ["F32"]}', '{"h": ["F32", [1], "A"]}',
    '{"h": ["F32", [1], ""]}', '{"h": ["F32", [-1], "AAAAAAAAAAA="]}', '{"h": ["F32", [10], "AAAAAAAAAAA="]}',
    '{"h": [5, [1], "AAAAAAAAAAA="]}', '{"h": ["F32", ["1"], "AAAAAAAAAAA="]}', '{"h": ["F32", [1], "AAAAAAAAAA=="]}',
    '{"h": ["F32", [true], "AAAAAAAAAAA="]}', '{"h": ["F32", 1, "AAAAAAAAAAA="]}', '{"h": null}',
]  # fmt: skip


@pytest.mark.parametrize("sketch", BAD_SKETCHES, ids=lambda text: text[:30])
def test_a_sketch_of_a_base_that_is_none_is_refused(sketch):
    with pytest.raises(UserError, match="^base_sketch "):
        PromptMetadata.from_strings({"base_sketch": sketch})
    with pytest.raises(UserError, match="^base_sketch "):
        compare_fingerprints(Fingerprint("a", "{}"), Fingerprint("b", sketch))


@pytest.mark.parametrize(
    ("key", "limit"),
    [("init_text", MAX_INIT_TEXT), ("system", MAX_SYSTEM_TEXT), ("base", MAX_TEXT), ("template_text", MAX_TEXT)],
)
def test_a_text_has_a_longest_length(key, limit):
    assert getattr(PromptMetadata.from_strings({key: "x" * limit}), key) == "x" * limit
    with pytest.raises(UserError, match=f"^{key} has {limit + 1:,} characters"):
        PromptMetadata.from_strings({key: "x" * (limit + 1)})


@pytest.mark.parametrize("key", ["base", "init_text", "data", "eos_token"])
def test_half_a_character_is_refused(key):
    with pytest.raises(UserError, match=f"^{key} is not Unicode"):
        PromptMetadata.from_strings({key: "half \ud83d"})


def test_the_longest_seed_is_one():
    for init in ("vocab", "random"):
        facts = PromptMetadata.from_strings({"init": init})
        assert f"the seed of its {init} start" in why_no_start(facts)
        assert why_no_start(dataclasses.replace(facts, training={"seed": 2**63 - 1})) == ""


@pytest.mark.parametrize("value", ["7", "true", "null", '["a"]', '{"a": "b"}'])
def test_a_file_with_anything_but_text_for_a_key_is_refused(value, tmp_path):
    path = tmp_path / "prompt.safetensors"
    save_prompt(path, SoftPromptEmbedding(torch.ones(2, 4)), FULL.to_strings())
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].replace(b'"data": "rows.jsonl"', f'"data": {value}'.encode())
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    with pytest.raises(UserError, match="not a prompt file"):
        load_prompt(path)
