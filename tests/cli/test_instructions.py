"""`generate.py --instructions`: every row's own answer, in the rows' order, whatever stops the run on its way."""

import errno
import json
import os
import re
import signal
import time

import pytest
import torch
from helpers.commands import assert_one_line, run_command, snapshot, start_command
from helpers.models import HIDDEN_SIZE, SPECIAL, VOCAB_SIZE, make_tokenizer
from helpers.prompts import save_for
from helpers.rows import FORMATS, ROWS, tutorial_question, write
from transformers import GPT2Config, GPT2LMHeadModel

from softprompt import SoftPromptEmbedding, SoftPromptModel, load_prompt
from softprompt.answering import job
from softprompt.base.loading import load_base
from softprompt.data.splits import load_split
from softprompt.engine.continuous import ContinuousDecoding
from softprompt.packs.batches import plan_batches
from softprompt.tokens.encoding import encode_text

QUESTIONS = [{name: row[name] for name in ("instruction", "input")} for row in ROWS]
QUESTIONS[3]["instruction"] = "说 “一”\u2028 and é, \\ and \n"
LENGTH = 60


@pytest.fixture
def work(tmp_path, monkeypatch, model_folder):
    """The folder that the commands run in, with a prompt for the random BLOOM and rows."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(job, "QUEUED", 1)  # so that greedy runs have as many batches as sampled ones
    save_for(model_folder, "prompt.safetensors")
    write(folder, "jsonl", QUESTIONS)
    return folder


@pytest.fixture
def generate(capfd, work):
    """Answer rows.jsonl greedily with the random BLOOM, or as the flags say."""

    def run(*extra, **changes):
        flags = {"instructions": "rows.jsonl", "max_length": LENGTH, "per_device_eval_batch_size": 3, "device": "cpu"}
        flags |= {"precision": "fp32"} | changes
        sampling = [] if "seed" in changes else ["--no-do-sample"]
        words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]
        return run_command(capfd, "generate", *words, *sampling, *extra)

    return run


def passed(result):
    assert result.status == 0 and result.out == "", result.err
    return result


def stopped_at(monkeypatch, generate, batch, *extra, signum=signal.SIGINT, **changes):
    """A run that gets a signal while a batch, counted from 0, is computed."""
    count = iter(range(10**6))

    def interrupting(real):
        def interrupted(*args, **kwargs):
            if next(count) == batch:
                os.kill(os.getpid(), signum)
            return real(*args, **kwargs)

        return interrupted

    with monkeypatch.context() as patched:
        for name in ("generate_batch", "queued_ids"):
            patched.setattr(job, name, interrupting(getattr(job, name)))
        return generate(*extra, **changes)


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def one_by_one(base_name, prompt_file, rows, *, max_length=None, max_new_tokens=None, repetition_penalty=1.0):
    """Greedy answers from the definition: one row, no cache, the whole text again for every token."""
    base = load_base(str(base_name), device=torch.device("cpu"), precision="fp32")
    model = SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(load_prompt(prompt_file).weight))
    found = []
    for row in rows:
        ids = encode_text(tutorial_question(row["instruction"], row["input"]), base.tokenizer)
        end = max_length or len(ids) + max_new_tokens
        start = len(ids)
        while len(ids) < end and ids[-1] != base.tokenizer.eos_token_id:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            for seen in set(ids):
                logits[seen] *= repetition_penalty if logits[seen] < 0 else 1 / repetition_penalty
            ids.append(int(logits.argmax()))
        found.append(base.tokenizer.decode(ids[start:], skip_special_tokens=True))
    return found


# answers


@pytest.mark.parametrize(
    "settings",
    [{"max_length": LENGTH}, {"max_new_tokens": 9}, {"max_length": LENGTH, "repetition_penalty": 1.7}],
    ids=lambda settings: [*settings][-1],
)
def test_answers_are_those_of_each_row_alone(generate, work, model_folder, settings):
    wanted = one_by_one(model_folder, "prompt.safetensors", QUESTIONS, **settings)
    assert len(set(wanted)) > 4
    for size in (1, 3, 64):
        passed(generate("--overwrite", per_device_eval_batch_size=size, **settings))
        assert read(work / "rows.answers.jsonl") == [
            row | {"answer": answer} for row, answer in zip(QUESTIONS, wanted, strict=True)
        ]
    assert sorted(path.name for path in work.iterdir()) == ["prompt.safetensors", "rows.answers.jsonl", "rows.jsonl"]


def test_pads_are_tokens_that_their_row_holds(generate, monkeypatch):
    """A repetition penalty sees them. Sampled rows are padded; greedy ones join and leave."""
    real, gaps = SoftPromptModel.generate, []

    def spied(self, input_ids, attention_mask, **kwargs):
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            assert set(ids.tolist()) == set(ids[mask].tolist())
            assert mask.tolist() == sorted(mask.tolist())
            gaps.append(int((~mask).sum()))
        return real(self, input_ids, attention_mask, **kwargs)

    monkeypatch.setattr(SoftPromptModel, "generate", spied)
    passed(generate(per_device_eval_batch_size=64, seed=1))
    assert len(gaps) == len(ROWS) and min(gaps) == 0 < max(gaps)


def test_answers_of_the_shipped_base_end_where_they_end(capfd, tmp_path, monkeypatch):
    """As one question after another on the command line, with answers that end before their limit."""
    monkeypatch.chdir(tmp_path)
    save_for("builtin:bloom-small@1", "prompt.safetensors")
    words = ["--no-do-sample", "--device", "cpu", "--precision", "fp32", "--max-new-tokens", 24]
    rows = [{**row.columns, "output": row.output} for row in load_split("builtin:polite", "test")[0][:8]]
    passed(run_command(capfd, "generate", "--instructions", write(tmp_path, "csv", rows), *words))
    rows = read(tmp_path / "rows.answers.jsonl")
    assert len({len(row["answer"]) for row in rows}) > 3
    for row in rows:
        flags = ["--instruction", row["instruction"], "--input", row["input"]]
        assert run_command(capfd, "generate", *flags, *words).out == row["answer"] + "\n"


def test_rows_of_unlike_length_stay_within_the_context(generate, work, tmp_path):
    """The longest row of a batch goes on as long as the shortest may; GPT-2 has no position for that."""
    folder = tmp_path / "gpt2"
    torch.manual_seed(0)
    sizes = {"n_embd": HIDDEN_SIZE, "n_layer": 1, "n_head": 4, "vocab_size": VOCAB_SIZE}
    GPT2LMHeadModel(GPT2Config(n_positions=64, **sizes, **SPECIAL)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    save_for(folder, "gpt2.safetensors")
    rows = [{"instruction": "a" * length, "input": ""} for length in (1, 30, 1, 12, 31, 1, 30, 29)]
    write(work, "jsonl", rows, "unlike")
    wanted = one_by_one(folder, "gpt2.safetensors", rows, max_length=LENGTH)
    result = passed(generate(instructions="unlike.jsonl", prompt_file="gpt2.safetensors"))
    assert [row["answer"] for row in read(work / "unlike.answers.jsonl")] == wanted
    assert "8 to answer in 5 batches" in result.err
    result = generate(instructions="unlike.jsonl", prompt_file="gpt2.safetensors", max_length=61, output_file="x")
    assert_one_line(result, "unlike.jsonl, row 1", "--max-length", "4 virtual tokens", "61 text", "context of 64")


def test_several_answers_to_a_row(generate, work):
    passed(generate(num_return_sequences=2, seed=1, temperature=2.0))
    rows = read(work / "rows.answers.jsonl")
    assert [{"instruction": r["instruction"], "input": r["input"]} for r in rows] == QUESTIONS
    assert [[*row] for row in rows] == [["instruction", "input", "answers"]] * len(ROWS)
    assert {len(row["answers"]) for row in rows} == {2} and all(len(set(row["answers"])) == 2 for row in rows)


def test_the_seed_that_is_printed_repeats_the_answers(generate, work):
    first = run_command_sampled(generate, "a.jsonl")
    (seed,) = re.findall(r"^seed: (\d+)$", first.err, re.MULTILINE)
    passed(generate(output_file="b.jsonl", seed=seed))
    passed(generate(output_file="c.jsonl", seed=int(seed) + 1))
    a, b, c = ((work / name).read_bytes() for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b != c


def run_command_sampled(generate, output_file):
    """A run whose seed is drawn."""
    return passed(generate("--do-sample", output_file=output_file))


def test_an_answer_has_128_tokens_by_default(generate, work, model_folder):
    """So one question that is longer than that, which --max-length would refuse, does not refuse the file."""
    rows = [QUESTIONS[1], {"instruction": "long " * 30, "input": ""}]
    write(work, "jsonl", rows, "long")
    passed(generate(instructions="long.jsonl", max_length=None))
    by_default = read(work / "long.answers.jsonl")
    assert [row["answer"] for row in by_default] == one_by_one(
        model_folder, "prompt.safetensors", rows, max_new_tokens=128
    )
    passed(generate("--overwrite", instructions="long.jsonl", max_length=None, max_new_tokens=128))
    assert read(work / "long.answers.jsonl") == by_default
    result = generate("--overwrite", instructions="long.jsonl", max_length=128)
    assert_one_line(result, "long.jsonl, row 2", "--max-length 128", "--max-new-tokens")


def test_temperature_0_is_greedy(capfd, generate, work):
    passed(generate())
    greedy = (work / "rows.answers.jsonl").read_bytes()
    words = ["--instructions", "rows.jsonl", "--max-length", LENGTH, "--device", "cpu", "--precision", "fp32"]
    for extra in (["--temperature", 0], ["--do_sample", "False"]):
        result = passed(run_command(capfd, "generate", *words, "--overwrite", *extra))
        assert (work / "rows.answers.jsonl").read_bytes() == greedy and "seed" not in result.err


# rows


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(generate, work, kind):
    """With an output that is of no type for training and an id, which comes along; and without an input."""
    passed(generate())
    wanted = (work / "rows.answers.jsonl").read_bytes()
    assert "“一”" in wanted.decode() and len(wanted.split(b"\n")) == len(ROWS) + 1
    odd = "x" if kind == "csv" else ["x"]
    name = write(work, kind, [row | {"output": odd, "id": 7} for row in QUESTIONS], f"odd.{kind}")
    passed(generate(instructions=name))
    beside = {"save_to_disk": "odd.save_to_disk.answers.jsonl"}.get(kind, f"odd.{kind}.answers.jsonl")
    number = "7" if kind == "csv" else 7
    assert read(work / beside) == [json.loads(line) | {"id": number} for line in wanted.split(b"\n")[:-1]]
    name = write(work, kind, [{"instruction": row["instruction"]} for row in QUESTIONS[1:3]], "short")
    passed(generate(instructions=name))
    assert (work / "short.answers.jsonl").read_bytes() == b"".join(wanted.splitlines(keepends=True)[1:3])


def test_the_held_out_split_is_answered(generate, work):
    parts = {"train": ROWS[:6], "test": ROWS[6:]}
    (work / "parts").mkdir()
    for split, rows in parts.items():
        write(work / "parts", "jsonl", rows, split)
    result = passed(generate(instructions="./parts/"))
    assert "./parts/ (test): 4 rows" in result.err
    assert [row["instruction"] for row in read(work / "parts.answers.jsonl")] == [r["instruction"] for r in ROWS[6:]]


def test_the_folder_that_one_stands_in(generate, work, monkeypatch):
    (work / "here").mkdir()
    write(work / "here", "jsonl", QUESTIONS)
    monkeypatch.chdir(work / "here")
    passed(generate(instructions=".", prompt_file="../prompt.safetensors"))
    assert len(read(work / "here.answers.jsonl")) == len(ROWS)


@pytest.mark.parametrize("seed", range(20))
def test_batches_hold_every_row_once(seed):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (50,), generator=draw).tolist()
    for gap in (None, 0, 4):
        batches = plan_batches(lengths, 8, largest_gap=gap)
        assert sorted(place for batch in batches for place in batch) == [*range(50)]
        assert all(0 < len(batch) <= 8 for batch in batches)
        spread = [lengths[batch[0]] - lengths[batch[-1]] for batch in batches]
        assert max(spread) <= (30 if gap is None else gap)
        flat = [lengths[place] for batch in batches for place in batch]
        assert flat == sorted(lengths, reverse=True)
        for done in range(len(batches)):  # what is left of a run is cut as the run was
            left = [place for batch in batches[done:] for place in sorted(batch)]
            left.sort()
            again = plan_batches([lengths[place] for place in left], 8, largest_gap=gap)
            assert [[left[place] for place in batch] for batch in again] == batches[done:]


# stop and go on


@pytest.mark.parametrize("changes", [{}, {"seed": 3, "num_return_sequences": 2}], ids=["greedy", "sampled"])
def test_resumed_equals_uninterrupted(generate, work, monkeypatch, changes):
    passed(generate(output_file="whole.jsonl", **changes))
    for batch in range(4):
        stopped = stopped_at(monkeypatch, generate, batch, "--overwrite", **changes)
        assert stopped.status == 130
        place = f"generate.py: SIGINT: {3 * batch} of 10 rows are answered, in rows.answers.jsonl.partial"
        assert stopped.err.splitlines()[-1] == f"{place}; go on with --resume"
        assert not (work / "rows.answers.jsonl").exists()
        resumed = passed(generate("--resume", **changes))
        assert f"10 rows, {10 - 3 * batch} to answer in {4 - batch} batches" in resumed.err
        assert (work / "rows.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()
        (work / "rows.answers.jsonl").unlink()
    assert sorted(path.name for path in work.iterdir()) == ["prompt.safetensors", "rows.jsonl", "whole.jsonl"]


def test_a_greedy_batch_is_larger_than_what_runs_together_and_resumes_as_it_ran(generate, work, monkeypatch):
    monkeypatch.setattr(job, "QUEUED", 4)
    real, joined = ContinuousDecoding.step, []

    def spied(self):
        joined.append(len(self.rows))
        return real(self)

    monkeypatch.setattr(ContinuousDecoding, "step", spied)
    for size in (1, 2):
        settings = {"per_device_eval_batch_size": size}
        passed(generate("--overwrite", output_file="whole.jsonl", **settings))
        assert max(joined) == size
        for batch, answered in enumerate(range(0, 10, 4 * size)):
            stopped = stopped_at(monkeypatch, generate, batch, "--overwrite", **settings)
            assert stopped.status == 130 and f"{answered} of 10 rows are answered" in stopped.err
            assert f"{10 - answered} to answer" in passed(generate("--resume", **settings)).err
            assert (work / "rows.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()
            (work / "rows.answers.jsonl").unlink()


def test_a_drawn_seed_is_kept(generate, work, monkeypatch):
    first = run_command_sampled(generate, "whole.jsonl")
    (seed,) = re.findall(r"^seed: (\d+)$", first.err, re.MULTILINE)
    monkeypatch.setattr(job, "draw_seed", lambda: int(seed))
    assert stopped_at(monkeypatch, generate, 2, "--do-sample").status == 130
    monkeypatch.setattr(job, "draw_seed", lambda: pytest.fail("a second seed"))
    resumed = passed(generate("--resume", "--do-sample"))
    assert f"seed: {seed}\n" in resumed.err
    assert (work / "rows.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()


def test_stopped_again_and_again(generate, work, monkeypatch):
    passed(generate(output_file="whole.jsonl"))
    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        stopped = stopped_at(monkeypatch, generate, 1, "--resume", signum=signum)
        assert stopped.status == status and "Traceback" not in stopped.err
    assert "9 of 10 rows" in stopped.err
    passed(generate("--resume", per_device_eval_batch_size=8))  # greedy: the batch size decides nothing
    assert (work / "rows.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()


def test_partial_file_cut_or_damaged_anywhere(generate, work, monkeypatch):
    passed(generate(output_file="whole.jsonl"))
    stopped_at(monkeypatch, generate, 3)
    partial = work / "rows.answers.jsonl.partial"
    content = partial.read_bytes()
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 4
    second, third = ends[1] + 1, ends[2] + 1
    harms = {
        "the last byte": (content[:-1], 6),
        "half a line": (content[: third + 9], 6),
        "one byte of a line": (content[: second + 1], 3),
        "all but the header": (content[: ends[0] + 1], 0),
        "zeros where a line was": (content[:third] + bytes(len(content) - third), 6),
        "zeros in between": (content[:second] + bytes(third - second) + content[third:], 3),
        "no list": (content[:second] + b"5\n" + content[third:], 3),
    }
    for name, (harmed, kept) in harms.items():
        partial.write_bytes(harmed)
        resumed = passed(generate("--resume"))
        assert f"resumed from {partial.name}: {kept} rows are answered" in resumed.err, name
        assert (work / "rows.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()
        (work / "rows.answers.jsonl").unlink()


def test_killed_without_a_word(capfd, work):
    """SIGKILL: what was synced is there, and goes on."""
    save_for("builtin:bloom-small@1", "shipped.safetensors")
    words = ["--prompt-file", "shipped.safetensors", "--instructions", "builtin:polite", "--seed", 1]
    words += ["--per-device-eval-batch-size", 4, "--max-new-tokens", 4, "--device", "cpu", "--precision", "fp32"]
    process = start_command("generate", *words, cwd=work)
    partial = work / "polite.answers.jsonl.partial"
    end = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (work / "polite.answers.jsonl").exists()
    result = passed(run_command(capfd, "generate", *words, "--resume"))
    (kept,) = re.findall(r"(\d+) rows are answered", result.err)
    assert 12 <= int(kept) < 240
    assert f"builtin:polite (validation): 240 rows, {240 - int(kept)} to answer" in result.err
    passed(run_command(capfd, "generate", *words, "--output-file", "whole.jsonl"))
    assert (work / "polite.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()


def test_old_answers_stay_until_the_new_ones_are_whole(generate, work, monkeypatch):
    output = work / "rows.answers.jsonl"
    output.write_text("precious")
    stopped = stopped_at(monkeypatch, generate, 2, "--overwrite")
    assert stopped.status == 130 and output.read_text() == "precious"
    passed(generate("--resume"))  # --overwrite was said when the run started
    assert len(read(output)) == len(ROWS)


def test_answers_that_came_meanwhile_stay(generate, work, monkeypatch):
    stopped_at(monkeypatch, generate, 2)
    (work / "rows.answers.jsonl").write_text("precious")
    result = passed(generate("--resume"))
    assert result.err.splitlines()[-1].endswith("the answers are in rows.answers-2.jsonl")
    assert (work / "rows.answers.jsonl").read_text() == "precious"
    assert len(read(work / "rows.answers-2.jsonl")) == len(ROWS)


def test_a_kill_between_the_output_and_the_removal_of_its_partial_is_gone_on_from(generate, work, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        passed(generate())
    output, partial = work / "rows.answers.jsonl", work / "rows.answers.jsonl.partial"
    whole = output.read_bytes()
    assert partial.exists()
    passed(generate("--resume"))
    assert output.read_bytes() == whole and not partial.exists()
    assert not list(work.glob("*answers-2*"))


@pytest.mark.parametrize("sampling", [[], ["--seed", 1]])
def test_logits_that_are_not_finite_are_one_line_with_the_row(generate, work, model_folder, sampling):
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    with torch.no_grad():
        next(p for name, p in base.model.named_parameters() if name.endswith("ln_f.weight")).fill_(float("nan"))
    base.model.save_pretrained(work / "nan")
    base.tokenizer.save_pretrained(work / "nan")
    result = generate("--model", work / "nan", "--allow-other-base", *sampling)
    assert result.status == 2 and "Traceback" not in result.err
    assert re.search(r"--instructions, row \d+: the logits are not finite: ", result.err.splitlines()[-1])


@pytest.mark.parametrize("which", ["a batch", "the output"])
def test_full_disk(generate, work, monkeypatch, which):
    passed(generate(output_file="whole.jsonl"))
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        # the two places that are tried, header and its folder, four batches, the output
        if len(calls) == {"a batch": 6, "the output": 9}[which]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = generate()
    assert result.status == 2 and "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    where, saved = {"a batch": (".partial", 3), "the output": ("", 10)}[which]
    assert f"rows.answers.jsonl{where}: No space left on device; {saved} of 10 rows are answered" in last
    assert not (work / "rows.answers.jsonl").exists()
    passed(generate("--resume"))
    assert (work / "rows.answers.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()


def test_out_of_memory(generate, work, monkeypatch):
    def hungry(*args, batch_size, **kwargs):
        if batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(*args, batch_size=batch_size, **kwargs)

    real = job.queued_ids
    monkeypatch.setattr(job, "queued_ids", hungry)
    result = generate()
    assert result.status == 2
    last = result.err.splitlines()[-1]
    assert "out of memory with --per-device-eval-batch-size 3; 0 of 10 rows" in last and "--resume" in last
    passed(generate("--resume", per_device_eval_batch_size=2))
    assert len(read(work / "rows.answers.jsonl")) == len(ROWS)


# what is refused


@pytest.fixture
def refused(generate, work):
    """A run that must be refused in one line, with every file as it was."""

    def run(*wanted, extra=(), **changes):
        before = snapshot(work)
        assert len(before) > 1
        assert_one_line(generate(*extra, **changes), *wanted)
        assert snapshot(work) == before

    return run


def test_resume_of_another_run(refused, generate, work, monkeypatch, model_folder):
    stopped_at(monkeypatch, generate, 2, seed=1)
    for name, value in {"max_length": 59, "top_k": 3, "temperature": 0.5, "num_return_sequences": 2}.items():
        refused("--resume: --" + name.replace("_", "-"), str(value), extra=["--resume"], **{"seed": 1, name: value})
    refused("--resume: --seed was 1", "2 now", extra=["--resume"], seed=2)
    refused("--resume: --do-sample", extra=["--resume"])
    refused("--resume: --precision", extra=["--resume"], seed=1, precision="bf16")
    save_for(model_folder, "other.safetensors", seed=5)
    refused("--resume: --prompt-file", extra=["--resume"], seed=1, prompt_file="other.safetensors")
    write(work, "jsonl", QUESTIONS[::-1])
    refused("--resume: --instructions", extra=["--resume"], seed=1)


def test_outputs_already_there(refused, generate, work, monkeypatch):
    stopped_at(monkeypatch, generate, 2)
    monkeypatch.setattr("softprompt.base.loading.load_base", lambda *args, **kwargs: pytest.fail("loaded"))
    refused("rows.answers.jsonl.partial", "--resume", "--overwrite")
    (work / "old.jsonl").write_text("precious")
    refused("--output-file old.jsonl", "already there", "--overwrite", output_file="old.jsonl")
    refused("--resume", "old.jsonl.partial", "old.jsonl exists", output_file="old.jsonl", extra=["--resume"])
    (work / "notes.partial").write_text("precious\n")
    for extra in ([], ["--resume"], ["--overwrite"]):
        refused("notes.partial", "not written by", output_file="notes", extra=extra)
    header = {"kind": "softprompt answers", "version": 99}
    (work / "new.partial").write_text(json.dumps(header) + "\n")
    refused("new.partial", "another version", output_file="new", extra=["--resume"])


def test_places_that_are_none(refused, work):
    (work / "folder").mkdir()
    os.mkfifo("pipe")
    for name in ("folder", "pipe", "/dev/full", "/dev/null", "rows.jsonl/x", "/proc/x", "prompt.safetensors"):
        for extra in ([], ["--overwrite"]):
            refused(f"--output-file {name}", output_file=name, extra=extra)
    for name in ("rows.jsonl", "./rows.jsonl", str(work / "rows.jsonl")):
        refused("--output-file", "rows.jsonl", output_file=name, extra=["--overwrite"])
    write(work / "folder", "jsonl", QUESTIONS)
    refused("--output-file folder/x.jsonl", instructions="folder", output_file="folder/x.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("gone.jsonl", None, "no such file"),
        ("owner/gone", None, "cannot be reached"),
        ("builtin:gone", None, "builtin:polite"),
        ("empty.jsonl", b"", "empty"),
        ("none.json", b"[]", ""),
        ("bad.jsonl", b"\xff\xfe\x00", ""),
        ("cut.json", b'[{"instruction": "a"', ""),
        ("bad.txt", b"text", "suffix"),
        ("other.csv", b"alpha,beta\na,b\n", "rows need instruction as columns; here are alpha, beta"),
        ("input.csv", b"input\na\n", "row 1: no instruction; every row needs an instruction"),
        ("blank.csv", b"instruction,input\n,\n  , \n", "row 1: no instruction"),
        ("list.jsonl", b'{"instruction": "a"}\n{"instruction": ["b"]}\n', "row 2: instruction is a list"),
        ("surrogate.json", rb'[{"instruction": "\ud800"}, {"instruction": 5}]', ""),
    ],
)
def test_bad_rows(refused, work, name, content, wanted):
    if content is not None:
        (work / name).write_bytes(content)
    refused(name, wanted, instructions=name)


def test_unreadable_rows(refused, work):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (work / "rows.jsonl").chmod(0)
    refused("rows.jsonl", "ermission")


def test_a_row_that_leaves_no_room(refused, work):
    """Found before the first row is answered."""
    rows = [*QUESTIONS, {"instruction": "long " * 20, "input": ""}, QUESTIONS[0]]
    write(work, "jsonl", rows)
    asked = len(tutorial_question("long " * 20))
    refused("rows.jsonl, row 11", f"--max-length {LENGTH}", f"{asked} tokens", "--max-new-tokens")
    refused("rows.jsonl, row 11", f"--max-length {asked}", f"{asked} tokens", max_length=asked)


# the screen


def test_progress_bar_on_a_terminal_only(generate, monkeypatch):
    quiet = passed(generate())
    assert "10/10" not in quiet.err
    assert len(quiet.err.splitlines()) == 2
    assert re.search(r"\nanswers written to rows.answers.jsonl: [\d.]+ rows/s, [\d,]+ tokens/s\n$", quiet.err)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = passed(generate("--overwrite"))
    assert "10/10" in shown.err and "row/s" in shown.err
