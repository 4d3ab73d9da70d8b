"""`train --distill-text` as a user types it: what it writes and says, what it refuses, and how it goes on."""

import json
import os
import re
import signal

import pytest
from helpers.commands import assert_one_line, run_command
from helpers.rows import ROWS

from softprompt import load_prompt, train
from softprompt.distillation.answers import kept_splits
from softprompt.errors import Interrupted
from softprompt.training.trainer import Trainer

TEXT = "Say every word twice, and be kind."


@pytest.fixture
def rules(work):
    (work / "rules.txt").write_text(TEXT + "\n", "utf-8")
    questions = [{"instruction": row["instruction"], "hint": f"hint {place}"} for place, row in enumerate(ROWS)]
    (work / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), "utf-8")
    return work


@pytest.fixture
def distil(capfd, rules, model_folder):
    """Run `train --distill-text` on a tiny base."""
    flags = {
        "--distill-text": "rules.txt", "--model": model_folder, "--data": "questions.jsonl", "--virtual-tokens": 3,
        "--distill-new-tokens": 9, "--max-steps": 6, "--eval-steps": 2, "--eval-fraction": 0.3, "--save-steps": 3,
        "--gradient-accumulation-steps": 3, "--precision": "fp32",
    }  # fmt: skip

    def run(*extra, **changes):
        options = flags | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
        words = [word for name, value in options.items() if value is not None for word in (name, value)]
        return run_command(capfd, "train", *words, *extra)

    return run


def answers(folder):
    return [json.loads(line) for line in (folder / "teacher.jsonl").read_text("utf-8").splitlines()]


def test_a_run_keeps_the_answers_and_tells_what_the_prompt_is_worth(distil, rules, capfd, model_folder):
    result = distil()
    assert result.status == 0, result.err
    kept = answers(rules / "prompt.run")
    assert [each["split"] for each in kept] == ["train"] * 7 + ["held_out"] * 3
    assert {each["messages"][0]["content"] for each in kept} == {row["instruction"] for row in ROWS}
    assert all(each["messages"][-1]["role"] == "assistant" for each in kept)
    assert "share of the gap closed: " in result.out and "forgotten: KL to the bare base" in result.out
    assert "kept the prompt of step 6" in result.out and "perplexity" not in result.out  # a divergence has none
    users, trained = (
        float(re.search(rf"{name} +([\d.e-]+) ", result.out)[1]) for name in ("its users run it", "distilled prompt")
    )
    assert 0 < trained < users
    file = load_prompt("prompt.safetensors")
    source = file.facts.training["distilled_from"]
    assert source["tokens"] == len(TEXT) + 2 and len(source["sha256"]) == 64  # a token is a byte; two line breaks
    assert TEXT.encode() not in (rules / "prompt.safetensors").read_bytes()

    # as any other prompt file
    ask = run_command(capfd, "generate", "Say red", "--prompt-file", "prompt.safetensors", "--max-new-tokens", 5)
    assert ask.status == 0
    shown = run_command(capfd, "inspect", "prompt.safetensors", "--num-nearest", 1)
    assert shown.status == 0 and source["sha256"] in shown.out.replace("\n", "").replace(" ", "")
    more = distil(prompt_file="more.safetensors", init_from="prompt.safetensors", virtual_tokens=None)
    assert more.status == 0, more.err
    table = run_command(capfd, "evaluate", "prompt.safetensors", "--eval-generate", 2, "--max-new-tokens", 4)
    assert table.status == 0 and "prompt.run" in table.out, table.err


def test_evaluate_gives_the_figures_of_the_run_again(distil, rules, capfd):
    told = distil().out
    wanted = told[told.index("KL per answer token to the base with the text, on") :].splitlines()
    again = run_command(
        capfd, "evaluate", "prompt.safetensors", "--distill-text", "rules.txt", "--max-new-tokens", 9,
        "--output-file", "worth.json",
    )  # fmt: skip
    assert again.status == 0, again.err
    for line in wanted[1:7]:
        assert line in again.out
    figures = json.loads((rules / "worth.json").read_text())["prompt.safetensors"]
    assert figures["share_closed"] == pytest.approx(1 - figures["trained"]["kl"] / figures["users"]["kl"])
    (rules / "other.txt").write_text("Be rude.")
    other = run_command(
        capfd, "evaluate", "prompt.safetensors", "--distill-text", "other.txt", "--data", "questions.jsonl",
        "--max-new-tokens", 4, "--max-rows", 3,
    )  # fmt: skip
    assert other.status == 0 and "was distilled from another text" in other.out, other.err


def stop_after(monkeypatch, steps):
    real = Trainer.next_rows

    def next_rows(self):
        if self.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(Trainer, "next_rows", next_rows)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_bytes(distil, rules, monkeypatch, steps):
    assert distil(prompt_file="whole.safetensors").status == 0
    whole = (rules / "whole.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        assert_one_line(distil(), f"saved at step {steps} of 6", status=143)
    resumed = distil("--resume")
    assert resumed.status == 0 and f"checkpoint-{steps}" in resumed.out, resumed.err
    assert (rules / "prompt.safetensors").read_bytes() == whole


def test_answers_that_were_begun_are_gone_on_with(distil, rules, monkeypatch):
    """The answers are those of an uninterrupted run, and of another text none is taken."""
    monkeypatch.setattr("softprompt.distillation.answers.ANSWERED_TOGETHER", 1)  # batches of two
    assert distil(prompt_file="whole.safetensors").status == 0
    whole = (rules / "whole.run" / "teacher.jsonl").read_bytes()
    from softprompt.distillation import answers as module

    real, calls = module.generate_batch, []

    def generate_batch(*args, **settings):
        calls.append(settings)
        if len(calls) == 3:
            raise Interrupted(signal.SIGINT, "")
        return real(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(module, "generate_batch", generate_batch)
        assert_one_line(distil(), "4 of 10 rows are answered", "--resume", status=130)
    partial = rules / "prompt.run" / "teacher.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 3  # a header and two batches
    (rules / "other.txt").write_text("Be rude.")
    assert_one_line(distil("--resume", distill_text="other.txt"), "teacher.jsonl was begun with another")
    assert distil("--resume").status == 0
    assert (rules / "prompt.run" / "teacher.jsonl").read_bytes() == whole and not partial.exists()


def stopped_before_the_first_step(distil, monkeypatch, *words, **changes):
    """A run whose teacher is done, and which is stopped before anything else is written."""

    def stop(trainer):
        raise Interrupted(signal.SIGINT, "stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", stop)
        assert_one_line(distil(*words, **changes), "stopped", status=130)


@pytest.mark.parametrize("own", [{}, {"data": None, "distill_questions": 6}], ids=["data", "questions"])
def test_the_answers_of_another_text_are_not_taken(distil, rules, monkeypatch, own):
    """Before the first checkpoint, nothing but the answers themselves says of which text they are."""
    stopped_before_the_first_step(distil, monkeypatch, **own)
    (rules / "other.txt").write_text("Be rude.")
    kept = (rules / "prompt.run" / "teacher.jsonl").read_bytes()
    file = "questions.jsonl" if own else "teacher.jsonl"
    wanted = f"--resume: prompt.run/{file} was written with another --distill-text or base"
    assert_one_line(distil("--resume", distill_text="other.txt", **own), wanted)
    assert (rules / "prompt.run" / "teacher.jsonl").read_bytes() == kept
    assert distil("--resume", **own).status == 0
    assert distil(prompt_file="whole.safetensors", **own).status == 0
    assert (rules / "prompt.safetensors").read_bytes() == (rules / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("own", [{}, {"data": None, "distill_questions": 6}], ids=["data", "questions"])
def test_a_stopped_overwrite_does_not_take_the_old_run_s_answers_for_its_own(distil, rules, monkeypatch, own):
    replay = {"distill_replay": "questions.jsonl"} | own
    assert distil(**replay).status == 0
    (rules / "other.txt").write_text("Be rude.")
    changed = replay | {"distill_text": "other.txt"}

    def stop(*arguments, **settings):
        raise Interrupted(signal.SIGINT, "stopped")

    with monkeypatch.context() as patched:
        for module in ("answers", "questions"):
            patched.setattr(f"softprompt.distillation.{module}.generate_batch", stop)
        assert distil("--overwrite", **changed).status == 130
    names = {path.name for path in (rules / "prompt.run").iterdir()}
    assert not names & {"teacher.jsonl", "replay.jsonl", *(["questions.jsonl"] if own else [])}
    (rules / "prompt.safetensors").unlink()  # without a checkpoint, a resumed run does not replace it
    assert distil("--resume", **changed).status == 0
    assert distil(prompt_file="whole.safetensors", **changed).status == 0
    assert answers(rules / "prompt.run") == answers(rules / "whole.run")


def test_a_run_does_not_replace_the_rows_that_it_reads(distil, rules):
    assert distil().status == 0
    before = {path.name: path.read_bytes() for path in (rules / "prompt.run").iterdir() if path.is_file()}
    wanted = "--data prompt.run/teacher.jsonl: this run would replace it; copy it, or name another --run-dir"
    assert_one_line(distil("--overwrite", data="prompt.run/teacher.jsonl"), wanted)
    assert {path.name: path.read_bytes() for path in (rules / "prompt.run").iterdir() if path.is_file()} == before
    assert distil(data="prompt.run/teacher.jsonl", prompt_file="second.safetensors").status == 0


def test_a_resumed_run_learns_from_the_same_text(distil, rules, monkeypatch):
    (rules / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    own = {"data": "rows.jsonl", "prompt_file": "own.safetensors"}
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        distil()
        distil("--distill-from-data", **own)
    (rules / "rules.txt").write_text("Be rude.")
    assert_one_line(distil("--resume"), "prompt.run/teacher.jsonl was written with another --distill-text")
    wanted = "--distill-text: this run learns from another text"
    assert_one_line(distil("--distill-from-data", "--resume", **own), wanted)


def test_several_answers_and_those_of_the_data(distil, rules):
    assert distil(distill_answers=2).status == 0
    kept = answers(rules / "prompt.run")
    assert len(kept) == 2 * len(ROWS) and kept[0]["row"] == kept[1]["row"]
    assert kept[0]["messages"] != kept[1]["messages"]
    own = "".join(json.dumps(row) + "\n" for row in ROWS)
    (rules / "rows.jsonl").write_text(own)
    result = distil("--distill-from-data", data="rows.jsonl", prompt_file="own.safetensors")
    assert result.status == 0 and "red red" in result.out and not (rules / "own.run" / "teacher.jsonl").exists()


def test_the_teacher_alone_sees_the_context(distil, rules):
    result = distil(distill_context="hint")
    assert result.status == 0, result.err
    splits = kept_splits(rules / "prompt.run" / "teacher.jsonl")
    assert all(row.others["hint"].startswith("hint ") for row in [*splits.train_rows, *splits.eval_rows])
    assert not any("hint" in str(row.messages) for row in [*splits.train_rows, *splits.eval_rows])
    assert "hint" not in result.out.partition("first row, labels")[0].partition("first row")[2]
    plain = distil(prompt_file="plain.safetensors").out
    assert result.out.splitlines()[-8:] != plain.splitlines()[-8:]
    assert_one_line(distil(distill_context="nothing", prompt_file="b.safetensors"), "nothing in that column")


def test_temperature_and_cross_entropy_change_what_is_learnt(distil, rules):
    weights = {}
    for name, changes in {"plain": {}, "warm": {"distill_temperature": 3.0}, "ce": {"distill_ce": 0.5}}.items():
        assert distil(prompt_file=f"{name}.safetensors", **changes).status == 0
        weights[name] = load_prompt(f"{name}.safetensors").weight
    assert (weights["plain"] - weights["warm"]).abs().max() > 1e-4
    assert (weights["plain"] - weights["ce"]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"distill_text": None, "distill_new_tokens": None, "distill_ce": 0.1},
            "--distill-ce 0.1: needs --distill-text",
        ),
        ({"distill_text": None}, "--distill-new-tokens 9: needs --distill-text"),
        ({"distill_ce": 1.0}, "--distill-ce 1.0: must be at least 0 and below 1"),
        ({"distill_temperature": 0.0}, "--distill-temperature 0.0: must be from 0.01 to 100"),
        ({"distill_answers": 0}, "--distill-answers 0: must be at least 1"),
        ({"system": "Be kind."}, "--system Be kind.: give it or --distill-text, not both"),
        ({"distill_questions": 5}, "--distill-questions 5: give it or --data, not both"),
        ({"distill_text": "none.txt"}, "--distill-text none.txt: no such file"),
        ({"distill_from_data": "true", "distill_answers": 2}, "--distill-answers 2: give it or --distill-from-data"),
        ({"distill_from_data": "true", "distill_context": "hint"}, "give it or --distill-from-data, not both"),
    ],
)
def test_what_cannot_be_is_one_line(distil, rules, changes, wanted):
    assert_one_line(distil(**changes), wanted)
    assert not (rules / "prompt.safetensors").exists()


def test_the_teacher_writes_its_own_questions(distil, rules):
    result = distil(data=None, distill_questions=12)
    assert result.status == 0, result.err
    written = [json.loads(line) for line in (rules / "prompt.run" / "questions.jsonl").read_text().splitlines()]
    assert 3 < len(written) <= 12 and len({row["instruction"].casefold() for row in written}) == len(written)
    assert {each["messages"][0]["content"] for each in answers(rules / "prompt.run")} == {
        row["instruction"].rstrip() for row in written
    }
    assert load_prompt("prompt.safetensors").facts.data == ""


def test_python_takes_the_same_options(rules, model_folder):
    rows = [{"instruction": row["instruction"]} for row in ROWS]
    settings = {"distill_text": "rules.txt", "distill_new_tokens": 6, "max_steps": 2, "eval_fraction": 0.3}
    trained = train(rows, str(model_folder), 3, progress=False, **settings)
    assert trained.losses.trained_prompt < trained.losses.without_prompt
