"""A search over prompts that are distilled from one text: its answers are sampled once, and it goes on as others do."""

import json
import re
import shlex

import pytest
import torch
from helpers.commands import assert_one_line, main_of, run_command
from helpers.rows import ROWS

from softprompt import load_prompt
from softprompt.distillation import answers as module
from softprompt.errors import Interrupted


@pytest.fixture
def search(capfd, work, model_folder):
    """Run `sweep --distill-text` on a tiny base: two trials of four steps."""
    (work / "rules.txt").write_text("Say every word twice, and be kind.\n", "utf-8")
    questions = [{"instruction": row["instruction"]} for row in ROWS]
    (work / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), "utf-8")
    flags = {
        "--model": model_folder, "--data": "questions.jsonl", "--eval-fraction": 0.3, "--max-steps": 4,
        "--precision": "fp32", "--relative-rates": 0.3, "--init": "text", "--distill-new-tokens": 7,
        "--distill-ce": 0.1,
    }  # fmt: skip

    def run(*extra, text="rules.txt"):
        named = ["--distill-text", text] if text else []
        words = [word for pair in flags.items() for word in pair]
        return run_command(capfd, "sweep", *words, *named, "--virtual-tokens", 2, 3, *extra)

    return run


@pytest.fixture
def sampled(monkeypatch):
    """The batches that the teacher has answered."""
    real, calls = module.generate_batch, []

    def generate_batch(*args, **settings):
        calls.append(settings["questions"])
        return real(*args, **settings)

    monkeypatch.setattr(module, "generate_batch", generate_batch)
    return calls


def test_all_trials_learn_from_answers_that_were_sampled_once(search, sampled, work, capfd):
    result = search()
    assert result.status == 0, result.err
    assert sum(map(len, sampled)) == len(ROWS)
    kept = (work / "prompt.sweep" / "teacher.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == len(ROWS)
    trials = [load_prompt(path) for path in (work / "prompt.sweep").glob("*-4.safetensors")]
    assert len(trials) == 2
    assert all(each.facts.training["distilled_from"]["ce"] == 0.1 for each in trials)
    before = (work / "prompt.safetensors").read_bytes()

    # the command that is shown samples the same answers, and learns the same prompt from them
    (words,) = re.findall(r"by itself: (.*)", result.out)
    main_of("train")([*shlex.split(words.partition(" train ")[2]), "--prompt-file", "again.safetensors"])
    assert torch.equal(load_prompt("again.safetensors").weight, load_prompt("prompt.safetensors").weight)
    assert (work / "again.run" / "teacher.jsonl").read_text("utf-8").splitlines() == kept

    sampled.clear()
    again = search("--resume")
    assert again.status == 0 and not sampled, again.err
    assert (work / "prompt.safetensors").read_bytes() == before
    told = run_command(
        capfd, "evaluate", "prompt.safetensors", "--distill-text", "rules.txt", "--data", "questions.jsonl",
        "--max-new-tokens", 4, "--max-rows", 3,
    )  # fmt: skip
    assert told.status == 0 and "share of the gap closed" in told.out, told.err


def test_a_search_that_was_stopped_while_the_teacher_answered_goes_on(search, sampled, work, monkeypatch):
    assert search("--prompt-file", "whole.safetensors").status == 0
    monkeypatch.setattr(module, "ANSWERED_TOGETHER", 2)  # batches of four
    with monkeypatch.context() as patched:
        real = module.generate_batch

        def generate_batch(*args, **settings):
            if len(sampled) == 2:
                raise Interrupted(2)
            return real(*args, **settings)

        patched.setattr(module, "generate_batch", generate_batch)
        sampled.clear()
        assert_one_line(search("--prompt-file", "part.safetensors"), "go on with --resume", status=130)
    assert not (work / "part.sweep" / "sweep.json").exists()
    assert_one_line(search("--prompt-file", "part.safetensors"), "--sweep-dir part.sweep: already there", "--resume")
    sampled.clear()
    assert search("--prompt-file", "part.safetensors", "--resume").status == 0
    assert 0 < sum(map(len, sampled)) < len(ROWS)
    assert search("--prompt-file", "small.safetensors").status == 0
    one, other = (work / f"{name}.sweep" / "teacher.jsonl" for name in ("part", "small"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("extra", "text", "wanted"),
    [
        (["--resume"], "other.txt", "prompt.sweep/teacher.jsonl was written with another --distill-text"),
        (["--resume", "--distill-ce", 0.2], "rules.txt", "--distill-ce"),
        (["--overwrite"], None, "--distill-new-tokens 7: needs --distill-text"),
        (["--overwrite", "--system", "Be kind."], "rules.txt", "give it or --distill-text, not both"),
    ],
)
def test_what_cannot_be_is_one_line(search, work, extra, text, wanted):
    assert search().status == 0
    before = (work / "prompt.safetensors").read_bytes()
    (work / "other.txt").write_text("Be rude.\n")
    if extra[0] == "--overwrite":
        assert_one_line(search(*extra, text=text), wanted)
    else:
        assert_one_line(search(*extra, text=text), "--resume", wanted)
    assert (work / "prompt.safetensors").read_bytes() == before
