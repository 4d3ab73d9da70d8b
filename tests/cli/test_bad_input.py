"""Whatever is wrong with what the user gives: status 2, one line that names it, and nothing changed on disk."""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from helpers.commands import Result, assert_one_line, run_command, snapshot, start_command
from helpers.models import HIDDEN_SIZE, SPECIAL, VOCAB_SIZE, make_model, make_tokenizer
from helpers.prompts import save_for
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from softprompt import SoftPromptEmbedding, load_prompt, save_prompt
from softprompt.config.commands import TrainConfig
from softprompt.errors import UserError
from softprompt.training.run_folder import check_outputs

GOOD = {"instruction": "Say it", "input": "", "output": "it"}


@pytest.fixture(scope="session")
def small_gpt2(tmp_path_factory):
    """A saved random GPT-2 with a context of 64."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    GPT2LMHeadModel(
        GPT2Config(n_embd=HIDDEN_SIZE, n_layer=1, n_head=4, n_positions=64, vocab_size=VOCAB_SIZE, **SPECIAL)
    ).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def refused(capfd, work, tmp_path, model_folder):
    """Run a command that must be refused and leave every file as it was."""

    def run(program, *argv, wanted) -> Result:
        before = snapshot(tmp_path, model_folder)
        assert len(before) > 3
        result = run_command(capfd, program, *argv)
        assert_one_line(result, *wanted)
        assert result.err.startswith(f"{program}.py: error: ")
        assert snapshot(tmp_path, model_folder) == before
        return result

    return run


@pytest.fixture
def train_refused(refused, model_folder, rows_file):
    """The same for train.py, with good values for whatever is not given; None leaves a flag out."""

    def run(*wanted, extra=(), **options):
        settings = {"model": model_folder, "data": rows_file, "virtual_tokens": 4, "device": "cpu"} | options
        argv = [word for name, value in settings.items() if value is not None for word in (f"--{name}", value)]
        return refused("train", *argv, *extra, wanted=wanted)

    return run


@pytest.fixture
def prompt_file(work, model_folder):
    return save_for(model_folder, work / "prompt.safetensors")


@pytest.fixture
def generate_refused(refused, prompt_file):
    def run(*wanted, extra=(), **options):
        settings = {"instruction": "Say it", "device": "cpu", "precision": "fp32"} | options
        argv = [word for name, value in settings.items() if value is not None for word in (f"--{name}", value)]
        return refused("generate", *argv, *extra, wanted=wanted)

    return run


def test_the_fixtures_are_good(capfd, work, model_folder, rows_file, prompt_file):
    """What the other tests change one thing of does work."""
    flags = ["--data", rows_file, "--model", model_folder, "--virtual-tokens", 4, "--device", "cpu"]
    result = run_command(capfd, "train", *flags, "--max-steps", 1, "--prompt-file", "new.safetensors")
    assert result.status == 0 and result.err == "", result.err
    result = run_command(capfd, "generate", "--instruction", "Say it", "--device", "cpu", "--max-new-tokens", 3)
    assert result.status == 0


# data


@pytest.mark.parametrize("flag", ["data", "eval_data"])
def test_missing_data(train_refused, flag):
    dashed = "--" + flag.replace("_", "-")
    for name in ("gone.jsonl", "./gone", "/gone/rows.csv"):
        train_refused(dashed, name, "no such file", **{flag: name})
    train_refused(dashed, "owner/gone", "cannot be reached", **{flag: "owner/gone"})


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("bad.json", b'[{"instruction": "a", "out', ()),
        ("bad.jsonl", b"\xff\xfe\x00\x01", ()),
        ("bad.csv", b"instruction,output\n\xff,b\n", ()),
        ("bad.parquet", b"PAR1", ()),
        ("bad.txt", b"text", ("suffix",)),
        ("empty.jsonl", b"", ("empty",)),
        ("none.json", b"[]", ()),
        ("none.csv", b"instruction,input,output\n", ()),
    ],
)
def test_unreadable_data(train_refused, work, name, content, wanted):
    (work / name).write_bytes(content)
    train_refused("--data", name, *wanted, data=name)


def test_folder_without_data(train_refused, work):
    (work / "folder").mkdir()
    train_refused("--data", "folder", data="folder")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.mark.parametrize("column", ["instruction", "output"])
def test_rows_without_instruction_or_output(train_refused, work, column):
    lacking = {key: value for key, value in GOOD.items() if key != column}
    name = write_rows(work / "rows.jsonl", [lacking] * 3)
    train_refused(name, "row 1", f"no {column}", data=name)
    train_refused(name, "row 1", f"no {column}", eval_data=name)
    name = write_rows(work / "rows.jsonl", [GOOD | {column: None}] * 3)
    train_refused(name, "row 1", f"no {column}", data=name)


@pytest.mark.parametrize("column", ["instruction", "input", "output"])
@pytest.mark.parametrize("value", [["x"], {"x": "y"}, True], ids=str)
def test_columns_of_the_wrong_type(train_refused, work, column, value):
    name = write_rows(work / "rows.jsonl", [GOOD | {column: value}] * 2)
    train_refused(name, "row 1", column, data=name)


def test_no_usable_row(train_refused, work):
    name = write_rows(work / "rows.jsonl", [GOOD | {"output": " "}] * 3)
    train_refused("--data", name, "no row", data=name)
    train_refused("no row", "--max-length 5", max_length=5)


@pytest.mark.parametrize("text", ["\\ud800", "ok \\udfff"])
def test_text_that_is_no_unicode(train_refused, work, text):
    (work / "rows.jsonl").write_text(f'{{"instruction": "{text}", "input": "", "output": "x"}}\n')
    train_refused("rows.jsonl", data="rows.jsonl")


# the base


@pytest.fixture
def copy(work, model_folder):
    return shutil.copytree(model_folder, work / "copy")


@pytest.fixture(params=["train", "generate"])
def model_refused(request):
    """Both commands refuse a bad `--model`."""
    return request.getfixturevalue(f"{request.param}_refused")


def test_model_that_is_not_there(model_refused, work):
    (work / "file.bin").write_text("")
    (work / "empty").mkdir()
    for name in ("./gone", str(work / "gone"), "file.bin", "empty"):
        model_refused("--model", name, model=name)
    model_refused("--model", "owner/gone", "cannot be reached", model="owner/gone")
    model_refused("builtin:gone", model="builtin:gone")


def test_model_without_weights(model_refused, copy):
    (copy / "model.safetensors").unlink()
    model_refused("copy", "no weights", model="copy")


def test_model_without_config(model_refused, copy):
    (copy / "config.json").unlink()
    model_refused("--model copy", "config.json", model="copy")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "nonesuch"}', "{}"])
def test_model_with_a_bad_config(model_refused, copy, content):
    (copy / "config.json").write_text(content)
    model_refused("--model copy", model="copy")


def test_model_without_tokenizer(model_refused, copy):
    for file in copy.glob("*token*"):
        file.unlink()
    model_refused("--model copy", "tokenizer", model="copy")


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_model_with_a_bad_tokenizer(model_refused, copy, content):
    (copy / "tokenizer.json").write_text(content)
    model_refused("--model copy", "tokenizer", model="copy")


def test_model_whose_tokenizer_has_no_eos(model_refused, copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    model_refused("--model copy", "eos", model="copy")


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_that_are_no_causal_lm(model_refused, work, family):
    if family == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE, **sizes))
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB_SIZE, **sizes))
    model.save_pretrained(work / family)
    make_tokenizer().save_pretrained(work / family)
    model_refused(f"--model {family}", type(model).__name__, "not a causal", model=family)


def test_model_that_lacks_tensors(model_refused, copy):
    tensors = load_file(copy / "model.safetensors")
    name = "transformer.h.1.mlp.dense_h_to_4h.weight"
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    result = model_refused("copy", model="copy")
    assert name in result.err or "another base" in result.err


def test_training_names_the_tensor_that_lacks(train_refused, copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["transformer.h.1.mlp.dense_h_to_4h.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    train_refused("--model copy", "lack 1 tensor", "transformer.h.1.mlp.dense_h_to_4h.weight", model="copy")


@pytest.mark.parametrize("length", [0, 5, 100, 5000])
def test_model_with_truncated_weights(model_refused, copy, length):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    model_refused("copy", model="copy")


def test_model_with_weights_of_another_shape(train_refused, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    train_refused("--model copy", "word_embeddings", model="copy")


@pytest.mark.parametrize("content", [b"", b"text", b"not a pickle"])
def test_model_that_is_a_bad_pickle(model_refused, copy, content):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(content)
    model_refused("copy", model="copy")


def test_pickle_that_would_run_code(train_refused, copy, work):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(work / "exploded"),))

    (copy / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, copy / "pytorch_model.bin")
    train_refused("copy", model="copy")
    assert not (work / "exploded").exists()


# the prompt


@pytest.mark.parametrize("count", [0, -1])
def test_virtual_tokens_below_one(train_refused, count):
    train_refused("--virtual-tokens", str(count), virtual_tokens=count)


@pytest.mark.parametrize("init", ["text", "vocab", "random"])
@pytest.mark.parametrize("count", [VOCAB_SIZE + 1, 10**9])
def test_virtual_tokens_beyond_the_vocabulary(train_refused, init, count):
    train_refused(f"--virtual-tokens {count}", str(VOCAB_SIZE), virtual_tokens=count, init=init)


@pytest.mark.parametrize("init", ["text", "vocab", "random"])
@pytest.mark.parametrize("count", [64, 65, 200, 10**9])
def test_virtual_tokens_beyond_the_context(train_refused, small_gpt2, init, count):
    train_refused(f"{count} virtual tokens", "64", virtual_tokens=count, init=init, model=small_gpt2)


def test_prompt_and_text_beyond_the_context(train_refused, small_gpt2, work):
    asked = len("Human: Say it\n\nAssistant: ")
    name = write_rows(work / "rows.jsonl", [GOOD, GOOD | {"output": "y" * (64 - 4 - asked)}])  # the eos is too much
    train_refused("--max-length", "4 virtual tokens", "61 text tokens", "context of 64", model=small_gpt2, data=name)


def test_held_out_text_beyond_the_context(train_refused, small_gpt2, work):
    name = write_rows(work / "rows.jsonl", [GOOD])
    held = write_rows(work / "held.jsonl", [GOOD, GOOD | {"output": "y" * 60}])
    train_refused("--max-length", "context of 64", model=small_gpt2, data=name, eval_data=held)


def test_text_that_just_fits(capfd, small_gpt2, work):
    asked = len("Human: Say it\n\nAssistant: ")
    name = write_rows(work / "rows.jsonl", [GOOD | {"output": "y" * (63 - 4 - asked)}])
    flags = ["--model", small_gpt2, "--data", name, "--virtual-tokens", 4, "--device", "cpu"]
    assert run_command(capfd, "train", *flags).status == 0
    for length, status in ((60, 0), (61, 2)):
        flags = ["--instruction", "Say it", "--device", "cpu", "--max-length", length]
        assert run_command(capfd, "generate", *flags).status == status


def test_init_text_without_a_token(train_refused):
    train_refused("--init-text", "no token", init_text="")
    train_refused("--init-text", "no token", init_text="", virtual_tokens=None)
    train_refused("--init-text", "no token", init_text="", virtual_tokens=None, init="vocab")
    train_refused("--init-text", init_text="\udcff")


def test_unknown_init(train_refused):
    train_refused("--init", "telepathy", init="telepathy")


def altered(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def not_one(path):
    path.write_text("a text")


def foreign(path):
    save_file({"prompt_embeddings": torch.ones(4, HIDDEN_SIZE)}, path)


def not_finite(path):
    file = load_prompt(path)
    metadata = {key: value for key, value in file.metadata.items() if key != "sha256"}
    raw = torch.full_like(file.weight, float("nan")).numpy().tobytes()
    metadata["sha256"] = hashlib.sha256(raw + json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    tensor = {"dtype": "F32", "shape": [*file.weight.shape], "data_offsets": [0, len(raw)]}
    header = json.dumps({"__metadata__": metadata, "prompt_embeddings": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw)


@pytest.mark.parametrize("damage", [os.unlink, altered, cut, not_one, foreign, not_finite], ids=lambda f: f.__name__)
def test_bad_prompt_files(generate_refused, train_refused, prompt_file, damage):
    damage(prompt_file)
    generate_refused("prompt.safetensors")
    train_refused("prompt.safetensors", init_from="prompt.safetensors", prompt_file="new.safetensors")


def test_prompt_of_another_width(generate_refused, train_refused, prompt_file, model_folder):
    wide = SoftPromptEmbedding.from_tensor(torch.ones(4, 48))
    save_prompt(prompt_file, wide, load_prompt(prompt_file).metadata)
    generate_refused("prompt.safetensors", "hidden size 48", "hidden size 32")
    generate_refused("hidden size 48", extra=["--allow-other-base"])
    train_refused("prompt.safetensors", "hidden size 48", init_from="prompt.safetensors", prompt_file="new.safetensors")


@pytest.fixture
def other_base(work):
    model = make_model("bloom")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(work / "other")
    make_tokenizer().save_pretrained(work / "other")
    return "other"


def test_prompt_of_another_base(capfd, generate_refused, train_refused, model_folder, other_base):
    sides = ("prompt.safetensors", str(model_folder), other_base, "--allow-other-base")
    generate_refused(*sides, model=other_base)
    train_refused(*sides, model=other_base, init_from="prompt.safetensors", prompt_file="new.safetensors")
    flags = ["--instruction", "a", "--device", "cpu", "--model", other_base, "--max-new-tokens", 2]
    allowed = run_command(capfd, "generate", *flags, "--allow-other-base")
    assert allowed.status == 0 and "another base" in allowed.err


def test_prompt_whose_base_is_gone(generate_refused, prompt_file, model_folder):
    save_for(model_folder, prompt_file, base="./moved/away")
    generate_refused("./moved/away", "--model")


def test_prompt_that_names_no_base(generate_refused, work):
    save_prompt("nameless.safetensors", SoftPromptEmbedding.from_tensor(torch.ones(4, HIDDEN_SIZE)), {})
    generate_refused("nameless.safetensors", "--model", prompt_file="nameless.safetensors")


def test_init_from_has_its_own_count(train_refused, prompt_file):
    options = {"init_from": "prompt.safetensors", "prompt_file": "new.safetensors"}
    train_refused("--virtual-tokens 5", "prompt.safetensors", "4", virtual_tokens=5, **options)


# generation


def test_question_that_leaves_no_room(generate_refused):
    asked = len("Human: Say it\n\nAssistant: ")
    for limit in (1, asked - 1, asked):
        generate_refused(f"--max-length {limit}", str(asked), "--max-new-tokens", max_length=limit)
    generate_refused("--max-length 128", "--max-new-tokens", instruction="long " * 40)
    generate_refused("--max-length 128", "--max-new-tokens", input="long " * 40)


@pytest.mark.parametrize("limit", ["max_length", "max_new_tokens"])
def test_generation_beyond_the_context(generate_refused, small_gpt2, work, limit):
    save_for(small_gpt2, work / "gpt2.safetensors", count=30)
    flag = "--" + limit.replace("_", "-")
    generate_refused(flag, "30 virtual tokens", "context of 64", prompt_file="gpt2.safetensors", **{limit: 50})


def test_empty_questions(generate_refused, monkeypatch):
    for text in ("", " ", "\n"):
        generate_refused("--instruction", "empty", instruction=text)
        generate_refused("--instruction", "empty", instruction=None, extra=[text])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        generate_refused("--instruction", "empty", instruction="-")


def test_questions_that_are_no_unicode(generate_refused, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    generate_refused("--instruction", instruction="-")
    generate_refused("--instruction", instruction="\udcff")
    generate_refused("--input", input="\udcff")


@pytest.mark.parametrize(
    ("flag", "value"), [("top_p", 0), ("temperature", 1e-4), ("num_return_sequences", 0), ("max_new_tokens", 0)]
)
def test_generation_values(generate_refused, flag, value):
    generate_refused("--" + flag.replace("_", "-"), **{flag: value})


HUGE = ["1" + "0" * 400, str(2**31), "9" * 5000]


@pytest.mark.parametrize("value", HUGE, ids=["10^400", "2^31", "5000 digits"])
def test_numbers_have_bounds(train_refused, generate_refused, value):
    for name in ("max_steps", "virtual_tokens", "max_length", "save_steps", "eval_generate", "max_tokens_per_pass"):
        train_refused("--" + name.replace("_", "-"), **{name: value})
    for name in ("max_new_tokens", "max_length", "top_k", "num_return_sequences"):
        generate_refused("--" + name.replace("_", "-"), **{name: value})


def test_other_numbers_have_bounds_too(train_refused):
    train_refused("--num-train-epochs", num_train_epochs="1e300")
    train_refused("--seed", "2^63", seed=str(2**63))
    train_refused("--init-text", "100,000", init_text="x" * 100_001)


def test_several_answers_need_sampling(generate_refused):
    for words in (["--no-do-sample"], ["--do_sample", "False"], ["--temperature", 0]):
        extra = [*words, "--num-return-sequences", 2]
        generate_refused("--num-return-sequences 2", "needs --do-sample", extra=extra)


def test_temperature_0_is_greedy(capfd, prompt_file):
    words = ["Say it", "--device", "cpu", "--max-new-tokens", 5]
    results = [
        run_command(capfd, "generate", *words, *extra)
        for extra in (["--no-do-sample"], ["--temperature", 0], ["--temperature", 0, "--seed", 5], ["--do_sample=no"])
    ]
    assert results[0].status == 0 and results[0].out and "seed" not in results[0].err
    assert all(result == results[0] for result in results)


def test_unknown_flags(train_refused, generate_refused):
    train_refused("--lr: no such flag; did you mean --learning-rate?", extra=["--lr", 1])
    generate_refused("--max-token: no such flag; did you mean --max-new-tokens?", extra=["--max_token", 1])
    generate_refused("--nonsense: no such flag; softprompt generate --help lists the flags", extra=["--nonsense"])


# the machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda(model_refused):
    model_refused("--device cuda", device="cuda")
    model_refused("--device cuda:1", device="cuda:1")


def test_unknown_devices(model_refused):
    model_refused("--device toaster", device="toaster")
    model_refused("--device meta", device="meta")


def test_unwritable_outputs(train_refused, work):
    (work / "file").write_text("a file in place of a folder")
    (work / "folder").mkdir()
    for name in ("file/prompt.safetensors", "file/deeper/prompt.safetensors", "/proc/prompt.safetensors", "folder"):
        train_refused("--prompt-file", name, prompt_file=name)
    for name in ("file", "file/run", "/proc/run"):
        train_refused("--run-dir", name, run_dir=name)


def test_one_name_for_prompt_file_and_run_folder(train_refused):
    train_refused("--run-dir", "same", prompt_file="same", run_dir="same")
    train_refused("--run-dir", "same", prompt_file="same", run_dir="./same")


def test_devices_are_not_replaced(work):
    """A rename would put a plain file in the place of /dev/null."""
    os.mkfifo("pipe")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="`prompt_file` pipe"):
            check_outputs(TrainConfig(prompt_file="pipe", overwrite=overwrite))


def test_prompt_file_already_there(train_refused, prompt_file):
    train_refused("--prompt-file prompt.safetensors", "already there", "--overwrite")


def test_run_folder_already_there(train_refused, work):
    (work / "prompt.run" / "checkpoint-3").mkdir(parents=True)
    train_refused("--run-dir prompt.run", "already there", "--resume", "--overwrite")
    (work / "mine").mkdir()
    (work / "mine" / "notes.txt").write_text("foreign")
    train_refused("--run-dir mine", "already there", run_dir="mine")


def test_resume_and_overwrite(train_refused):
    train_refused("--resume", "--overwrite", extra=["--resume", "--overwrite"])


def test_resume_with_nothing_to_go_on_from(train_refused, prompt_file):
    train_refused("--resume", "prompt.run", "prompt.safetensors exists", extra=["--resume"])


# as a user sees it


@pytest.mark.parametrize(
    ("program", "argv", "wanted"),
    [
        ("train", ["--data", "gone.jsonl"], "--data gone.jsonl"),
        ("train", ["--data", "rows.jsonl", "--model", "no-weights"], "no-weights: no weights"),
        ("generate", ["--prompt-file", "cut.safetensors"], "cut.safetensors"),
    ],
)
def test_in_a_process_of_its_own(program, argv, wanted, work, model_folder, tmp_path):
    write_rows(work / "rows.jsonl", [GOOD])
    cut(save_for(model_folder, work / "cut.safetensors"))
    shutil.copytree(model_folder, work / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    before = snapshot(tmp_path)
    process = start_command(program, *argv, cwd=work, stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=120)
    assert_one_line(Result(process.returncode, out, err), wanted)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--early-stopping-patience", ["--early-stopping-patience", 2]),
        ("--eval-steps", ["--eval-steps", 2]),
        ("--save-last", ["--save-last"]),
        ("--eval-generate", ["--eval-generate", 2]),
    ],
)
def test_options_that_need_held_out_rows(train_refused, flag, words):
    train_refused(flag, "--eval-data", extra=words)


@pytest.mark.parametrize("flag", ["--eval-data", "--test-data"])
def test_rows_to_score_that_are_all_copies(train_refused, rows_file, flag):
    train_refused(flag, str(rows_file), "no row is left", extra=[flag, rows_file])
