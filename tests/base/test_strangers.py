"""A model folder of a stranger runs none of its code and fetches nothing, whatever is typed at a question."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import assert_one_line, run_command

from softprompt import SoftPromptEmbedding, save_prompt
from softprompt.base.loading import load_base

CPU = torch.device("cpu")
CODE = """
open({trace!r}, "w").write("ran")
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast
class OwnConfig(BloomConfig):
    model_type = "ownlm"
class OwnModel(BloomForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes))


@pytest.fixture
def trace(tmp_path):
    """Where code that ran would leave its trace."""
    return tmp_path / "trace"


@pytest.fixture
def folder(tmp_path, model_folder, trace, monkeypatch):
    """A base with Python beside it, and a user who types yes to everything."""
    folder = tmp_path / "stranger"
    shutil.copytree(model_folder, folder)
    (folder / "own.py").write_text(CODE.format(trace=str(trace)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 10))
    return folder


def make_config_own(folder):
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(folder / "config.json", model_type="ownlm", architectures=["OwnModel"], auto_map=own)


@pytest.mark.parametrize("program", ["train", "generate", "evaluate", "inspect", "sweep"])
def test_a_model_with_code_of_its_own_is_refused(capfd, program, folder, trace, tmp_path, rows_file):
    make_config_own(folder)
    prompt = tmp_path / "prompt.safetensors"
    data = ["--data", rows_file] if program in ("train", "sweep", "evaluate") else []
    if program in ("generate", "evaluate", "inspect"):
        # the file of a stranger names the base
        save_prompt(prompt, SoftPromptEmbedding(torch.ones(2, 4)), {"base": str(folder)})
        result = run_command(capfd, program, "--prompt-file", prompt, *data)
        assert_one_line(result, folder, "nothing was trained here", f"--model {folder}")
    result = run_command(capfd, program, "--prompt-file", prompt, "--model", folder, *data)
    assert_one_line(result, folder, "never runs", "config.json", "auto_map")
    assert not trace.exists()


def test_a_tokenizer_with_code_of_its_own_does_not_run_it(folder, trace):
    own = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    try:
        load_base(str(folder), device=CPU, precision="fp32")
    except ValueError as error:
        assert "never runs" in str(error)
    assert not trace.exists()


def test_own_code_beside_a_known_model_is_not_needed_and_not_run(folder, trace):
    edit(folder / "config.json", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(trace=str(trace)))
    base = load_base(str(folder), device=CPU, precision="fp32")
    assert type(base.model).__module__.startswith("transformers.")
    assert not trace.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_an_attention_kernel_that_a_config_names_is_not_fetched(folder, key):
    edit(folder / "config.json", **{key: "someone/kernel"})
    base = load_base(str(folder), device=CPU, precision="fp32")
    assert base.model.config._attn_implementation in ("eager", "sdpa")


def test_no_call_of_transformers_loaders_leaves_the_question_open():
    root = Path(__file__).parents[2]
    calls = [
        (path.name, node.lineno, {keyword.arg: keyword.value for keyword in node.keywords})
        for folder in ("softprompt", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition("Auto")[2].endswith(".from_pretrained")
        if ast.unparse(node.func).startswith("Auto") or ".Auto" in ast.unparse(node.func)
    ]
    assert len(calls) > 5
    for name, line, keywords in calls:
        assert ast.unparse(keywords.get("trust_remote_code", ast.Constant(None))) == "False", f"{name}:{line}"
