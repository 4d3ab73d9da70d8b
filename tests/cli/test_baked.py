"""`export --to baked`: plain transformers answers from ids as the prompt does, in every family that packs."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.families import CONFIGS, VOCAB_SIZE, make_family
from helpers.models import make_tokenizer
from helpers.prompts import save_for
from helpers.tokenizers import small_tokenizer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CodeGenConfig,
    CodeGenForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from softprompt import SoftPromptEmbedding, SoftPromptModel, load, load_prompt
from softprompt.data.row import Row

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
COUNT = 5


def codegen():
    """A family that cannot pack, and whose head is not tied and has a bias."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4}
    model = CodeGenForCausalLM(CodeGenConfig(**sizes, bos_token_id=1, eos_token_id=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return model.eval()


def llama(rows, *, tied=False):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "tie_word_embeddings": tied}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, **shape, **special))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    with torch.no_grad():
        model.lm_head.weight[VOCAB_SIZE:] = 0.0  # as of ids that no text of the training had
    return model.eval()


def read(path):
    return json.loads(Path(path).read_text("utf-8"))


def save(model, tokenizer, folder, **settings):
    model.save_pretrained(folder, **settings)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(capfd, work):
    return lambda program, *argv: run_command(capfd, program, *argv)


@pytest.fixture
def bake(command):
    def call(*prompts, to="copy"):
        done = command("export", *prompts, "--to", "baked", to)
        assert done.status == 0, done.err
        listed = read(f"{to}/prompts.json")
        return AutoModelForCausalLM.from_pretrained(to).eval(), listed, done.out

    return call


def assert_same_answers(folder, prompt_file, copy, listed, *, rows=3):
    """Greedy ids of the copy from ids are those of the prompt on the base."""
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    file = load_prompt(prompt_file)
    ours = SoftPromptModel(
        base, SoftPromptEmbedding.from_tensor(file.weight), file.facts.before_ids, file.facts.after_ids
    )
    ids = torch.randint(4, VOCAB_SIZE, (rows, 7), generator=torch.Generator().manual_seed(1))
    settings = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 3}
    expected = ours.generate(ids, eos_token_id=2, **settings)
    front = torch.tensor(listed["front_ids"]).expand(rows, -1)
    theirs = copy.generate(torch.cat([front, ids], 1), attention_mask=None, eos_token_id=2, **settings)
    assert torch.equal(theirs[:, front.shape[1] :], expected)
    with torch.no_grad():
        assert (ours(ids).logits[:, front.shape[1] :] - base(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize("name", [*CONFIGS, "codegen"])
def test_greedy_ids_are_those_of_the_prompt(name, tmp_path, bake):
    folder = save(codegen() if name == "codegen" else make_family(name), make_tokenizer(), tmp_path / "base")
    save_for(folder, "p.safetensors", count=COUNT, scale=2.0)
    copy, listed, _ = bake("p.safetensors")
    assert listed["p"]["prompt_ids"] == [*range(VOCAB_SIZE, VOCAB_SIZE + COUNT)]
    assert copy.get_input_embeddings().weight.shape[0] == copy.config.vocab_size == VOCAB_SIZE + COUNT
    assert_same_answers(folder, "p.safetensors", copy, listed["p"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [VOCAB_SIZE + 2, VOCAB_SIZE + 60], ids=["some", "enough"])
def test_rows_that_no_token_has_are_used_first(rows, tied, tmp_path, bake):
    folder = save(llama(rows, tied=tied), make_tokenizer(), tmp_path / "base")
    save_for(folder, "p.safetensors", count=COUNT)
    copy, listed, _ = bake("p.safetensors")
    assert listed["p"]["prompt_ids"] == [*range(VOCAB_SIZE, VOCAB_SIZE + COUNT)]
    assert copy.config.vocab_size == max(rows, VOCAB_SIZE + COUNT)
    assert_same_answers(folder, "p.safetensors", copy, listed["p"])


def test_tokens_that_the_base_reserves_are_used_first(tmp_path, bake):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<|reserved_special_token_{place}|>" for place in range(8)], special_tokens=True)
    folder = save(llama(VOCAB_SIZE + 8), tokenizer, tmp_path / "base")
    save_for(folder, "p.safetensors", count=COUNT)
    copy, listed, _ = bake("p.safetensors")
    assert listed["p"]["tokens"][0] == "<|reserved_special_token_0|>" and copy.config.vocab_size == VOCAB_SIZE + 8
    assert (tmp_path / "base" / "tokenizer.json").exists()
    assert_same_answers(folder, "p.safetensors", copy, listed["p"])


def test_several_prompts_fit_one_copy(tmp_path, bake, command):
    folder = save(make_family("gemma2"), make_tokenizer(), tmp_path / "base")
    save_for(folder, "a.safetensors", count=3, seed=1)
    save_for(folder, "b.safetensors", count=4, seed=2)
    copy, listed, out = bake("a.safetensors", "b.safetensors")
    assert [*listed] == ["a", "b"] and not {*listed["a"]["prompt_ids"]} & {*listed["b"]["prompt_ids"]}
    for name in "ab":
        assert_same_answers(folder, f"{name}.safetensors", copy, listed[name])
        assert os.path.exists(f"copy/{name}.jinja") and f"{name}: " in out
    os.mkdir("other")
    save_for(folder, "other/a.safetensors", count=3)
    again = command("export", "a.safetensors", "other/a.safetensors", "--to", "baked", "new")
    assert_one_line(again, "rename it")


def test_the_leak_of_a_tied_head_is_measured_and_shut(tmp_path, bake):
    """Vectors that point to where the base predicts from are found most probable themselves."""
    folder = save(llama(VOCAB_SIZE, tied=True), make_tokenizer(), tmp_path / "base")
    save_for(folder, "p.safetensors", count=COUNT, scale=8.0)
    copy, listed, out = bake("p.safetensors")
    assert_same_answers(folder, "p.safetensors", copy, listed["p"])
    ids = torch.tensor([[*listed["p"]["front_ids"], 10, 11]])
    with torch.no_grad():
        logits = copy(copy.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=None)).logits[0]
    assert logits[len(ids[0]) :].argmax(-1).ge(VOCAB_SIZE).any()  # or nothing leaks here
    assert "be chosen at 0 of" not in out
    copy.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.generation_config.suppress_tokens == listed["p"]["prompt_ids"]
    assert_same_answers(folder, "p.safetensors", again, listed["p"])


def test_only_the_shard_that_changes_is_new(tmp_path, bake):
    folder = save(make_family("llama"), make_tokenizer(), tmp_path / "base", max_shard_size="40KB")
    before = snapshot(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    save_for(folder, "p.safetensors", count=COUNT)
    copy, listed, out = bake("p.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    changed = {index["model.embed_tokens.weight"], index["lm_head.weight"]}
    for shard in shards:
        assert os.path.samefile(shard, f"copy/{shard.name}") == (shard.name not in changed)
        assert (shard.name in out) == (shard.name in changed)
    assert snapshot(folder) == before
    sizes = [tensor.numel() * 4 for shard in shards for tensor in load_file(f"copy/{shard.name}").values()]
    assert read("copy/model.safetensors.index.json")["metadata"]["total_size"] == sum(sizes)
    assert_same_answers(folder, "p.safetensors", copy, listed["p"])


def test_rounding_is_said(tmp_path, bake):
    folder = save(llama(VOCAB_SIZE).to(torch.bfloat16), make_tokenizer(), tmp_path / "base")
    save_for(folder, "p.safetensors", count=COUNT)
    _, listed, out = bake("p.safetensors")
    assert "stored in bfloat16" in out
    rows = load_file("copy/model.safetensors")["model.embed_tokens.weight"][listed["p"]["prompt_ids"]]
    assert torch.equal(rows, load_prompt("p.safetensors").weight.to(torch.bfloat16))


@pytest.mark.parametrize("placement", ["front", "system"])
@pytest.mark.parametrize("template", [CHATML, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize("kind", ["bytes", "first", "always", "prepend", "rstrip"])
def test_the_template_of_the_copy_writes_the_ids_of_training(kind, template, placement, tmp_path, command, rows_file):
    tokenizer = small_tokenizer(kind, template)
    folder = save(llama(len(tokenizer)), tokenizer, tmp_path / "base")
    steps = ("--max-steps", 1, "--virtual-tokens", 4, "--eval-fraction", 0)
    written = ("--system", "be kind", "--placement", placement, "--prompt-file", "p.safetensors")
    done = command("train", "--model", folder, "--data", rows_file, *steps, *written)
    assert done.status == 0, done.err
    done = command("export", "p.safetensors", "--to", "baked", "copy")
    assert done.status == 0, done.err
    if placement == "system" and kind in ("always", "prepend"):
        # these tokenizers begin a word behind every added token, so no text gives the ids of the system text's middle
        assert "no chat template writes the ids of training" in done.out and not Path("copy/p.jinja").exists()
        return
    assert "p.jinja, also the tokenizer's own" in done.out, done.out
    listed = read("copy/prompts.json")["p"]
    theirs = AutoTokenizer.from_pretrained("copy")
    loaded = load("p.safetensors", model=folder)
    for question in ("Where is Rome?", "two\n\nlines"):
        turns = [{"role": "user", "content": question}]
        found = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        (behind,) = loaded._encoder.questions([Row.asked(question)])
        assert found == [*listed["front_ids"], *behind]
    if placement == "front":
        ids = theirs("".join(listed["tokens"]) + "a")["input_ids"]
        assert ids[:4] == listed["prompt_ids"]  # no bos comes in front


def test_a_tutorial_prompt_has_a_template_too(model_folder, bake):
    save_for(model_folder, "p.safetensors")
    bake("p.safetensors")
    tokenizer = AutoTokenizer.from_pretrained("copy")
    turns = [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "it"},
        {"role": "user", "content": "x"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    front = "".join(read("copy/prompts.json")["p"]["tokens"])
    assert text == front + "Human: what?\n\nAssistant: it</s>Human: x\n\nAssistant: "
    assert Path("copy/p.prefix.txt").read_text() == front


def test_a_pickled_base_is_baked(tmp_path, bake):
    model = llama(VOCAB_SIZE)
    folder = save(model, make_tokenizer(), tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    save_for(folder, "p.safetensors", count=COUNT)
    copy, listed, _ = bake("p.safetensors")
    assert not os.path.exists("copy/pytorch_model.bin")
    assert_same_answers(folder, "p.safetensors", copy, listed["p"])


def test_what_cannot_be_baked_is_refused_in_one_line(tmp_path, command, work):
    folder = save(llama(VOCAB_SIZE), make_tokenizer(), tmp_path / "base")
    save_for(folder, "p.safetensors", count=COUNT)
    config = json.loads((folder / "config.json").read_text())
    before = snapshot(work)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size_per_layer_input": 8}))
    assert_one_line(command("export", "p.safetensors", "--to", "baked", "copy"), "inside its layers")
    assert snapshot(work) == before
