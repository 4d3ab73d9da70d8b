"""`python -m softprompt evaluate`: every side's figures are those of its own rows, and nothing is replaced unasked."""

import errno
import itertools
import json
import math
import re
from functools import partial

import pytest
import torch
from helpers import prompts
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.models import HIDDEN_SIZE, SPECIAL, VOCAB_SIZE, make_tokenizer
from helpers.rows import ROWS, write
from transformers import GPT2Config, GPT2LMHeadModel

import softprompt
from softprompt import SoftPromptEmbedding, load_prompt, save_prompt
from softprompt.analysis.statistics import Estimate
from softprompt.base.loading import load_base
from softprompt.data.splits import load_split, load_splits
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_rows
from softprompt.tokens.row_hashes import sketch_of

BUILTIN = "builtin:bloom-small@1"
TEXT = "Say it politely, please."
CHOICES = tuple("abcdefgh")  # of one length, so that a random model chooses some of them
FIGURES = ("loss", "perplexity", "token_accuracy", "exact_match", "choice_accuracy")
save_for = partial(prompts.save_for, scale=0.1, init_text=TEXT)


@pytest.fixture
def work(tmp_path, monkeypatch, model_folder):
    """The folder that the command runs in, with two prompts for the random BLOOM, rows and labelled rows."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    save_for(model_folder, "a.safetensors")
    save_for(model_folder, "b.safetensors", seed=1)
    write(folder, "jsonl", ROWS)
    labelled = [row | {"output": CHOICES[place % 3]} for place, row in enumerate(ROWS)]
    write(folder, "jsonl", labelled, "labelled")
    return folder


@pytest.fixture
def evaluate(capfd, work):
    """Compare a.safetensors on rows.jsonl, or as the flags say; None leaves a flag out."""

    def run(*extra, **changes):
        flags = {"prompt_file": "a.safetensors", "data": "rows.jsonl", "max_new_tokens": 5, "device": "cpu"}
        flags |= {"precision": "fp32", "bootstrap_samples": 50} | changes
        words = []
        for name, value in flags.items():
            if value is not None:
                words += [f"--{name}", *(value if isinstance(value, list | tuple) else [value])]
        return run_command(capfd, "evaluate", *words, *extra)

    return run


@pytest.fixture
def report(evaluate, work):
    """What a run that must succeed printed and wrote."""

    def run(*extra, **changes):
        result = evaluate("--overwrite", *extra, output_file="report.json", **changes)
        assert result.status == 0 and result.err == "", result.err
        return result.out, json.loads((work / "report.json").read_text("utf-8"))

    return run


@pytest.fixture
def refused(evaluate, work, tmp_path, model_folder):
    """A run that must fail with one line and leave every file as it was."""

    def run(*wanted, extra=(), **changes):
        before = snapshot(tmp_path, model_folder)
        assert len(before) > 3
        result = evaluate(*extra, **changes)
        assert_one_line(result, *wanted)
        assert result.out == "" and result.err.startswith("softprompt: error: ")
        assert snapshot(tmp_path, model_folder) == before

    return run


def table_of(out, heading):
    """The lines of the table with `heading`, split where two blanks stand."""
    lines = out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("side") and heading in line)
    end = lines.index("", start)
    assert all(len(line) <= 100 for line in lines[start:end])
    assert len({len(line) for line in lines[start:end]}) == 1  # aligned
    return [re.split(r"  +", line) for line in lines[start:end]]


def shown(cell):
    """The three numbers of `value [low-high]`."""
    return [float(number) for number in re.fullmatch(r"(\S+) \[(\S+)-(\S+)\]", cell).groups()]


# what is shown


def test_the_shipped_base(report, work):
    """Figures of the table, of the JSON and of the rows in it agree."""
    save_for(BUILTIN, "own.safetensors")
    out, found = report(prompt_file="own.safetensors", data="builtin:polite", max_rows=12, eval_generate=5)
    assert out.startswith(f"base: {BUILTIN} (BloomForCausalLM, ")
    assert "--data builtin:polite (test): 12 rows, " in out
    names = ["no prompt", "text prompt", "own.safetensors"]
    assert [side["name"] for side in found["sides"]] == names
    table = table_of(out, "loss")
    assert table[0] == ["side", "loss", "perplexity", "token accuracy %", "exact match %"]
    assert [line[0] for line in table[1:]] == ["no prompt", "text prompt", "own"]
    rows = [
        {**row.columns, "output": row.output, "number": row.number}
        for row in load_split("builtin:polite", "test")[0][:12]
    ]
    for row, given in zip(found["rows"], rows, strict=True):
        names_of_row = ("number", "instruction", "input", "output")
        assert [row[name] for name in names_of_row] == [given[name] for name in names_of_row]
    for line, side in zip(table[1:], found["sides"], strict=True):
        own = [row["sides"][side["name"]] for row in found["rows"]]
        tokens = sum(row["num_supervised"] for row in found["rows"])
        loss = sum(row["loss_sum"] for row in own) / tokens
        answered = [(row["sides"][side["name"]]["answer"], row["output"]) for row in found["rows"][:5]]
        wanted = {
            "loss": loss,
            "perplexity": math.exp(loss),
            "token_accuracy": sum(row["num_correct"] for row in own) / tokens,
            "exact_match": sum(answer == output for answer, output in answered) / 5,
        }
        assert {name: side[name]["value"] for name in wanted} == pytest.approx(wanted)
        assert ["answer" in row for row in own] == [True] * 5 + [False] * 7
        for name, cell in zip(wanted, line[1:], strict=True):
            scale, places = (100, 0.05) if name in ("token_accuracy", "exact_match") else (1, 0.0005)
            stated = [scale * side[name][end] for end in ("value", "low", "high")]
            assert shown(cell) == pytest.approx(stated, abs=places)
            assert side[name]["low"] <= side[name]["value"] <= side[name]["high"]
    lowest = min(found["sides"], key=lambda side: side["loss"]["value"])
    assert f"lowest loss: {lowest['name']}, also in " in out
    assert f"{found['sides'][1]['num_virtual_tokens']} tokens\n" in out and found["sides"][1]["sha256"] == ""
    assert found["sides"][2]["sha256"] == load_prompt("own.safetensors").metadata["sha256"]


def test_the_text_prompt_is_the_text_written_in_front(report, work, model_folder):
    """A prompt file that holds the embeddings of its init text scores and answers as the text prompt."""
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    written = SoftPromptEmbedding.from_text(TEXT, base.tokenizer, base.model.get_input_embeddings())
    save_prompt("text.safetensors", written, base.metadata | {"init_text": TEXT})
    out, found = report(prompt_file=["text.safetensors", "a.safetensors"], choices=CHOICES, data="labelled.jsonl")
    bare, text, same, other = found["sides"]
    assert text["num_virtual_tokens"] == len(TEXT) and bare["num_virtual_tokens"] == 0
    assert f"text prompt: {TEXT!r}, the init text of text.safetensors, as {len(TEXT)} tokens" in out
    for name in FIGURES:
        assert text[name] == same[name]
    assert text["loss"] != other["loss"] != bare["loss"] != text["loss"]
    assert all(row["sides"]["text prompt"] == row["sides"]["text.safetensors"] for row in found["rows"])


def test_rows_that_the_prompt_has_seen_are_said(report, work, model_folder):
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    encoded, _ = encode_rows(load_split("rows.jsonl")[0], Encoder(base.tokenizer), max_length=256)
    half = len(encoded) // 2
    strangers = [EncodedRow([7, 8, place], [7, 8, place]) for place in range(half)]
    sketches = {"train": sketch_of(encoded[:half] + strangers), "held_out": sketch_of(encoded[half:])}
    save_for(model_folder, "a.safetensors", rows_sketch=json.dumps(sketches))
    save_for(model_folder, "b.safetensors", seed=1, rows_sketch="")
    out, _ = report(prompt_file=["a.safetensors", "b.safetensors"])
    notes = [line for line in out.splitlines() if "which flatters it" in line]
    assert notes == [
        "note: a.safetensors: about 50% of the rows that trained it are among these, which flatters it",
        "note: a.safetensors: about 100% of the rows that chose it are among these, which flatters it",
    ]


def test_without_an_init_text(report, model_folder):
    save_for(model_folder, "vocab.safetensors", init_text="")
    out, found = report(prompt_file=["vocab.safetensors", "a.safetensors"])
    assert [side["name"] for side in found["sides"]] == ["no prompt", "vocab.safetensors", "a.safetensors"]
    assert "no text prompt: vocab.safetensors names no init text" in out


def test_choices(report, work):
    out, found = report(data="labelled.jsonl", choices=CHOICES, eval_generate=0)
    table = table_of(out, "loss")
    assert table[0] == ["side", "loss", "perplexity", "token accuracy %", "choice accuracy %", "macro-F1 %"]
    chosen_by_any = set()
    for line, side in zip(table[1:], found["sides"], strict=True):
        chosen = [row["sides"][side["name"]] for row in found["rows"]]
        for row in chosen:
            assert row["choice"] == max(CHOICES, key=row["log_probabilities"].get) and "answer" not in row
        chosen_by_any |= {row["choice"] for row in chosen}
        right = sum(row["choice"] == given["output"] for row, given in zip(chosen, found["rows"], strict=True))
        assert side["choice_accuracy"]["value"] == pytest.approx(right / 10) and side["exact_match"] is None
        assert shown(line[4])[0] == pytest.approx(10 * right)
        assert float(line[5]) == pytest.approx(100 * side["macro_f1"], abs=0.05)
    assert len(chosen_by_any) > 1
    assert "macro-F1: mean over all choices; no row's output, and so 0: d, e, f, g, h\n" in out


def test_the_loss_of_a_row_is_that_of_its_choice(report, work):
    """Labels that are the whole output are scored as the output is."""
    _, found = report(data="labelled.jsonl", choices=CHOICES, eval_generate=0)
    for row in found["rows"]:
        for side in row["sides"].values():
            # fp32: the same row in a batch of another shape
            assert side["log_probabilities"][row["output"]] == pytest.approx(-side["loss_sum"], rel=1e-5)


COLUMNS = ["loss", "perplexity", "token accuracy %", "exact match %", "choice accuracy %", "macro-F1 %"]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_tables_fit_the_terminal(report, work, model_folder, monkeypatch, width):
    """Every column once, in as few tables as the width has room for, each aligned and with all sides."""
    long = "very/" * 20 + "long.safetensors"
    (work / long).parent.mkdir(parents=True)
    save_for(model_folder, long)
    monkeypatch.setattr("softprompt.cli.terminal.screen_width", lambda: width)
    out, found = report(prompt_file=["a.safetensors", long], data="labelled.jsonl", choices=CHOICES)
    blocks = [block.splitlines() for block in out.split("\n\n") if block.lstrip().startswith("side ")]
    for block in blocks:
        assert len({len(line) for line in block}) == 1 and len(block[0]) <= width
        assert [re.split("  +", line)[0] for line in block][1:4] == ["no prompt", "text prompt", "a"]
        assert len(block) == 5 and re.match(r"\.\.\..*/long  ", block[4])
    cells = [[re.split("  +", line)[1:] for line in block] for block in blocks]
    widths = [[2 + max(map(len, column)) for column in zip(*block, strict=True)] for block in cells]
    for block, following in itertools.pairwise(widths):  # with 12 columns for the names, no more would have fitted
        assert 12 + sum(block) + following[0] > width
    assert (len(blocks) > 1) == (12 + sum(map(sum, widths)) > width)
    assert [heading for block in cells for heading in block[0]] == COLUMNS
    losses = [f"{side['loss']['value']:#.3g}".rstrip(".") for side in found["sides"]]
    assert [line[0].split()[0] for line in cells[0][1:]] == losses


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.04123, "0.0412"), (1.2345, "1.23"), (17.349, "17.3"), (123.4, "123"), (2.0, "2.00")]
)
def test_losses_have_three_significant_digits(report, work, monkeypatch, value, wanted):
    monkeypatch.setattr("softprompt.analysis.table.bootstrap_interval", lambda *args, **kwargs: Estimate(value, 0.5, 1))
    out, _ = report(eval_generate=0)
    assert {line[1] for line in table_of(out, "loss")[1:]} == {f"{wanted} [0.500-1.00]"}


def test_one_seed_one_report(report, work):
    first = report(seed=1)
    assert report(seed=1) == first
    other = report(seed=2)
    assert first[1]["rows"] == other[1]["rows"]
    for one, two in zip(first[1]["sides"], other[1]["sides"], strict=True):
        assert one["loss"]["value"] == two["loss"]["value"] and one["loss"] != two["loss"]


def test_batches_decide_nothing(report):
    reports = [report(per_device_eval_batch_size=size)[1] for size in (1, 3, 64)]
    assert reports[0] == reports[1] == reports[2]


# rows


def test_splits(report, work):
    for split, count in (("train", 4), ("validation", 3), ("test", 2)):
        (work / "parts").mkdir(exist_ok=True)
        write(work / "parts", "jsonl", ROWS[:count], split)
    assert "--data ./parts (test): 2 rows" in report(data="./parts", eval_generate=0)[0]
    assert "--data ./parts (train): 4 rows" in report(data="./parts", eval_generate=0, split="train")[0]
    (work / "parts" / "test.jsonl").unlink()
    assert "--data ./parts (validation): 3 rows" in report(data="./parts", eval_generate=0)[0]
    (work / "parts" / "validation.jsonl").unlink()
    assert "--data ./parts: 4 rows" in report(data="./parts", eval_generate=0)[0]


def test_rows_without_a_response_are_said(report, work):
    rows = [row | {"output": " "} if place in (1, 4) else row for place, row in enumerate(ROWS)]
    out, found = report(data=write(work, "jsonl", rows, "blank"), max_rows=6, eval_generate=3)
    assert "--data " in out and "blank.jsonl: 4 rows, " in out and "2 without a question or a response" in out
    assert "skipped: row 2, 5\n" in out and found["skipped_rows"] == [2, 5]
    assert [row["number"] for row in found["rows"]] == [1, 3, 4, 6]
    assert "exact match: greedy answers to the first 3 rows" in out


def test_long_names_keep_their_ends(report, work, model_folder):
    long = "very/" * 20 + "long.safetensors"
    (work / long).parent.mkdir(parents=True)
    save_for(model_folder, long)
    out, found = report(prompt_file=["a.safetensors", long], eval_generate=0)
    assert found["sides"][-1]["name"] == long
    last = table_of(out, "loss")[-1][0]
    assert last.startswith("...") and last.endswith("very/long")


def test_a_text_prompt_of_ones_own(report, evaluate, work, model_folder):
    """It takes the place of the init text, also where there is none, and keeps its backticks."""
    save_for(model_folder, "vocab.safetensors", init_text="")
    own = "Say `data`."
    out, found = report(prompt_file="a.safetensors", text_prompt=own)
    assert f"text prompt: {own!r}, as given, as {len(own)} tokens\n" in out
    assert [side["num_virtual_tokens"] for side in found["sides"]] == [0, len(own), 4]
    other, found_other = report(prompt_file="vocab.safetensors", text_prompt=own)
    assert found_other["sides"][1] == found["sides"][1]
    _, usual = report(prompt_file="a.safetensors")
    assert usual["sides"][1]["loss"] != found["sides"][1]["loss"]
    out, found = report(prompt_file="a.safetensors", text_prompt="")
    assert [side["name"] for side in found["sides"]] == ["no prompt", "a.safetensors"]
    assert (
        "no text prompt: vocab.safetensors names no init text; --text-prompt gives one"
        in evaluate(prompt_file="vocab.safetensors", eval_generate=0).out
    )


# the prompt's own rows

PARTS = {"train": ROWS[:4], "validation": ROWS[4:7], "test": ROWS[7:9]}


@pytest.fixture
def train(capfd, work, model_folder):
    """Train for a step on rows of the work folder; the prompt is own.safetensors unless it is named."""

    def run(data, *extra, prompt_file="own.safetensors"):
        words = ["--model", model_folder, "--data", data, "--prompt-file", prompt_file, "--virtual-tokens", 3]
        words += ["--max-steps", 1, "--device", "cpu", "--precision", "fp32"]
        result = run_command(capfd, "train", *words, *extra)
        assert result.status == 0, result.err
        assert (work / prompt_file).exists()

    return run


@pytest.fixture
def parts(work):
    """A folder of three splits."""
    (work / "parts").mkdir()
    for split, rows in PARTS.items():
        write(work / "parts", "jsonl", rows, split)
    return work / "parts"


@pytest.fixture
def own(report):
    """What is scored of own.safetensors without `--data`: how the rows are called, and their instructions."""

    def run(*extra, **changes):
        changes = {"prompt_file": "own.safetensors", "data": None, "eval_generate": 0} | changes
        out, found = report(*extra, **changes)
        (line,) = [line for line in out.splitlines() if line.startswith("--data ")]
        return line, [row["instruction"] for row in found["rows"]]

    return run


def asked(rows):
    return [row["instruction"] for row in rows]


def test_a_prompt_is_scored_on_its_test_rows(train, own, parts):
    """Not on the held-out rows, which chose it."""
    train("parts")
    line, instructions = own()
    assert line.startswith(f"--data {parts} (test, as own.run has it): 2 rows") and instructions == asked(PARTS["test"])
    line, instructions = own("--held-out")
    assert line.startswith(f"--data {parts} (held out, as own.run has it): 3 rows")
    assert instructions == asked(PARTS["validation"])


def test_the_run_folder_is_found_from_elsewhere(train, evaluate, parts, work, tmp_path, monkeypatch):
    train("./parts", "--run-dir", "some/run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    changes = {"prompt_file": work / "own.safetensors", "data": None, "eval_generate": 0}
    assert_one_line(evaluate(**changes), f"{work}/own.run", "--data")
    result = evaluate(run_dir=work / "some" / "run", **changes)
    assert result.status == 0 and f"--data {parts} (test, as {work}/some/run has it): 2 rows" in result.out


def test_rows_named_by_flags_of_the_run(train, own, work, parts):
    train("parts/train.jsonl", "--eval-data", "parts/validation.jsonl", "--test-data", "parts/test.jsonl")
    assert own()[1] == asked(PARTS["test"])
    assert own("--held-out")[1] == asked(PARTS["validation"])


def test_a_drawn_share_is_drawn_again(train, own, work):
    """Without test rows the held-out ones are scored, and called so."""
    train("rows.jsonl", "--eval-fraction", 0.4, "--seed", 11)
    drawn = load_splits("rows.jsonl", eval_fraction=0.4, seed=11)
    line, instructions = own()
    assert "(held out, as own.run has it): 4 rows" in line
    assert instructions == [row.columns["instruction"] for row in drawn.eval_rows]
    assert own("--held-out")[1] == instructions
    other = load_splits("rows.jsonl", eval_fraction=0.4, seed=42)
    assert instructions != [row.columns["instruction"] for row in other.eval_rows]


def test_copies_of_rows_that_trained_or_chose_it_are_left_out(train, own, parts):
    write(parts, "jsonl", [*PARTS["test"], PARTS["train"][1], PARTS["validation"][0]], "test")
    train("parts")
    assert own()[1] == asked(PARTS["test"])


def test_named_rows_come_before_its_own(train, own, parts):
    train("parts")
    line, instructions = own(data="rows.jsonl")
    assert line.startswith("--data rows.jsonl: 10 rows") and instructions == asked(ROWS)


def test_more_prompts_are_scored_on_the_rows_of_the_first(train, own, parts):
    train("parts")
    train("rows.jsonl", prompt_file="other.safetensors")
    assert own(prompt_file=["own.safetensors", "other.safetensors"])[1] == asked(PARTS["test"])


def test_without_rows_of_its_own(train, refused, parts, work):
    """One line, and never rows that the prompt has nothing to do with."""
    train("parts")
    train("rows.jsonl", "--eval-fraction", 0, prompt_file="none.safetensors")
    train("rows.jsonl", "--eval-fraction", 0.2, prompt_file="held.safetensors")
    refused("--data", "own.run", "none.safetensors", data=None, prompt_file="none.safetensors", run_dir="own.run")
    refused(
        "--data", "none.run is of another run than own", data=None, prompt_file="own.safetensors", run_dir="none.run"
    )
    refused("--data", "a.run", data=None)  # no run folder at all
    refused("--data", "gone.run", data=None, prompt_file="own.safetensors", run_dir="gone.run")
    refused("--data", "none.safetensors has no test or held-out rows", data=None, prompt_file="none.safetensors")
    (work / "own.run" / "config.json").write_text("{}")
    refused("--data", "own.run", data=None, prompt_file="own.safetensors")
    train("parts/train.jsonl", "--test-data", "parts/test.jsonl", prompt_file="test.safetensors")
    refused("--data", "has no held-out rows", data=None, prompt_file="test.safetensors", extra=["--held-out"])


def test_rows_of_a_run_without_names(refused, work, model_folder):
    """A run in Python may have had rows that are in no file."""
    softprompt.train(ROWS, model=str(model_folder), prompt_file="mine.safetensors", max_steps=1, device="cpu")
    refused("--data", "mine.run", data=None, prompt_file="mine.safetensors")


@pytest.mark.parametrize("split", PARTS)
def test_rows_that_have_changed_since_the_run_are_not_scored(train, refused, report, parts, split):
    """They may be those that trained it."""
    train("parts")
    before = (parts / f"{split}.jsonl").read_bytes()
    write(parts, "jsonl", PARTS[split][1:], split)
    refused("--data", str(parts), "any more", data=None, prompt_file="own.safetensors")
    (parts / f"{split}.jsonl").unlink()
    if split == "train":
        refused("--data", str(parts), data=None, prompt_file="own.safetensors")
    else:
        refused("--data", "any more", data=None, prompt_file="own.safetensors")
    (parts / f"{split}.jsonl").write_bytes(before)
    report(prompt_file="own.safetensors", data=None)


def test_the_rows_of_the_run_are_not_replaced(train, refused, parts):
    train("parts")
    for extra in ((), ("--overwrite",)):
        settings = {"data": None, "prompt_file": "own.safetensors", "extra": extra}
        refused("--output-file", "parts", output_file="parts/new.json", **settings)
    refused("parts/test.jsonl", "among", output_file="parts/test.jsonl", **settings)


# bad input


def test_the_fixtures_are_good(evaluate, work):
    result = evaluate(data="labelled.jsonl", choices=CHOICES, output_file="new/report.json")
    assert result.status == 0 and "figures and rows written to new/report.json" in result.out
    assert (work / "new" / "report.json").exists()


def test_bad_prompt_files(refused, work, tmp_path, model_folder):
    refused("gone.safetensors", "no such prompt file", prompt_file=["a.safetensors", "gone.safetensors"])
    refused("./a.safetensors", "twice", prompt_file=["a.safetensors", "b.safetensors", "./a.safetensors"])
    (work / "rows.safetensors").write_text("{}")
    refused("rows.safetensors", "not a prompt file", prompt_file="rows.safetensors")
    save_for(model_folder, "no prompt")
    refused("./no prompt", prompt_file="no prompt")
    save_for(model_folder, "nameless.safetensors", base="")
    refused("nameless.safetensors", "--model", prompt_file="nameless.safetensors")


def test_a_prompt_for_another_base(refused, report, work, tmp_path, model_folder):
    save_for(BUILTIN, "wide.safetensors")
    refused("wide.safetensors", "hidden size 192", prompt_file=["a.safetensors", "wide.safetensors"])
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    with torch.no_grad():
        base.model.get_input_embeddings().weight.add_(0.1)
    base.model.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    save_for(tmp_path / "other", "other.safetensors")
    files = ["a.safetensors", "other.safetensors"]
    refused("other.safetensors", "made for another base", "--allow-other-base", prompt_file=files)
    refused("a.safetensors", "made for another base", model=tmp_path / "other")
    out, found = report("--allow-other-base", prompt_file=files, eval_generate=0)
    assert "note: other.safetensors: another base" in out and len(found["sides"]) == 4


def test_bad_rows(refused, work):
    refused("--data", "gone.jsonl", "no such file", data="gone.jsonl")
    refused("--split telepathy", "rows.jsonl", "train", split="telepathy")
    write(work, "jsonl", [row | {"output": ""} for row in ROWS], "empty")
    refused("--data", "empty.jsonl", "no row has a response", data="empty.jsonl")
    refused("no row has a response", "--max-length 3", max_length=3)
    write(work, "jsonl", [{"instruction": "x"}] * 2, "lacking")
    refused("row 1", "no output", data="lacking.jsonl")


def test_an_output_that_is_no_choice(refused, work):
    write(work, "jsonl", [ROWS[0] | {"output": "red"}, ROWS[1] | {"output": "purple"}], "odd")
    refused("odd.jsonl, row 2", "'purple'", "--choices red, green", data="odd.jsonl", choices=["red", "green"])


def test_a_context_that_is_too_short(refused, tmp_path, work):
    sizes = {"n_embd": HIDDEN_SIZE, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB_SIZE}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**sizes, **SPECIAL)).save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")
    save_for(tmp_path / "gpt2", "gpt2.safetensors", init_text="Say")
    write(work, "jsonl", [{"instruction": "a" * 30, "output": "b" * 30}], "long")
    refused("--max-length", "context of 64", prompt_file="gpt2.safetensors", data="long.jsonl")
    settings = {"prompt_file": "gpt2.safetensors", "data": "long.jsonl", "max_length": 56}
    refused("--max-new-tokens", "4 virtual tokens + 90 text", "context of 64", max_new_tokens=40, **settings)
    write(work, "jsonl", [{"instruction": "a" * 30, "output": "b"}], "label")
    refused("--max-length", "context of 64", choices=["b", "c" * 30], **settings | {"data": "label.jsonl"})


def test_answers_end_at_twice_the_longest_reference(report, work):
    """Unless a limit is stated, or the base's context has less room."""
    write(work, "jsonl", [ROWS[0] | {"output": "b" * 7}, ROWS[1] | {"output": "b"}], "lengths")
    out, found = report(data="lengths.jsonl", max_new_tokens=None)
    longest = 7 + 1  # one token for each letter, and the one that ends it
    assert f"answers have at most {2 * longest} tokens, twice the longest reference (--max-new-tokens)" in out
    assert found["max_new_tokens"] == 2 * longest
    out, found = report(data="lengths.jsonl", max_new_tokens=3)
    assert "at most" not in out and found["max_new_tokens"] == 3
    out, found = report(data="lengths.jsonl", max_new_tokens=None, eval_generate=0)
    assert "at most" not in out and found["max_new_tokens"] is None


def test_nothing_is_replaced_unasked(refused, evaluate, work):
    (work / "report.json").write_text("precious")
    (work / "folder").mkdir()
    refused("report.json", "already there", "--overwrite", output_file="report.json")
    # before any work: even what cannot be loaded is not looked at
    refused("report.json", "already there", output_file="report.json", prompt_file="gone", data="gone.csv", model="x")
    for extra in ((), ("--overwrite",)):
        refused("folder", "is a folder", output_file="folder", extra=extra)
        refused("a.safetensors", "--prompt-file", output_file="./a.safetensors", extra=extra)
        refused("rows.jsonl", "--data", output_file="rows.jsonl", extra=extra)
        refused("--output-file", "report.json/x", output_file="report.json/x", extra=extra)
    refused("--overwrite", "needs --output-file", extra=("--overwrite",))
    assert evaluate("--overwrite", output_file="report.json", eval_generate=0).status == 0
    assert json.loads((work / "report.json").read_text())["seed"] == 42


def test_no_memory(evaluate, monkeypatch):
    def fails(*args, **settings):
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("softprompt.analysis.comparison.greedy_answers", fails)
    result = evaluate(per_device_eval_batch_size=5)
    assert_one_line(result, "out of memory with --per-device-eval-batch-size 5")


def test_a_full_disk_leaves_the_table(evaluate, work, monkeypatch):
    def fails(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("softprompt.cli.evaluate.write_atomic", fails)
    result = evaluate(output_file="report.json")
    assert_one_line(result, "report.json: No space left on device")
    assert "lowest loss: " in result.out and "written" not in result.out and not (work / "report.json").exists()
