"""Many prompt files on one base: in Python and in a file of questions, each row gets what it gets alone."""

import json
import os

import pytest
import torch
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.prompts import save_for

from softprompt import LoadedPrompt, LoadedPrompts, UserError, load
from softprompt.answering.batch import generate_batch
from softprompt.base.loading import load_base
from softprompt.config.commands import Sampling
from softprompt.data.row import Row
from softprompt.prompt import bank as bank_module
from softprompt.prompt.bank import PromptBank

GREEDY = {"do_sample": False, "max_new_tokens": 8}
QUESTIONS = ["Say red", "Say a much longer thing about green and blue", "Hi", *(f"Say {n}" for n in range(5))]
NAMES = ["a.safetensors", "prompts/b.safetensors", "prompts/c.safetensors"]
FLAGS = ["--device", "cpu", "--precision", "fp32", "--no-do-sample", "--max-new-tokens", 8]


@pytest.fixture
def work(tmp_path, monkeypatch, model_folder):
    """The folder that everything happens in, with three prompts of unlike length for the random BLOOM."""
    folder = tmp_path / "work"
    (folder / "prompts").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for seed, name in enumerate(NAMES):
        save_for(model_folder, name, count=2 + 3 * seed, seed=seed, scale=3.0)
    return folder


def opened():
    return load(NAMES, device="cpu", precision="fp32")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# in Python


def test_questions_of_many_prompts_get_the_answers_of_each_alone(work):
    prompts = opened()
    assert isinstance(prompts, LoadedPrompts) and prompts.names == NAMES and len(prompts) == 3
    which = [NAMES[place % 3] for place in range(len(QUESTIONS))]
    together = prompts.answer(QUESTIONS, prompts=which, **GREEDY)
    alone = [
        load(name, device="cpu", precision="fp32").answer(text, **GREEDY)
        for text, name in zip(QUESTIONS, which, strict=True)
    ]
    assert together == alone and len(set(together)) > 3
    assert prompts.answer(QUESTIONS, prompts=[place % 3 for place in range(len(QUESTIONS))], **GREEDY) == alone
    swapped = prompts.answer(QUESTIONS, prompts=[NAMES[0]] * len(QUESTIONS), **GREEDY)
    assert swapped == prompts[0].answer(QUESTIONS, **GREEDY) == prompts[NAMES[0]].answer(QUESTIONS, **GREEDY) != alone
    assert isinstance(prompts[1], LoadedPrompt) and prompts[1].prompt.num_virtual_tokens == 5


def test_a_question_without_a_prompt_asks_the_base_alone(work, model_folder):
    prompts = opened()
    together = prompts.answer(QUESTIONS[:3], prompts=[2, None, 0], **GREEDY)
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    encoder = prompts._of(0).encoder
    ids = encoder.questions([Row.asked(QUESTIONS[1])])
    ((answer,),) = generate_batch(base.model, encoder, Sampling(**GREEDY), questions=ids)
    assert together[1] == base.tokenizer.decode(answer, skip_special_tokens=True)
    assert together[0] == prompts[2].answer(QUESTIONS[0], **GREEDY)


def test_ids_of_many_prompts(work):
    prompts = opened()
    ids = torch.tensor([[9, 8, 7]] * 3)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    output = prompts.generate(ids, prompts=[1, None, "a.safetensors"], **settings)
    assert torch.equal(output[:1], prompts[1].generate(ids[:1], **settings))
    assert torch.equal(output[2:], prompts[0].generate(ids[:1], **settings))
    assert torch.equal(output[1:2], prompts.model.base_model.generate(ids[:1], **settings))


def test_a_seed_repeats(work):
    prompts, which = opened(), [place % 3 for place in range(len(QUESTIONS))]
    hot = {"temperature": 5.0, "max_new_tokens": 8}
    drawn = [prompts.answer(QUESTIONS, prompts=which, seed=seed, **hot) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    same = prompts.answer(QUESTIONS, prompts=[0] * len(QUESTIONS), seed=1, **hot)
    assert same == prompts[0].answer(QUESTIONS, seed=1, **hot)  # the draws of one prompt alone


def test_what_does_not_fit_is_named(work, tmp_path):
    save_for("builtin:bloom-small@1", "other.safetensors", known=False)
    with pytest.raises(UserError, match="other.safetensors: trained on"):
        load([NAMES[0], "other.safetensors"], device="cpu")
    with pytest.raises(UserError, match="gone.safetensors: no such prompt file"):
        load([NAMES[0], "gone.safetensors"], device="cpu")
    with pytest.raises(UserError, match="`prompt_file`: the list is empty"):
        load([])
    prompts = opened()
    for wrong in ("b", 3, -1, 1.5):
        with pytest.raises(UserError, match="no such prompt; there are a.safetensors, "):
            prompts.answer(["Hi"], prompts=[wrong])
    with pytest.raises(UserError, match="`prompts`: give one for each question"):
        prompts.answer(["Hi", "Ho"], prompts=[0])
    with pytest.raises(UserError, match="`prompts`: give one for each question of a list"):
        prompts.answer("Hi", prompts=[0, 0])


def test_a_file_is_read_once_until_it_changes(work, model_folder, monkeypatch):
    reads, real = [], bank_module.load_prompt

    def counted(name):
        reads.append(name)
        return real(name)

    monkeypatch.setattr(bank_module, "load_prompt", counted)
    bank = PromptBank(load_base(str(model_folder), device=torch.device("cpu"), precision="fp32"))
    first = bank.load(NAMES[0])
    assert bank.load(NAMES[0]) is first and reads == [NAMES[0]]
    assert bank.load(NAMES[1]).encoder is first.encoder  # rows are written alike
    save_for(model_folder, NAMES[0], seed=9)
    assert not torch.equal(bank.load(NAMES[0]).prompt.weight[:2], first.prompt.weight) and len(reads) == 3
    os.unlink(NAMES[0])
    with pytest.raises(UserError, match="no such prompt file"):
        bank.load(NAMES[0])


# a file of questions


def rows_of(files):
    return [{"instruction": text, "input": "", **files[place % len(files)]} for place, text in enumerate(QUESTIONS)]


@pytest.fixture
def alone(work):
    """The answers of each prompt to the questions, one after another."""
    return {name: [load(name, device="cpu").answer(text, **GREEDY) for text in QUESTIONS] for name in NAMES}


@pytest.mark.parametrize("size", [1, 3, 32])
def test_a_column_names_the_prompt_of_a_row(work, capfd, alone, size):
    """Paths start from the folder of the questions; a row without one takes `--prompt-file`."""
    files = [{"prompt_file": "b.safetensors"}, {"prompt_file": ""}, {"prompt_file": "../prompts/c.safetensors"}, {}]
    rows = rows_of(files)
    write(work / "prompts/q.jsonl", rows)
    flags = [*FLAGS, "--prompt-file", "a.safetensors", "--per-device-eval-batch-size", size]
    result = run_command(capfd, "generate", "--instructions", "prompts/q.jsonl", *flags)
    assert result.status == 0, result.err
    answers = read(work / "prompts/q.answers.jsonl")
    order = [NAMES[1], NAMES[0], NAMES[2], NAMES[0]]
    wanted = [alone[order[place % 4]][place] for place in range(len(rows))]
    assert [row["answer"] for row in answers] == wanted and len(set(wanted)) > 3
    assert answers[0]["prompt_file"] == "b.safetensors"


def test_the_flag_may_name_nothing_where_every_row_names_a_file(work, capfd, alone):
    write(work / "q.jsonl", rows_of([{"prompt_file": name} for name in NAMES]))
    result = run_command(capfd, "generate", "--instructions", "q.jsonl", *FLAGS)
    assert result.status == 0, result.err
    wanted = [alone[NAMES[place % 3]][place] for place in range(len(QUESTIONS))]
    assert [row["answer"] for row in read(work / "q.answers.jsonl")] == wanted


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("gone.safetensors", ["q.jsonl, row 2", "gone.safetensors: no such prompt file"]),
        ("other.safetensors", ["q.jsonl, row 2", "other.safetensors: trained on"]),
        ("q.jsonl", ["q.jsonl, row 2", "not a prompt file"]),
    ],
    ids=str,
)
def test_a_wrong_file_is_one_line_that_names_the_row(work, capfd, wrong, words):
    save_for("builtin:bloom-small@1", "other.safetensors", known=False)
    write(work / "q.jsonl", rows_of([{"prompt_file": NAMES[0]}, {"prompt_file": wrong}]))
    before = snapshot(work)
    result = run_command(capfd, "generate", "--instructions", "q.jsonl", *FLAGS)
    assert_one_line(result, *words)
    assert before == {k: v for k, v in snapshot(work).items() if not k.endswith(".lock")}


@pytest.mark.parametrize("value", [7, ["a.safetensors"], {"a": 1}], ids=str)
def test_a_column_that_holds_no_paths_is_one_line(work, capfd, value):
    write(work / "q.jsonl", rows_of([{"prompt_file": value}]))
    result = run_command(capfd, "generate", "--instructions", "q.jsonl", *FLAGS)
    assert_one_line(result, "no such prompt file")


def test_the_answers_do_not_replace_a_prompt_of_a_row(work, capfd):
    write(work / "q.jsonl", rows_of([{"prompt_file": name} for name in NAMES]))
    flags = ["--output-file", NAMES[1], "--overwrite", *FLAGS]
    before = snapshot(work)
    assert_one_line(run_command(capfd, "generate", "--instructions", "q.jsonl", *flags), "is the --prompt-file")
    assert before == {k: v for k, v in snapshot(work).items() if not k.endswith(".lock")}
