"""Rows that stay on the disk are those that stay in memory, and a second run over the same files finds them encoded."""

import dataclasses
import gzip
import hashlib
import json
import random

import pytest
from helpers import templates

from softprompt.config.commands import TrainConfig
from softprompt.data import rows as rows_module
from softprompt.data.row import Row
from softprompt.data.splits import load_questions, load_splits
from softprompt.errors import UserError
from softprompt.tokens import row_cache
from softprompt.tokens.encoded_rows import EncodedWriter, KnownRows, RowFacts
from softprompt.tokens.encoded_splits import cut_of, encode_splits
from softprompt.tokens.encoding import LONGEST_COUNTED, EncodedRow, Encoder
from softprompt.tokens.row_hashes import rows_sha256
from softprompt.tokens.template import Template
from softprompt.training import run

WORDS = ("a quiet road", "two lamps", "河边的路", "bread, paper\nand boats", "x" * 30)


@pytest.fixture
def many_on_disk(monkeypatch):
    """Every table and every split stays on the disk, however small it is."""
    monkeypatch.setattr(rows_module, "MOST_KEPT", -1)
    monkeypatch.setattr(row_cache, "MOST_KEPT", -1)


def write_rows(path, count, *, seed=0, blank=()):
    """Rows of different lengths, some of them twice, and those whose numbers are in `blank` without an answer."""
    draw = random.Random(seed)
    rows = []
    for number in range(1, count + 1):
        asked = rows[-7]["instruction"] if number % 10 == 0 else f"{number}: {' '.join(draw.choices(WORDS, k=3))}"
        said = "" if number in blank else " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
        row = {"instruction": asked, "input": draw.choice(["", "more"]), "output": said, "id": number}
        rows.append({**rows[-7], "id": number} if number % 10 == 0 and number not in blank else row)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def random_rows(count, draw):
    rows = []
    for number in range(1, count + 1):
        ids = [draw.randrange(1000) for _ in range(draw.randrange(12))]
        labels = [id if draw.random() < 0.5 else -100 for id in ids]
        rows.append(EncodedRow(ids, labels, draw.randrange(3), number))
    return rows


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_rows_on_the_disk_are_the_rows(tmp_path, count):
    rows = random_rows(count, random.Random(count))
    writer = EncodedWriter(tmp_path / "rows.arrow", most_kept=0)
    for start in range(0, count, 700):
        writer.add(rows[start : start + 700])
    found = writer.finish()
    assert (tmp_path / "rows.arrow").exists() and not isinstance(found, list)
    assert len(found) == count and list(found) == rows == found
    assert [vars(row) for row in found] == [vars(row) for row in rows]  # the numbers and what was cut, too
    places = [0, -1, count // 2]
    assert [found[place] for place in places] == [rows[place] for place in places]
    assert found[1:9] == rows[1:9] and found[: -count + 1] == rows[: -count + 1] and found != [*rows, rows[0]]


def test_few_rows_stay_in_memory(tmp_path):
    writer = EncodedWriter(tmp_path / "rows.arrow", most_kept=5)
    rows = random_rows(5, random.Random(1))
    writer.add(rows)
    assert writer.finish() == rows and not (tmp_path / "rows.arrow").exists()


def test_the_facts_of_rows_are_those_of_their_definition():
    rows = random_rows(300, random.Random(2))
    facts = RowFacts.of(rows)
    content = json.dumps([[[row.input_ids, row.labels] for row in rows]]).encode()
    assert facts.sha256 == hashlib.sha256(content).hexdigest() == rows_sha256(rows)
    both = json.dumps([[[row.input_ids, row.labels] for row in part] for part in (rows[:9], rows[9:])]).encode()
    assert rows_sha256(rows[:9], rows[9:]) == hashlib.sha256(both).hexdigest()
    hashes = {hashlib.blake2b(json.dumps(row.input_ids).encode(), digest_size=6).hexdigest() for row in rows}
    assert list(facts.sketch) == sorted(hashes)[:64]
    assert facts.longest == max(len(row.input_ids) for row in rows)
    assert facts.largest_id == max(id for row in rows for id in row.input_ids)
    assert facts.num_supervised == sum(label != -100 for row in rows for label in row.labels)
    assert RowFacts.of([]).sha256 == hashlib.sha256(b"[[]]").hexdigest() and RowFacts.of([]).sketch == ()


def test_known_rows_are_told_from_others():
    rows = random_rows(400, random.Random(3))
    known = KnownRows()
    assert known.holds(rows[:2]) == [False, False]
    for row in rows[:200]:
        known.add(row)
    ids = [row.input_ids for row in rows[:200]]
    assert known.holds(rows) == [row.input_ids in ids for row in rows]


@pytest.mark.parametrize("template", [Template("tutorial"), Template("chat", templates.CHATML)])
def test_many_rows_are_read_and_encoded_as_few_are(tmp_path, tokenizer, monkeypatch, template):
    path = write_rows(tmp_path / "rows.jsonl", 2345, blank=(3, 1500, 2345))
    others = write_rows(tmp_path / "test.jsonl", 60)
    settings = {"seed": 7, "eval_fraction": 0.2, "test_data": str(others)}
    few = load_splits(str(path), **settings)
    monkeypatch.setattr(rows_module, "MOST_KEPT", -1)
    many = load_splits(str(path), **settings)
    assert isinstance(few.train_rows, list) and not isinstance(many.train_rows, list)
    assert many == few and many.notes == few.notes
    assert [row.number for row in many.eval_rows] == [row.number for row in few.eval_rows]
    assert many.train_rows[5] == few.train_rows[5] and many.train_rows[-2:] == few.train_rows[-2:]
    short = load_splits(str(path), **settings, max_train_rows=9)
    assert short.train_rows == few.train_rows[:9]
    expected = encode_splits(few, Encoder(tokenizer, template), max_length=150, most_kept=10**9)
    found = encode_splits(many, Encoder(tokenizer, template), max_length=150, most_kept=0)
    assert isinstance(expected.train_rows, list) and not isinstance(found.train_rows, list)
    for one, other in zip(found.splits, expected.splits, strict=True):
        assert list(one.rows) == list(other.rows) and list(one.skipped) == list(other.skipped)
        assert (one.copies, one.cut, one.facts) == (other.copies, other.cut, other.facts)
        assert one.facts == RowFacts.of(one.rows)
        assert list(one.sources) == list(other.sources)[:200]
    assert {3, 1500, 2345} <= {*expected.train.skipped, *expected.held_out.skipped}
    assert expected.held_out.copies > 0 and expected.test.copies > 0
    trained = {tuple(row.input_ids) for row in expected.train_rows}
    assert not trained & {tuple(row.input_ids) for row in found.eval_rows}


def test_wrong_values_in_many_rows_are_named(tmp_path, many_on_disk):
    path = write_rows(tmp_path / "rows.jsonl", 30)
    with path.open("a") as file:
        file.write('{"instruction": "a", "output": ["b"]}\n')
    with pytest.raises(UserError, match=r"rows.jsonl, row 31: output is a list, not text"):
        load_splits(str(path), seed=1)


def test_many_questions_keep_their_columns_and_skip_those_that_ask_nothing(tmp_path, monkeypatch):
    path = tmp_path / "q.jsonl"
    lines = [{"instruction": "" if number in (2, 5) else f"ask {number}", "id": number} for number in range(1, 8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = load_questions(str(path))
    monkeypatch.setattr(rows_module, "MOST_KEPT", -1)
    many = load_questions(str(path))
    assert [row.number for row in many.rows] == [1, 3, 4, 6, 7] and few.notes == many.notes
    assert many.rows == few.rows and [row.others for row in many.rows] == [row.others for row in few.rows]


def config_for(model_folder, path, **options):
    return TrainConfig(data=str(path), model=str(model_folder), virtual_tokens=4, **options)


def test_a_second_run_reads_no_row(tmp_path, model_folder, monkeypatch, many_on_disk):
    path = write_rows(tmp_path / "rows.jsonl", 300, blank=(4,))
    config = config_for(model_folder, path, eval_fraction=0.1)
    _, first = run.load_inputs(config)
    monkeypatch.setattr(run, "load_splits", lambda *a, **k: pytest.fail("the rows were read again"))
    monkeypatch.setattr(Encoder, "encode", lambda *a, **k: pytest.fail("the rows were encoded again"))
    _, second = run.load_inputs(config)
    assert (second.notes, second.choices) == (first.notes, first.choices)
    for one, other in zip(second.splits, first.splits, strict=True):
        assert list(one.rows) == list(other.rows) and list(one.skipped) == list(other.skipped)
        assert (one.copies, one.cut, one.facts) == (other.copies, other.cut, other.facts)
        assert list(one.sources) == list(other.sources)


@pytest.mark.parametrize(
    "change", ["content", "other seed", "max_length", "template", "eval file", "tokenizer", "columns"]
)
def test_whatever_decides_the_rows_decides_the_entry(tmp_path, model_folder, many_on_disk, change):
    path = write_rows(tmp_path / "rows.jsonl", 100)
    options = {"eval_fraction": 0.1}
    run.load_inputs(config_for(model_folder, path, **options))
    if change == "content":
        path.write_text(path.read_text("utf-8").replace("two lamps", "six lamps"), "utf-8")
    elif change == "eval file":
        options = {"eval_data": str(write_rows(tmp_path / "eval.jsonl", 20, seed=5))}
    elif change == "columns":
        options["columns"] = "instruction=instruction,output=id"
    elif change == "tokenizer":
        from softprompt.base import fingerprint

        before = fingerprint.tokenizer_identity
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "tokenizer_identity", lambda tokenizer: before(tokenizer) + "x")
            _, found = run.load_inputs(config_for(model_folder, path, **options))
        assert len(list((tmp_path / "cache" / "softprompt" / "rows").glob("*/*/entry.json"))) == 2
        return
    else:
        options |= {"other seed": {"seed": 3}, "max_length": {"max_length": 9}, "template": {"template": "plain"}}[
            change
        ]
    config = config_for(model_folder, path, **options)
    _, found = run.load_inputs(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.RowCache, "of", lambda *a: None)
        _, expected = run.load_inputs(config)
    for one, other in zip(found.splits, expected.splits, strict=True):
        assert list(one.rows) == list(other.rows)
    assert len(list((tmp_path / "cache" / "softprompt" / "rows").glob("*/*/entry.json"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "json", "types", "gone", "other file"])
def test_a_damaged_entry_counts_as_absent(tmp_path, model_folder, many_on_disk, damage):
    path = write_rows(tmp_path / "rows.jsonl", 100)
    config = config_for(model_folder, path, eval_fraction=0.1)
    _, first = run.load_inputs(config)
    rows = list(first.train_rows)
    (entry,) = (path.parent for path in (tmp_path / "cache" / "softprompt" / "rows").glob("*/*/entry.json"))
    arrow = entry / "train.arrow"
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(arrow.read_bytes())
        content[len(content) // 2] ^= 1
        arrow.write_bytes(content)
    elif damage == "json":
        (entry / "entry.json").write_text("{")
    elif damage == "types":
        content = json.loads((entry / "entry.json").read_text())
        (entry / "entry.json").write_text(json.dumps(content | {"splits": [1]}))
    elif damage == "gone":
        arrow.unlink()
    else:
        content = json.loads((entry / "entry.json").read_text())
        (entry / "entry.json").write_text(json.dumps(content | {"files": {"../../../rows.jsonl": "0"}}))
    _, again = run.load_inputs(config)
    assert list(again.train_rows) == rows


def test_rows_that_change_while_they_are_read_are_not_kept(tmp_path, model_folder, many_on_disk, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", 50)
    load = run.load_splits

    def loads_while_another_writes(*names, **options):
        path.write_text(path.read_text("utf-8").replace("two lamps", "six lamps"), "utf-8")
        return load(*names, **options)

    monkeypatch.setattr(run, "load_splits", loads_while_another_writes)
    run.load_inputs(config_for(model_folder, path))
    assert not list((tmp_path / "cache" / "softprompt" / "rows").glob("*/*/entry.json"))


def test_a_cache_folder_that_cannot_be_written_stops_nothing(tmp_path, model_folder, many_on_disk, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", 50)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, found = run.load_inputs(config_for(model_folder, path))
    assert len(found.train_rows) + len(found.eval_rows) > 40


def test_entries_that_were_not_used_for_longest_go_first(tmp_path, model_folder, many_on_disk, monkeypatch):
    import os

    root = tmp_path / "cache" / "softprompt" / "rows"
    ages = {}
    for number in range(4):
        path = write_rows(tmp_path / f"rows-{number}.jsonl", 200, seed=number)
        run.load_inputs(config_for(model_folder, path))
        (entry,) = {each.parent for each in root.glob("*/*/entry.json")} - ages.keys()
        os.utime(entry / "entry.json", (number, number))
        ages[entry] = number
    size = max(row_cache._size(entry) for entry in ages)
    run.load_inputs(config_for(model_folder, tmp_path / "rows-0.jsonl"))  # used again, so the youngest
    monkeypatch.setattr(row_cache, "MOST_BYTES", 3 * size)
    run.load_inputs(config_for(model_folder, write_rows(tmp_path / "rows-9.jsonl", 200, seed=9)))
    left = {each.parent for each in root.glob("*/*/entry.json")}
    kept = {number for entry, number in ages.items() if entry in left}
    assert kept == {0, 3} and len(left) == 3


def test_small_data_makes_no_entry(tmp_path, model_folder):
    run.load_inputs(config_for(model_folder, write_rows(tmp_path / "rows.jsonl", 50)))
    assert not (tmp_path / "cache" / "softprompt" / "rows").exists()


def test_a_row_of_millions_of_characters_is_looked_at_only_as_far_as_it_counts(tokenizer, monkeypatch):
    seen = []
    encode = Encoder._encode
    monkeypatch.setattr(Encoder, "_encode", lambda self, rows, most: seen.extend(rows) or encode(self, rows, most))
    text = "a quiet road, two lamps. " * 200_000
    rows = [Row.asked(text, output="end"), Row.asked("short", output=text), Row(text=text)]
    for row in rows:
        seen.clear()
        (found,) = Encoder(tokenizer).encode([row], max_length=16)
        assert all(each.beginning(10_000) is each for each in seen)
        (whole,) = encode(Encoder(tokenizer), [row], 16)
        assert found == whole and cut_of([found], 16) == cut_of([whole], 16)
        assert cut_of([found], 16).enough == LONGEST_COUNTED * 16


@pytest.mark.parametrize("text", [" " * 100_000 + "word", "=" * 100_000, "ab" * 50_000, "é" * 40_000])
@pytest.mark.parametrize("template", [Template("tutorial"), Template("chat", templates.CHATML)])
def test_text_of_few_tokens_is_read_whole(tokenizer, text, template):
    encoder = Encoder(tokenizer, template)
    for row in (Row.asked(f"a {text} b", output="end"), Row.asked("short", output=f"{text} end")):
        (found,) = encoder.encode([row], max_length=8)
        (whole,) = encoder._encode([row], 8)
        assert found == whole and cut_of([found], 8) == cut_of([whole], 8)


def test_turns_behind_a_long_one_stay_for_the_template():
    row = Row(({"role": "user", "content": "a" * 50}, {"role": "assistant", "content": "b" * 50}), "c" * 50)
    short = dataclasses.replace(row, messages=row.messages).beginning(60)
    assert [len(message["content"]) for message in short.messages] == [50, 10] and short.output == "c"
    assert row.beginning(150) is row and [message["role"] for message in short.messages] == ["user", "assistant"]


def test_packed_rows_are_read_from_the_same_cache(tmp_path, model_folder, many_on_disk):
    path = write_rows(tmp_path / "rows.jsonl", 40)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    _, first = run.load_inputs(config_for(model_folder, packed))
    _, second = run.load_inputs(config_for(model_folder, packed))
    _, plain = run.load_inputs(config_for(model_folder, path))
    assert list(first.train_rows) == list(second.train_rows) == list(plain.train_rows)
