"""`inspect` tells the truth about a prompt, checked with plain loops, and refuses what it cannot look at."""

import json
import math
import re
import sys

import pytest
import torch
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.models import HIDDEN_SIZE, VOCAB_SIZE, make_model, make_tokenizer

from softprompt import SoftPromptEmbedding, save_prompt
from softprompt.__main__ import main
from softprompt.analysis import vectors
from softprompt.analysis.vectors import nearest_tokens, token_text, vocabulary_rms
from softprompt.base.known import remember_base
from softprompt.base.loading import load_base
from softprompt.cli.columns import display_width, fields, fit, wrap
from softprompt.config.commands import TrainConfig
from softprompt.prompt.metadata import PromptMetadata
from softprompt.prompt.start import initial_prompt, start_of, why_no_start
from softprompt.tokens.encoding import EncodedRow

RUN = [
    {"step": 0, "eval_loss": 2.0, "prompt": "none"},
    {"step": 0, "eval_loss": 4.0, "prompt": "initial"},
    {"step": 2, "loss": 3.0, "supervised_tokens": 40},
    {"step": 2, "eval_loss": 1.0, "prompt": "trained"},
]
TRAINING = {"steps": 2, "rows": 10, "learning_rate": 0.0123456, "held_out_loss": {"trained_prompt": 1.0}}


class Scaled(torch.nn.Embedding):
    """Rows that the module scales, as Gemma's does."""

    def forward(self, ids):
        return 3.0 * super().forward(ids)


@pytest.fixture
def base(model_folder):
    """A base that prompts were trained on here."""
    base = load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")
    remember_base(base.name, base.revision, base.fingerprint.sha256)
    return base


@pytest.fixture
def prompt(work, base):
    """An untrained prompt of four tokens, started from text, with the metrics of a run."""
    config = TrainConfig(init_text="ab c\n", virtual_tokens=4)
    stated = {"init": "text", "init_text": config.init_text, "template": "alpaca", "training": json.dumps(TRAINING)}
    save_prompt(work / "p.safetensors", initial_prompt(config, base), base.metadata | stated)
    (work / "p.run").mkdir()
    (work / "p.run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RUN))
    return work / "p.safetensors"


@pytest.fixture
def inspect(capfd):
    return lambda *argv: run_command(capfd, "inspect", *argv)


def token_rows(out):
    """Numbers in front of the nearest tokens, a list for every virtual token."""
    table = out.split("\n\n")[2].splitlines()[1:]
    return [line.split()[:4] for line in table if line[:5].strip()]


@pytest.mark.parametrize("chunk", [1, 7 * HIDDEN_SIZE, 1 << 22], ids=["row", "seven rows", "all"])
def test_nearest_tokens_are_those_of_a_plain_loop(chunk, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", chunk)
    torch.manual_seed(0)
    embedding, weight = Scaled(VOCAB_SIZE, HIDDEN_SIZE), torch.randn(5, HIDDEN_SIZE)
    ids, cosines = nearest_tokens(weight, embedding, 3)
    assert ids.shape == cosines.shape == (5, 3)
    for place in range(5):
        vector = weight[place].tolist()
        expected = []
        for token in range(VOCAB_SIZE):
            row = embedding.weight[token].tolist()
            product = sum(a * b for a, b in zip(vector, row, strict=True))
            expected.append((product / math.hypot(*vector) / math.hypot(*row), token))
        expected.sort(reverse=True)
        assert [token for _, token in expected[:3]] == ids[place].tolist()
        # fp32 products of 32 numbers against fp64
        assert [cosine for cosine, _ in expected[:3]] == pytest.approx(cosines[place].tolist(), abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_rms_is_of_the_rows_that_the_module_gives(chunk, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", chunk)
    embedding = Scaled(50, 8)
    squares = [(3 * value) ** 2 for row in embedding.weight.tolist() for value in row]
    # one fp32 rounding of the scaled row
    assert vocabulary_rms(embedding) == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-6)


def facts_of(seed=None, **strings):
    """What is read from a file with these strings, and this seed in its summary."""
    return PromptMetadata.from_strings({"training": json.dumps({} if seed is None else {"seed": seed})} | strings)


@pytest.mark.parametrize("init", ["text", "vocab", "random"])
def test_the_start_is_made_again(init, base):
    config = TrainConfig(init=init, init_text="a text", virtual_tokens=6, seed=7)
    strings = {"init": init, "init_text": "a text" if init == "text" else ""}
    assert why_no_start(facts_of(7, **strings)) == ""
    assert torch.equal(start_of(facts_of(7, **strings), base, 6), initial_prompt(config, base).weight)
    if init != "text":
        assert not torch.equal(start_of(facts_of(8, **strings), base, 6), initial_prompt(config, base).weight)


def test_a_start_from_answers_is_made_again(base):
    rows = [EncodedRow([1, 2, 3], [-100, 2, 3]), EncodedRow([1, 3], [-100, 3])]
    start = initial_prompt(TrainConfig(init="answers", virtual_tokens=6), base, rows)
    facts = facts_of(7, init="answers", init_ids="[3, 2]")
    assert why_no_start(facts) == ""
    assert torch.equal(start_of(facts, base, 6), start.weight)


@pytest.mark.parametrize(
    ("strings", "seed", "reason"),
    [
        ({"training": "{}"}, 1, "what it started from"),
        ({"init": "new"}, 1, "what it started from"),
        ({"init": "text"}, 1, "the text"),
        ({"init": "file"}, 1, "another prompt file"),
        ({"init": "answers"}, 1, "the tokens of the answers"),
        ({"init": "vocab", "training": "{}"}, 1, "the seed of its vocab start"),
        ({"init": "random", "training": "{}"}, 1, "the seed of its random start"),
    ],
    ids=str,
)
def test_why_a_start_cannot_be_made_again(strings, seed, reason):
    assert reason in why_no_start(facts_of(seed, **strings))


def test_token_text_shows_spaces_parts_and_unknown_ids(tokenizer):
    def text_of(text):
        return [token_text(token, tokenizer) for token in tokenizer(text)["input_ids"]]

    assert text_of("a \n") == ["'a'", "' '", r"'\n'"]
    first, second = text_of("é")
    assert first[0] == "<" and first != second
    assert token_text(2, tokenizer) == "'</s>'"
    assert token_text(9999, tokenizer) == "id 9999"


def test_token_text_keeps_the_space_that_sentencepiece_drops():
    class Sentencepiece:
        def __len__(self):
            return 3

        def convert_ids_to_tokens(self, token):
            return ["\u2581the", "the", "<0xE5>"][token]

        def decode(self, ids, **settings):
            return ["the", "the", "\ufffd"][ids[0]]

    assert [token_text(token, Sentencepiece()) for token in range(3)] == ["' the'", "'the'", "<<0xE5>>"]


def test_an_untrained_prompt_has_not_moved(prompt, inspect):
    result = inspect(prompt)
    assert (result.status, result.err) == (0, "")
    rows = token_rows(result.out)
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert [row[2:] for row in rows] == [["0", "0"]] * 4
    # what stands on the four places of the init text is its own nearest token
    for row, text in zip(result.out.split("\n\n")[2].splitlines()[1:], ["'a'", "'b'", "' '", "'c'"], strict=True):
        assert f"{text:14}  1.00" in row


def test_movement_is_the_distance_from_the_start(prompt, inspect, base):
    start = initial_prompt(TrainConfig(init_text="ab c\n", virtual_tokens=4), base).weight.detach()
    moved = start + torch.arange(4.0)[:, None]
    stated = base.metadata | {"init": "text", "init_text": "ab c\n"}
    save_prompt(prompt, SoftPromptEmbedding.from_tensor(moved), stated)
    rows = token_rows(inspect(prompt).out)
    for place, row in enumerate(rows):
        norm = math.hypot(*start[place].tolist())
        expected = [math.hypot(*moved[place].tolist()), place * math.sqrt(HIDDEN_SIZE)]
        expected.append(expected[1] / norm)
        assert [float(number) for number in row[1:]] == pytest.approx(expected, rel=1e-3)  # printed with four digits


def test_the_report_tells_what_the_file_says(prompt, inspect, model_folder):
    result = inspect("--prompt-file", prompt)
    assert result == inspect(prompt)
    out = " ".join(result.out.split())
    for words in (
        f"{prompt} shape 4 x {HIDDEN_SIZE}",
        f"size {prompt.stat().st_size:,} bytes",
        f"base {model_folder}",
        r"init text init text 'ab c\n' template alpaca",
        "steps 2 rows 10 learning rate 0.01235 held out loss trained prompt 1",
        "loss curve from",
        "- no prompt . train o held-out",
    ):
        assert words in out
    assert all(display_width(line) <= 100 for line in result.out.splitlines()[1:])


def test_metadata_of_another_version(prompt, inspect, base):
    newer = {"steps": 3, "new": {"a": [1, {"b": None}], "c": "text\n"}, "curve": [[0, 3.0], [3, 1.0]], "seed": 5}
    weight = SoftPromptEmbedding.from_random(base.model.get_input_embeddings(), 2, torch.Generator().manual_seed(5))
    save_prompt("q.safetensors", weight, base.metadata | {"init": "random", "training": json.dumps(newer)})
    result = inspect("q.safetensors")
    assert (result.status, result.err) == (0, "")
    assert r"a 1, none, c text\n" in result.out and "from  the metadata of q.safetensors" in result.out
    assert [row[2] for row in token_rows(result.out)] == ["0", "0"]
    save_prompt("q.safetensors", weight, base.metadata)
    out = inspect("q.safetensors").out
    assert "init      not stated" in out and "cannot be told: the file does not say what" in out
    assert "loss curve: none" in out and "q.run/metrics.jsonl" in out and "moved" not in out


def test_a_curve_of_another_run_is_pointed_out(prompt, inspect):
    assert "another run" not in inspect(prompt).out
    metrics = prompt.parent / "p.run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"eval_loss": 1.0', '"eval_loss": 1.25') + '{"step": 9, "lo')
    out = inspect(prompt).out
    assert "another run" in out and "1 damaged lines" in out


def test_another_base(prompt, inspect, tmp_path):
    other = make_model("bloom")
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    assert_one_line(inspect(prompt, "--model", tmp_path / "other"), prompt, "another base", "--allow-other-base")
    result = inspect(prompt, "--model", tmp_path / "other", "--allow-other-base")
    assert result.status == 0 and "another base" in result.err
    assert "cannot be told: this is not the base" in result.out and "moved" not in result.out


def test_two_tokens_on_the_shipped_base(work, inspect):
    base = load_base("builtin:bloom-small@1", device=torch.device("cpu"), precision="auto")
    prompt = SoftPromptEmbedding.from_text("thank you", base.tokenizer, base.model.get_input_embeddings(), 2)
    save_prompt("small.safetensors", prompt, base.metadata | {"init": "text", "init_text": "thank you"})
    result = inspect("small.safetensors", "--num-nearest", 8)
    assert (result.status, result.err) == (0, "")
    assert len(token_rows(result.out)) == 2
    assert len(re.findall(r" -?[01]\.\d\d(?= |$)", result.out.split("\n\n")[2], re.M)) == 2 * 8
    assert all(display_width(line) <= 100 for line in result.out.splitlines())


def test_the_plot_is_a_png_and_replaced_on_request_only(prompt, inspect):
    result = inspect(prompt, "--plot", "new/curve.png")
    assert (result.status, result.err) == (0, "") and "plot written to new/curve.png" in result.out
    assert "o held-out" not in result.out
    png = prompt.parent / "new" / "curve.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    png.write_text("precious")
    assert_one_line(inspect(prompt, "--plot", png), "--plot", "already there", "--overwrite")
    assert png.read_text() == "precious"
    assert inspect(prompt, "--plot", png, "--overwrite").status == 0
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [[], ["--overwrite"]], ids=str)
def test_without_matplotlib_a_plot_is_refused(prompt, inspect, monkeypatch, words):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    if words:
        (prompt.parent / "curve.png").write_text("precious")
    before = snapshot(prompt.parent)
    result = inspect(prompt, "--plot", "curve.png", *words)
    assert_one_line(result, "--plot", "matplotlib", "pip install 'softprompt[plot]'")
    assert result.out == "" and snapshot(prompt.parent) == before
    assert inspect(prompt).status == 0  # the chart in the terminal needs none


@pytest.mark.parametrize("columns", [80, 120])
def test_the_report_fits_the_terminal(prompt, inspect, work, monkeypatch, columns):
    """Long names, many neighbours and what cannot be told are wrapped; a narrower report has the same content."""
    base = load_base("builtin:bloom-small@1", device=torch.device("cpu"), precision="auto")
    weight = SoftPromptEmbedding.from_text("thank you", base.tokenizer, base.model.get_input_embeddings(), 3)
    long = {"init": "file", "data": "rows " * 40, "init_text": "您好 " * 60, "template": "alpaca"}
    training = TRAINING | {"curve": [[0, 3.0], [50, 1.0], [100, 0.5]], "notes": ["a word " * 30]}
    save_prompt("long.safetensors", weight, base.metadata | long | {"training": json.dumps(training)})
    wide = {path: inspect(path, "--num-nearest", 9).out for path in ("p.safetensors", "long.safetensors")}
    monkeypatch.setattr("softprompt.cli.terminal.screen_width", lambda: columns)
    for path, other in wide.items():
        result = inspect(path, "--num-nearest", 9)
        assert (result.status, result.err) == (0, "")
        assert max(map(display_width, result.out.splitlines())) <= columns
        rows, others = token_rows(result.out), token_rows(other)
        assert [row[:2] for row in rows] == [row[:2] for row in others] and len(rows) > 2
        cosines = [
            re.findall(r"['>.] +(-?[01]\.\d\d)(?= |$)", out.split("\n\n")[2], re.M) for out in (result.out, other)
        ]
        assert cosines[0] == cosines[1] and len(cosines[0]) == 9 * len(rows)
    assert "".join(("您好 " * 60).split()) in "".join(result.out.split())


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["missing.safetensors"], ["missing.safetensors", "no such prompt file"]),
        (["p.run/metrics.jsonl"], ["p.run/metrics.jsonl", "not a prompt file"]),
        (["p.safetensors", "q.safetensors"], ["q.safetensors", "--help"]),
        (["p.safetensors", "--prompt-file", "p.safetensors"], ["--prompt-file: p.safetensors is given too"]),
        (["p.safetensors", "--prompt_file=p.safetensors"], ["--prompt-file: p.safetensors is given too"]),
        (["p.safetensors", "--num-nearest", "2", "stray"], ["stray", "--help"]),
        ([""], ["--prompt-file", "must name a file"]),
        (["p.safetensors", "--num-nearest", VOCAB_SIZE + 1], ["--num-nearest", VOCAB_SIZE]),
        (["p.safetensors", "--run-dir", "nowhere"], ["--run-dir nowhere", "metrics.jsonl"]),
        (["p.safetensors", "--run-dir", "other"], ["other/metrics.jsonl", "not the metrics"]),
        (["p.safetensors", "--plot", "curve.svg"], ["--plot", ".png"]),
        (["p.safetensors", "--plot", "folder.png"], ["--plot folder.png", "folder"]),
        (["p.safetensors", "--plot", "p.safetensors/curve.png"], ["--plot", "cannot write"]),
        (["bare.safetensors", "--plot", "curve.png"], ["--plot curve.png", "no curve"]),
        (["p.safetensors", "--model", "./nowhere"], ["--model ./nowhere", "no such folder"]),
        (["bare.safetensors"], ["bare.safetensors", "which base", "--model"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line(argv, wanted, prompt, inspect):
    folder = prompt.parent
    (folder / "folder.png").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "metrics.jsonl").write_text("epoch,loss\n1,2\n")
    save_prompt(folder / "bare.safetensors", SoftPromptEmbedding.from_tensor(torch.ones(2, HIDDEN_SIZE)), {})
    before = snapshot(folder)
    assert_one_line(inspect(*argv), *wanted)
    assert snapshot(folder) == before


def test_the_package_hands_the_command_over(prompt, capsys):
    main(["inspect", str(prompt), "--num-nearest", "1"])
    assert capsys.readouterr().out.startswith(f"{prompt}\n")


def test_a_base_that_has_moved_is_blamed_on_the_prompt_file(work, inspect, base):
    save_prompt("p.safetensors", SoftPromptEmbedding.from_tensor(torch.ones(2, 32)), base.metadata | {"base": "./gone"})
    assert_one_line(inspect("p.safetensors"), "p.safetensors was trained on ./gone", "pass --model")


def test_text_in_columns():
    assert [display_width(text) for text in ("abc", "您好", "e\u0301", "")] == [3, 4, 1, 0]
    assert fit("ab", 4) == "ab  " and fit("abcdef", 5) == "ab..." and fit("您好您好", 6) == "您... "
    assert wrap("one two three", 8) == ["one two", "three"] and wrap("您好您好", 5) == ["您好", "您好"]
    assert wrap("abcdefgh ij", 4) == ["abcd", "efgh", "ij"]
    assert fields([("a", "1 2"), ("long", "3")], columns=9) == "  a     1\n        2\n  long  3"
