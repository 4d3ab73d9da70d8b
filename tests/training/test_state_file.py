"""A state that was edited, with its checksum made new, is refused in one line or leads to a run that ends well."""

import hashlib
import json
import struct

import pytest
import torch
from helpers.training import trainer_for
from safetensors.torch import load_file

from softprompt import UserError
from softprompt.training.checkpoint import FIELDS, load_checkpoint
from softprompt.training.state_file import Damaged, read_state, state_bytes

VALUES = [None, True, -1, 0, 3, 2**63, 10**400, 1.5, -2.0, "nan", "inf", "", "text", "\0", [], [1], {}, {"a": 1}]


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """A state that is restored sets the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["soap", "adamw"])
def run(request, model_folder, tmp_path_factory):
    """A new trainer, and the state of a finished run after step 4."""
    out = tmp_path_factory.mktemp(request.param)
    rows = out / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Say {n}", "output": f"{n} {n}"}) + "\n" for n in range(9)))
    options = {"eval_fraction": 0.3, "max_steps": 4, "num_train_epochs": None, "optim": request.param}
    trainer_for(model_folder, rows, out / "run", **options).run()
    state = out / "run" / "p.run" / "checkpoint-4" / "state.safetensors"

    def fresh():
        return trainer_for(model_folder, rows, out / "run", resume=True, **options)

    return fresh(), state


def parts_of(raw):
    """Header, JSON value and tensors of a state file's bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["state"]), raw[8 + length :]


def joined(header, content, data):
    """A state file with a checksum that fits."""
    metadata = {key: value for key, value in header["__metadata__"].items() if key != "sha256"}
    header = {**header, "__metadata__": metadata | {"state": json.dumps(content)}}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data).hexdigest()
    header["__metadata__"]["sha256"] = digest
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def restored(trainer, state, raw):
    """Whether a state is taken; it is refused by `Damaged` or `UserError` alone."""
    before = state.read_bytes()
    state.write_bytes(raw)
    try:
        trainer.restore(load_checkpoint(state.parent, trainer.layout(), trainer.recipe.require_same))
    except (Damaged, UserError) as error:
        assert str(error) and "\n" not in str(error)
        return False
    finally:
        state.write_bytes(before)
    return True


def test_safetensors_reads_what_is_written_and_equal_states_are_equal_bytes(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, 2), "c": torch.tensor(7)}
    path = tmp_path / "state"
    path.write_bytes(state_bytes({"x": 1}, tensors))
    assert state_bytes({"x": 1}, dict(reversed(tensors.items()))) == path.read_bytes()
    layout = {name: (each.dtype, tuple(range(n, n + 1) for n in each.shape)) for name, each in tensors.items()}
    content, again = read_state(path, layout, pytest.fail)
    assert content == {"x": 1}
    for read in (again, load_file(path)):
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_the_state_as_it_was_is_taken_and_every_edit_of_a_value_is_taken_or_refused(run):
    trainer, state = run
    header, content, data = parts_of(state.read_bytes())
    assert restored(trainer, state, joined(header, content, data))
    assert content.keys() == FIELDS.keys()
    taken = set()
    for name in content:
        rest = {key: value for key, value in content.items() if key != name}
        assert not restored(trainer, state, joined(header, rest, data))
        for value in VALUES:
            if restored(trainer, state, joined(header, {**content, name: value}, data)):
                taken.add(name)
    # what a run that goes on does not depend on, or what no other number of the state tells
    free = {"train_loss", "loss_sum", "supervised", "without_prompt", "stale", "not_finite", "prompt_file", "data"}
    same = {"scaler"}  # None, as it is without fp16
    assert taken <= free | same | {"rate", "max_grad_norm", "max_tokens_per_pass", "num_threads"}
    assert not restored(trainer, state, joined(header, {**content, "step": 3}, data))


def test_edited_headers_and_tensors_are_refused(run):
    trainer, state = run
    header, content, data = parts_of(state.read_bytes())
    for name in [name for name in header if name != "__metadata__"]:
        spec = header[name]
        begin, end = spec["data_offsets"]
        shapes = [[], [1], [1, *spec["shape"]], [2**62, 2**62], [-1], "x", None, [True] * len(spec["shape"])]
        edits = [{"shape": shape} for shape in shapes if shape != spec["shape"]]
        edits += [{"dtype": dtype} for dtype in ("F16", "BOOL", 3, None)]
        edits += [{"data_offsets": offsets} for offsets in ([begin, end + 4], [end, begin], [0], None)]
        for edit in edits:
            assert not restored(trainer, state, joined({**header, name: spec | edit}, content, data)), (name, edit)
        others = {key: value for key, value in header.items() if key != name}
        assert not restored(trainer, state, joined(others, content, data))
    not_a_number = struct.pack("<f", float("nan"))
    begin, end = header["prompt"]["data_offsets"]
    assert not restored(trainer, state, joined(header, content, data[:begin] + not_a_number + data[begin + 4 :]))
    begin, end = header["rng"]["data_offsets"]
    assert not restored(trainer, state, joined(header, content, data[:begin] + b"\xff" * (end - begin) + data[end:]))


def test_every_cut_and_every_flipped_byte_is_refused(run):
    trainer, state = run
    raw = state.read_bytes()
    for place in range(0, len(raw), max(1, len(raw) // 150)):
        assert not restored(trainer, state, raw[:place])
        flipped = bytearray(raw)
        flipped[place] ^= 1 + place % 255
        assert not restored(trainer, state, bytes(flipped)) or parts_of(bytes(flipped)) == parts_of(raw)
    assert not restored(trainer, state, raw + b"\0")
    assert not restored(trainer, state, struct.pack("<Q", 2**62) + raw[8:])
    assert not restored(trainer, state, struct.pack("<Q", 10**5) + b"[" * 10**5)
