"""The benchmarks measure what they say: FLOPs by hand, rows as long as stored, every side on the same rows."""

import copy
import hashlib
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "speed"))

import compare_decode  # noqa: E402
import compare_peft  # noqa: E402
import flops  # noqa: E402
import report  # noqa: E402
import scaling  # noqa: E402
import sides  # noqa: E402
from rows import ANSWER_TOKENS, PERCENTILES, QUESTION_TOKENS, encoded, generated_rows, rows_of_lengths  # noqa: E402
from shapes import SHAPES, make_tokenizer  # noqa: E402

from softprompt.data.reading import Row  # noqa: E402
from softprompt.tokens.encoding import EncodedRow  # noqa: E402


def cells(line: str) -> list[str]:
    """Of one line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_linear_weights_of_known_shapes():
    hidden, layers = 1024, 24
    size = flops.model_size(SHAPES["bloom-389m-zh"])
    assert size.linear_weights == layers * 12 * hidden * hidden  # 3 + 1 for attention, 4 + 4 for the MLP
    assert (size.head_weights, size.attention_width) == (42_437 * hidden, hidden)
    size = flops.model_size(SHAPES["llama-360m"])
    assert size.linear_weights == 32 * (960 * (960 + 320 + 320 + 960) + 3 * 960 * 2560)


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_least_flops_equal_a_count_of_every_product(name):
    config, virtual_tokens, layers, heads, head = SHAPES[name], 3, 2, 4, 16
    rows = [EncodedRow([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9]), EncodedRow([5, 6, 7], [-100, 6, 7])]
    # the tokens that run through the layers: the prompt and all of a row but its last; whom each of them may see
    seen = [virtual + 1 for virtual in range(virtual_tokens)]
    for inputs in (4, 2):
        seen += [virtual_tokens + place + 1 for place in range(inputs)]
    products = 0
    for keys in seen:
        products += flops.model_size(config).linear_weights  # forward
        products += flops.model_size(config).linear_weights  # gradient of the input
        for _layer_and_head in range(layers * heads):
            products += 2 * keys * head  # scores, values
            products += 4 * keys * head  # gradients of query, key, probability and value
    products += 2 * (3 + 2) * config.vocab_size * config.hidden_size
    assert flops.least_flops(flops.model_size(config), rows, virtual_tokens, steps=1) == 2 * products


def test_the_prompt_counts_once_per_step_and_a_cut_row_to_its_last_label():
    size = flops.model_size(SHAPES["tiny"])
    one, two = (flops.least_flops(size, [], 5, steps) for steps in (1, 2))
    assert two == 2 * one > 0
    assert flops.inputs_read(EncodedRow([1, 2, 3, 4], [-100, 2, 3, -100])) == 2
    assert flops.inputs_read(EncodedRow([1, 2], [-100, -100])) == 0


def test_peak_is_the_best_product(monkeypatch):
    monkeypatch.setattr(flops, "MATRIX_SIZES", {"cpu": (64, 128, 256)})
    assert flops.measured_peak("fp32", "cpu", repeats=2) > 1e6


@pytest.mark.parametrize("name", ["bloom-389m-zh", "tiny"])
def test_generated_rows_follow_the_stored_lengths(name):
    rows = generated_rows(1000)
    assert rows[:100] == generated_rows(100)
    ids = encoded(rows, make_tokenizer(rows, SHAPES[name].vocab_size), max_length=10_000)
    answers = sorted(row.num_supervised for row in ids)
    questions = sorted(len(row.input_ids) - row.num_supervised for row in ids)
    for found, stored in ((questions, QUESTION_TOKENS), (answers, ANSWER_TOKENS)):
        assert stored[0] <= found[0] and found[-1] <= stored[-1]
        for percentile, tokens in list(zip(PERCENTILES, stored, strict=True))[1:-1]:
            assert found[percentile * 10] == pytest.approx(tokens, rel=0.1, abs=1)
    assert statistics.mean(answers) == pytest.approx(136.7, rel=0.02)


def test_rows_of_lengths_are_met_to_the_token():
    rows = rows_of_lengths([(16, 48), (5, 2), (200, 30)])
    found = encoded(rows, make_tokenizer(rows, 4096))
    assert [(len(row.input_ids) - row.num_supervised, row.num_supervised) for row in found] == [
        (16, 48), (5, 2), (200, 30),
    ]  # fmt: skip


def test_a_larger_vocabulary_does_not_change_the_tokens():
    texts = [hashlib.sha256(bytes([place % 256, place // 256])).hexdigest()[:20] for place in range(2000)]
    rows = [Row.asked(text, "", text[::-1], 1) for text in texts]
    large, larger = (make_tokenizer(rows, SHAPES[name].vocab_size) for name in ("bloom-389m-zh", "bloom-560m"))
    assert large.get_vocab() == larger.get_vocab() and len(large) == 16_000
    assert len(make_tokenizer(rows, 300)) <= 300


def test_a_file_in_this_order_trains_row_by_row():
    from softprompt.optim.schedule import rows_of_step

    rows = list(range(24))
    file = sides.order_for_train(rows, 8)
    assert file != rows
    taken = [file[place] for step in range(3) for place in rows_of_step(step, 24, 8, sides.SEED)]
    assert taken == rows


def test_other_rows_than_meant_are_noticed():
    rows = [EncodedRow([5, 6, 7], [-100, 6, 7])] * 2
    work = sides.Work([], rows, warm_up_steps=0, rows_per_step=1)
    sides._require_same_rows([{"supervised_tokens": 2}] * 2, work)
    with pytest.raises(RuntimeError, match="other rows"):
        sides._require_same_rows([{"supervised_tokens": 2}, {"supervised_tokens": 3}], work)


def test_best_of_peft_covers_loadings_and_batches():
    found = {(setup.loading, setup.batch) for setup in compare_peft.setups("best", "bf16")}
    assert found == {("autocast", 1), ("autocast", 8), ("bf16", 1), ("bf16", 8)}
    assert [str(setup) for setup in compare_peft.setups("tutorial", "bf16")] == ["autocast, batch 1"]
    assert [str(setup) for setup in compare_peft.setups("lora", "fp32")] == ["fp32, batch 1", "fp32, batch 8"]


def test_ratios_are_taken_within_a_round():
    ours = [sides.Run([1.0], 8, 100), sides.Run([10.0], 8, 100)]
    theirs = [sides.Run([3.0], 8, 150), sides.Run([20.0], 8, 150)]
    block = compare_peft.Block(4, "fp32", 1.0, 1, {}, {"softprompt": ours, "best": theirs}, {})
    assert compare_peft.ratios(block, "best") == ["2.50×", "1.50×"]


def test_compare_peft_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_peft, "peak", lambda task: 1e12)
    words = "--shape tiny --rows 16 --rounds 1 --warm-up 1 --trial-rows 0 --virtual-tokens 4 --precision fp32"
    words += f" --threads 1 --device cpu --sides softprompt best --cache {tmp_path} --json {tmp_path}/out.json"
    compare_peft.main(words.split())
    caption, _, head, rule, ours, peft, *_ = capsys.readouterr().out.splitlines()
    assert "16 generated rows" in caption
    assert len(cells(head)) == len(cells(rule)) == len(cells(ours)) == len(cells(peft))
    assert cells(ours)[:4] == ["fp32", "4", "**softprompt**", "fp32"] and cells(ours)[-2:] == ["1.00×", "1.00×"]
    assert cells(peft)[2] == "PEFT at its best" and float(cells(peft)[4]) > 0
    (block,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["blocks"]
    runs = [block["runs"][side][0] for side in ("softprompt", "best")]
    assert runs[0]["supervised_tokens"] == runs[1]["supervised_tokens"] > 0
    assert [len(run["step_seconds"]) for run in runs] == [2, 2]  # the warm-up is not among them
    assert all(50e6 < run["peak_bytes"] < 10e9 for run in runs)


@pytest.mark.heavy
def test_compare_decode_end_to_end(tmp_path, capsys):
    words = "--shape tiny --rounds 1 --virtual-tokens 4 --precision fp32 --batch 1 3 --new-tokens 8 --threads 1"
    compare_decode.main([*words.split(), "--device", "cpu", "--cache", str(tmp_path)])
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| fp32")]
    names = ("short", "long", "shared")
    assert [line[2:4] for line in lines] == [[name, batch] for name in names for batch in ("1", "3")]
    assert [line[-1] for line in lines] == ["1 of 1", "3 of 3"] * 3
    for line in lines:  # a share of the bound where there is one row
        assert all(re.fullmatch(r"-?\d+%" if line[3] == "1" else "", cell) for cell in line[7:9])


def test_log_slope_and_its_words():
    values = [8, 16, 32, 64]
    assert scaling.log_slope(values, [3 * value**1.5 for value in values]) == pytest.approx(1.5)
    words = [scaling.in_words(exponent) for exponent in (0.0, 0.5, 1.0, 1.5)]
    assert words == ["does not grow", "grows slower than linearly", "grows linearly", "grows faster than linearly"]


def test_scaling_varies_one_thing_at_a_time():
    for points, value in scaling.SWEEPS.values():
        assert [value(point) for point in points] == sorted({value(point) for point in points})
        changed = {
            name for point in points for name, size in vars(point).items() if size != getattr(scaling.BASE, name)
        }
        assert len(changed) == 1 or changed == {"hidden", "layers"}


def test_the_weights_that_a_token_reads():
    """All of a tied base; of an untied one not the input embedding, of which a token reads one row."""
    import decoder
    from transformers import AutoModelForCausalLM

    tied = AutoModelForCausalLM.from_config(SHAPES["tiny"])
    assert decoder.size(decoder.weights_of_a_token(tied)) == sum(each.nbytes for each in tied.parameters())
    config = copy.deepcopy(SHAPES["tiny-llama"])
    config.tie_word_embeddings = False
    untied = AutoModelForCausalLM.from_config(config)
    whole = sum(each.nbytes for each in untied.parameters())
    assert decoder.size(decoder.weights_of_a_token(untied)) == whole - untied.get_input_embeddings().weight.nbytes
    assert decoder.seconds_to_read(decoder.weights_of_a_token(untied)) > 0


def test_left_padding_of_the_decoders():
    import decoder

    ids, mask = decoder.pad_left([[7], [8, 9]], "cpu")
    assert torch.equal(ids, torch.tensor([[3, 7], [8, 9]]))
    assert torch.equal(mask, torch.tensor([[0, 1], [1, 1]]))


def test_the_docs_give_the_stored_lengths():
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for name, stored in (("percentile", PERCENTILES), ("question", QUESTION_TOKENS), ("answer", ANSWER_TOKENS)):
        assert f"| {name} | {' | '.join(map(str, stored))} |" in text


def kept(ratio, load=0.5):
    table = "caption\n\n| precision | P | questions | batch | ratio | equal answers |\n|---|---:|---|---:|---:|---:|\n"
    row = f"| bf16 | 12 | short | 1 | {ratio}× | 1 of 1 |\n\nA plain read reached 9 GB/s."
    versions = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"}
    return {
        "command": "python benchmarks/speed/compare_decode.py",
        "output": table + row,
        "minutes": 3.0,
        "load": [load, load],
        "date": "2026-11-26",
        "commit": "0123456789",
        "versions": versions,
        "cpu": "x86_64 with avx2, 2 cores",
    }


def test_the_report_puts_machines_side_by_side_and_keeps_what_stands_around():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nbehind\n"
    machines = {"small": {"decoding": kept(1.5)}, "large": {"decoding": kept(2.5)}}
    written = report.with_report(page, machines)
    assert written.startswith("before\n") and written.endswith("\nbehind\n") and "old" not in written
    assert report.with_report(written, machines) == written
    (row,) = (cells(line) for line in written.splitlines() if line.startswith("| bf16"))
    head = next(cells(line) for line in written.splitlines() if line.startswith("| precision"))
    found = dict(zip(head, row, strict=True))
    assert (found["small: ratio"], found["large: ratio"], found["questions"]) == ("1.5×", "2.5×", "short")
    assert "small: x86_64 with avx2, 2 cores; 2026-11-26, commit 0123456; torch 2.13.0" in written
    assert "large: A plain read reached 9 GB/s." in written


def test_the_report_reads_what_the_benchmarks_print(tmp_path, capsys):
    """The columns that it looks for are there."""
    results = [compare_decode.Result("bf16", 12, "short", 1)]
    results[0].rates = {side: [2.0] for side in results[0].rates}
    results[0].token_seconds = {side: [0.5] for side in results[0].token_seconds}
    results[0].read_seconds, results[0].weight_bytes = [0.25], 8
    (row,) = report.parsed(compare_decode.table(results))
    kind = report.KINDS["decoding"]
    assert {*kind.keys, *kind.figures} <= row.keys()
    assert row["share of the bound"] == "50%"
