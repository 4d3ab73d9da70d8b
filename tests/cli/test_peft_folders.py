"""`export --to peft` and `import`, and adapters in the place of prompt files, compared with PEFT itself."""

import json

import numpy
import peft
import pytest
import torch
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.models import FAMILIES, VOCAB_SIZE, make_model, make_tokenizer
from helpers.prompts import save_for
from transformers import AutoModelForCausalLM, AutoTokenizer

import softprompt
from softprompt import SoftPromptEmbedding, SoftPromptModel, load_prompt

GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    """A saved base of each family with its tokenizer."""
    make_model(request.param).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def command(capfd, work):
    return lambda program, *argv: run_command(capfd, program, *argv)


def rows():
    ids = torch.randint(4, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_an_export_is_an_adapter_for_peft(folder, command):
    save_for(folder, "p.safetensors", count=6)
    done = command("export", "p.safetensors", "--to", "peft", "out/adapter")
    assert done.status == 0 and "out/adapter" in done.out, done.err
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = SoftPromptModel(base, SoftPromptEmbedding.from_tensor(load_prompt("p.safetensors").weight))
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    models = [
        peft.PeftModel.from_pretrained(alone, "out/adapter"),
        peft.AutoPeftModelForCausalLM.from_pretrained("out/adapter"),
    ]
    with torch.no_grad():
        expected = ours(**rows()).logits
        for theirs in models:
            # fp32 roundings of the same sums
            assert (theirs.eval()(**rows()).logits - expected).abs().max() < 1e-5 * expected.abs().max()
            assert torch.equal(theirs.generate(**rows(), **GREEDY), ours.generate(**rows(), **GREEDY))
        assert (ours(**rows()).logits[:, 6:] - base(**rows()).logits).abs().max() > 1e-3


def test_an_export_comes_back_whole(model_folder, command):
    save_for(model_folder, "p.safetensors", template="plain")
    assert command("export", "p.safetensors", "--to", "peft", "adapter").status == 0
    assert load_prompt("adapter").metadata == load_prompt("p.safetensors").metadata
    assert command("import", "adapter", "--prompt-file", "q.safetensors").status == 0
    with open("p.safetensors", "rb") as one, open("q.safetensors", "rb") as other:
        assert one.read() == other.read()
    again = ("import", "adapter", "--prompt-file", "r.safetensors")
    assert_one_line(command(*again, "--template", "plain"), "--template", "leave")
    assert_one_line(command(*again, "--task", 0), "--task", "holds one prompt")
    answers = [
        command("generate", "--prompt-file", each, "--no-do-sample", "what?").out
        for each in ("p.safetensors", "adapter")
    ]
    assert answers[0] == answers[1] != ""


@pytest.fixture
def strangers(model_folder, work):
    """An adapter that PEFT trained on the base, or so it says."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(make_model("bloom"), config)
    model.base_model.name_or_path = "somebody/base"
    torch.manual_seed(1)
    with torch.no_grad():
        model.prompt_encoder.default.embedding.weight.normal_()
    model.save_pretrained(work / "theirs")
    config = json.loads((work / "theirs" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/base"
    (work / "theirs" / "adapter_config.json").write_text(json.dumps(config))
    return "theirs"


def test_a_strangers_adapter_answers(strangers, model_folder, command):
    done = command("generate", "--prompt-file", strangers, "--model", model_folder, "--no-do-sample", "what?")
    assert done.status == 0 and "does not say on which weights" in done.err
    assert_one_line(command("generate", "--prompt-file", strangers, "x"), "somebody/base", "--model")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), strangers).eval()
    batch = tokenizer("Human: what?\n\nAssistant: ", add_special_tokens=False, return_tensors="pt")
    limit = 128  # text tokens, under the tutorial's template
    ids = theirs.generate(**batch, max_new_tokens=limit - batch["input_ids"].shape[1], do_sample=False)[0]
    text = tokenizer.decode(ids[batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert done.out.strip() == text.strip() != ""
    loaded = softprompt.load(strangers, model=model_folder)
    assert loaded.answer("what?", do_sample=False, max_length=limit).strip() == text.strip()


def test_a_strangers_adapter_is_inspected_evaluated_and_started_from(strangers, model_folder, command, rows_file):
    done = command("inspect", strangers, "--model", model_folder)
    assert done.status == 0 and "PROMPT_TUNING" in done.out and "somebody/base" in done.out, done.err
    scored = ("--data", rows_file, "--eval-generate", 0)
    done = command("evaluate", strangers, "--model", model_folder, *scored)
    assert done.status == 0 and strangers in done.out, done.err
    trained = ("--model", model_folder, "--data", rows_file, "--max-steps", 1, "--prompt-file", "new.safetensors")
    done = command("train", *trained, "--init-from", strangers)
    assert done.status == 0, done.err
    assert load_prompt("new.safetensors").weight.shape == load_prompt(strangers).weight.shape


def test_import_binds_an_adapter_to_a_base(strangers, model_folder, command):
    assert_one_line(command("import", strangers), "somebody/base", "--model")
    done = command(
        "import", strangers, "--model", model_folder, "--template", "plain", "--prompt-file", "q.safetensors"
    )
    assert done.status == 0 and "plain" in done.out, done.err
    file = load_prompt("q.safetensors")
    assert not file.adapter and file.facts.template == "plain" and file.facts.base == str(model_folder)
    assert torch.equal(file.weight, load_prompt(strangers).weight)
    assert command("generate", "--prompt-file", "q.safetensors", "--model", model_folder, "what?").status == 0
    assert_one_line(
        command("import", strangers, "--model", model_folder, "--prompt-file", "q.safetensors"), "--overwrite"
    )


def test_import_names_the_task(model_folder, command):
    config = peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=2)
    peft.get_peft_model(make_model("bloom"), config).save_pretrained("tasks")
    to = ("--model", model_folder, "--prompt-file", "q.safetensors")
    assert_one_line(command("import", "tasks", *to), "2 tasks", "--task")
    assert_one_line(command("generate", "--prompt-file", "tasks", "--model", model_folder, "x"), "2 tasks", "--task")
    assert command("import", "tasks", "--task", 1, *to).status == 0
    assert torch.equal(load_prompt("q.safetensors").weight, load_prompt("tasks", task=1).weight)


def test_an_array_goes_out_and_comes_in(model_folder, command):
    save_for(model_folder, "p.safetensors")
    assert command("export", "p.safetensors", "--to", "npy", "p.npy").status == 0
    assert numpy.array_equal(numpy.load("p.npy"), load_prompt("p.safetensors").weight.numpy())
    assert_one_line(command("export", "p.safetensors", "--to", "npy", "p.npy"), "--overwrite")
    assert_one_line(command("import", "p.npy", "--prompt-file", "q.safetensors"), "does not say which base", "--model")
    assert command("import", "p.npy", "--model", model_folder, "--prompt-file", "q.safetensors").status == 0
    assert torch.equal(load_prompt("q.safetensors").weight, load_prompt("p.safetensors").weight)


def test_a_width_that_does_not_fit_is_refused(model_folder, command):
    numpy.save("p.npy", numpy.ones((3, 7), "f4"))
    assert_one_line(command("import", "p.npy", "--model", model_folder), "hidden size 7", "hidden size 32")


def test_what_is_there_stays(model_folder, command, work):
    save_for(model_folder, "p.safetensors")
    save_for(model_folder, "inside.safetensors", placement="system", template="chat", template_text="x")
    assert command("export", "p.safetensors", "--to", "peft", "adapter").status == 0
    (work / "others").mkdir()
    (work / "others" / "a file").write_text("mine")
    run = command("export", "p.safetensors", "--to", "peft", "run")  # an adapter in a folder that holds more
    assert run.status == 0
    (work / "run" / "checkpoint-9").mkdir()
    before = snapshot(work)
    export = ("export", "p.safetensors", "--to", "peft")
    assert_one_line(command(*export, "adapter"), "already there", "--overwrite")
    assert_one_line(command(*export, "others", "--overwrite"), "holds other files")
    assert_one_line(command(*export, "run", "--overwrite"), "holds other files")
    assert_one_line(command(*export, "p.safetensors"), "--to", "is a file")
    assert_one_line(command("export", "gone.safetensors", "--to", "peft", "new"), "no such prompt file")
    assert_one_line(command("export", "inside.safetensors", "--to", "peft", "new"), "system turn", "--placement")
    assert snapshot(work) == before
    assert command(*export, "adapter", "--overwrite").status == 0
    assert snapshot(work) == before
