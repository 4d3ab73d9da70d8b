"""Adapters that PEFT saved, read as prompts: the same logits as PEFT's own; and what is refused, in one line."""

import io
import json
import zipfile

import numpy
import peft
import pytest
import torch
from helpers.models import HIDDEN_SIZE, VOCAB_SIZE, make_model
from safetensors.torch import load_file, save_file

from softprompt import SoftPromptEmbedding, SoftPromptModel, UserError, load_prompt
from softprompt.prompt.adapter import array_bytes

P = 5
SIZES = {"task_type": "CAUSAL_LM", "num_virtual_tokens": P}
MASKS = {"cpt_token_ids": [5, 6, 7, 8, 9], "cpt_mask": [1] * P, "cpt_tokens_type_mask": [1, 2, 3, 4, 4]}
CONFIGS = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(**SIZES),
    "P_TUNING": lambda: peft.PromptEncoderConfig(**SIZES, encoder_hidden_size=16),
    "P_TUNING of an LSTM": lambda: peft.PromptEncoderConfig(
        **SIZES, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "CPT": lambda: peft.CPTConfig(**SIZES, **MASKS),
    "MULTITASK_PROMPT_TUNING": lambda: peft.MultitaskPromptTuningConfig(**SIZES, num_tasks=3, num_ranks=2),
}


def save_adapter(config, folder, *, safe=True, family="llama"):
    """An adapter with random numbers in all that trains, as PEFT saves it; returns PEFT's model."""
    model = peft.get_peft_model(make_model(family), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_(std=0.5)
    model.eval().save_pretrained(folder, safe_serialization=safe)
    return model


def ids():
    return torch.randint(4, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(3))


def logits_of(file, family="llama"):
    model = SoftPromptModel(make_model(family), SoftPromptEmbedding.from_tensor(file.weight))
    with torch.no_grad():
        return model(ids()).logits


def refusal(*arguments, **settings):
    with pytest.raises(UserError) as caught:
        load_prompt(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def adapter(tmp_path):
    """A folder of prompt tuning, and what rewrites its config and its tensors."""
    save_adapter(CONFIGS["PROMPT_TUNING"](), tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_gives_the_logits_of_peft(method, safe, tmp_path):
    save_adapter(CONFIGS[method](), tmp_path, safe=safe)
    kind = method.split()[0]
    tasks = [0, 2] if kind == "MULTITASK_PROMPT_TUNING" else [None]
    loaded = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path).eval()
    seen = []
    for task in tasks:
        file = load_prompt(tmp_path, task=task)
        assert file.adapter == kind and file.weight.shape == (P, HIDDEN_SIZE) and file.facts.template == ""
        named = {} if task is None else {"task_ids": torch.full((2,), task)}
        with torch.no_grad():
            theirs = loaded(input_ids=ids(), **named).logits
        # fp32 roundings of the same sums
        assert (logits_of(file) - theirs).abs().max() < 1e-5 * theirs.abs().max()
        seen.append(theirs)
    assert len(seen) == 1 or (seen[0] - seen[1]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_widened(dtype, adapter):
    path = adapter / "adapter_model.safetensors"
    weight = load_file(path)["prompt_embeddings"].to(dtype)
    save_file({"prompt_embeddings": weight}, path)
    assert torch.equal(load_prompt(adapter).weight, weight.float())


def test_the_tasks_of_several_are_named(tmp_path, adapter):
    save_adapter(CONFIGS["MULTITASK_PROMPT_TUNING"](), tmp_path / "tasks")
    assert "3 tasks, 0 to 2: name one" in refusal(tmp_path / "tasks")
    assert "there is no 3" in refusal(tmp_path / "tasks", task=3)
    assert "holds one prompt" in refusal(adapter, task=0)


REFUSED = {
    "PREFIX_TUNING": (lambda: peft.PrefixTuningConfig(**SIZES), "keys and values of every layer"),
    "LORA": (
        lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
        "type LORA, which is no prompt",
    ),
    "modules": (lambda: peft.PromptTuningConfig(**SIZES, modules_to_save=["lm_head"]), "trained weights of the base"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_adapters_that_are_no_prompts_are_named(name, tmp_path):
    config, message = REFUSED[name]
    save_adapter(config(), tmp_path)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "CARTRIDGE"}, "keys and values of every layer"),
        ({"peft_type": None}, "type None"),
        ({"peft_type": ["x"] * 99}, "which is no prompt"),
        ({"peft_type": "\x1b[31m"}, "\\x1b"),
        ({"num_transformer_submodules": 2}, "an encoder and a decoder"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "an encoder and a decoder"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"token_dim": HIDDEN_SIZE // 2}, "prefix tuning"),
        ({"num_virtual_tokens": P + 1}, "says [6, 32]"),
        ({"base_model_name_or_path": "x" * (1 << 21)}, "characters"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "no task has a prompt"),
    ],
    ids=str,
)
def test_configs_that_are_refused(changes, message, adapter):
    change(adapter, **changes)
    assert message in refusal(adapter)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(P, HIDDEN_SIZE)}, "holds no 'prompt_embeddings'"),
        ({"prompt_embeddings": torch.ones(P, HIDDEN_SIZE), "classifier": torch.ones(1)}, "'classifier' besides"),
        ({"prompt_embeddings": torch.ones(P)}, "[5]"),
        ({"prompt_embeddings": torch.ones(0, HIDDEN_SIZE)}, "empty"),
        ({"prompt_embeddings": torch.full((P, HIDDEN_SIZE), float("nan"))}, "NaN"),
        ({"prompt_embeddings": torch.full((P, HIDDEN_SIZE), 1e30)}, "no base can compute"),
    ],
    ids=["other name", "more", "flat", "empty", "nan", "large"],
)
def test_tensors_that_are_refused(tensors, message, adapter):
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert message in refusal(adapter)


def test_damaged_folders(adapter):
    path = adapter / "adapter_model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    assert "cut short" in refusal(adapter)
    config = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text("[]")
    assert "not a JSON object" in refusal(adapter)
    (adapter / "adapter_config.json").write_text(config)
    path.unlink()
    assert "no adapter_model.safetensors" in refusal(adapter)
    (adapter / "adapter_config.json").unlink()
    assert "adapter_config.json" in refusal(adapter)


class Evil:
    def __reduce__(self):
        return (print, ("a stranger's code ran",))


@pytest.mark.parametrize(
    "content",
    [Evil(), {"prompt_embeddings": Evil()}, {"prompt_embeddings": 3}, [1]],
    ids=["whole", "inside", "number", "list"],
)
def test_pickles_run_no_code(content, adapter, capsys):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(content, adapter / "adapter_model.bin")
    refusal(adapter)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1, 1).expand(1 << 20, 1 << 12), torch.ones(P, HIDDEN_SIZE).to_sparse()],
    ids=["wide", "sparse"],
)
def test_pickles_of_odd_tensors(tensor, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": tensor}, adapter / "adapter_model.bin")
    refusal(adapter)


def test_a_compressed_pickle_is_no_bomb(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    plain = io.BytesIO()
    torch.save({"prompt_embeddings": torch.zeros(1 << 12, 1 << 12)}, plain)
    with (
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(adapter / "adapter_model.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for each in old.infolist():
            new.writestr(each.filename, old.read(each))
    refusal(adapter)


def test_a_file_of_an_adapter_alone_is_answered_with_its_folder(adapter):
    assert "give the folder that it is in" in refusal(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_arrays(dtype, tmp_path):
    weight = numpy.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
    numpy.save(tmp_path / "p.npy", weight)
    file = load_prompt(tmp_path / "p.npy")
    assert file.adapter == "NumPy array" and numpy.array_equal(file.weight.numpy(), weight.astype("f4"))
    (tmp_path / "q.npy").write_bytes(array_bytes(file.weight))
    again = numpy.load(tmp_path / "q.npy", allow_pickle=False)
    assert again.dtype == numpy.float32 and numpy.array_equal(again, file.weight.numpy())
    numpy.lib.format.write_array((tmp_path / "r.npy").open("wb"), weight, version=(2, 0))
    assert torch.equal(load_prompt(tmp_path / "r.npy").weight, file.weight)


def test_arrays_that_are_refused(tmp_path):
    path = tmp_path / "p.npy"
    for array in (
        numpy.ones(3),
        numpy.ones((2, 3), "i4"),
        numpy.asfortranarray(numpy.ones((2, 3))),
        numpy.ones((0, 3)),
    ):
        numpy.save(path, array)
        assert "not a NumPy file of a float matrix" in refusal(path)
    numpy.save(path, numpy.array([object()]), allow_pickle=True)
    refusal(path)
    numpy.save(path, numpy.ones((2, 3)))
    raw = path.read_bytes()
    for content in (raw[:-1], raw + b"x", raw[:9], raw.replace(b"(2, 3)", b"(9, 9)"), b"\x93NUMPY\x01\x00\xff\xff"):
        path.write_bytes(content)
        assert "not a NumPy file of a float matrix" in refusal(path)
