"""Files and folders as people have them: packed, in other encodings, in shards, beside files that are no rows."""

import gzip
import json
import struct
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from helpers.rows import ROWS, write

from softprompt.data.split_names import standard_names
from softprompt.data.splits import load_questions, load_split, load_splits
from softprompt.data.values import shortest_text
from softprompt.errors import UserError
from softprompt.system import sources

TWO = [{"instruction": "a", "output": "x"}, {"instruction": "b", "output": "y"}]
LINES = "".join(json.dumps(row) + "\n" for row in TWO)
TEXTS = [("a", "", "x"), ("b", "", "y")]


def load(data, **options):
    return load_splits(str(data) if hasattr(data, "parts") else data, seed=1, **options)


def texts(rows):
    return [(row.columns["instruction"], row.columns["input"], row.output) for row in rows]


def refusal(data):
    with pytest.raises(UserError) as caught:
        load(data)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_float32_is_the_shortest_text_as_numpy_writes_it():
    """numpy writes the shortest digits that are the number again; only its layout of exponents is another."""
    draw = numpy.random.default_rng(0)
    for dtype, code in (("float32", "f"), ("float16", "e")):
        whole = numpy.frombuffer(draw.bytes(8 * 4000), dtype)
        numbers = [x for x in [*whole, numpy.dtype(dtype).type(0.1), numpy.finfo(dtype).max] if numpy.isfinite(x)]
        assert len(numbers) > 3000
        for number in numbers:
            text = shortest_text(float(number), dtype)
            assert struct.unpack(code, struct.pack(code, float(text)))[0] == float(number)
            assert float(text) == float(str(number))
    assert [shortest_text(x, "float32") for x in (3.0, float(numpy.float32(0.1)), -0.0)] == ["3.0", "0.1", "-0.0"]
    assert shortest_text(float(numpy.float32(0.1)), "float64") == "0.10000000149011612"


def test_columns_of_parquet_give_what_their_type_holds(tmp_path):
    columns = {
        "instruction": pyarrow.array(["a", "b"]).dictionary_encode(),
        "input": pyarrow.array([0.1, None], pyarrow.float32()),
        "output": pyarrow.array([9007199254740993, 7]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert texts(load(tmp_path / "rows.parquet").train_rows) == [("a", "0.1", "9007199254740993"), ("b", "", "7")]


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk", "memory"])
def test_class_labels_give_their_names(kind, tmp_path):
    features = Features({"instruction": Value("string"), "output": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"instruction": ["a", "b", "c"], "output": [1, 0, None]}, features=features)
    if kind == "parquet":
        data.to_parquet(str(tmp_path / "rows.parquet"))
    if kind == "save_to_disk":
        data.save_to_disk(str(tmp_path / "rows.parquet"))
    splits = load(data if kind == "memory" else tmp_path / "rows.parquet")
    assert texts(splits.train_rows) == [("a", "", "good"), ("b", "", "bad"), ("c", "", "")]
    (note,) = splits.notes
    assert note.endswith("output holds class labels; their names are used: bad, good")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_bare_classes_train_as_written_with_a_note(kind, tmp_path):
    rows = [{"instruction": f"q{place}", "output": place % 2} for place in range(5)]
    splits = load(write(tmp_path, kind, rows))
    assert [row.output for row in splits.train_rows] == ["0", "1", "0", "1", "0"]
    assert len(splits.notes) == 1 and "look" in splits.notes[0] and "without their names" in splits.notes[0]
    others = load(write(tmp_path, kind, [row | {"output": 3 + row["output"]} for row in rows]))
    assert others.notes == []


def test_a_saved_format_does_not_matter(tmp_path):
    for kind in ("pandas", "arrow", "numpy", "torch"):
        Dataset.from_list(TWO).with_format(kind).save_to_disk(str(tmp_path / kind))
        assert texts(load(tmp_path / kind).train_rows) == TEXTS
        assert texts(load(Dataset.from_list(TWO).with_format(kind)).train_rows) == TEXTS


def test_an_empty_parquet_is_one_line(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": [""], "output": [""]}).slice(0, 0), tmp_path / "e.parquet"
    )
    assert refusal(tmp_path / "e.parquet") == f"`data` {tmp_path / 'e.parquet'}: holds no row"


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("stem", ["rows", "a::b", "a[1]*?", "a b.train"])
def test_packed_files_and_odd_names(kind, suffix, stem, tmp_path):
    written = write(tmp_path, kind, ROWS, "written")
    path = tmp_path / f"{stem}.{kind}{suffix}"
    content = Path(written).read_bytes()
    path.write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    assert load(path, eval_fraction=0) == load(written, eval_fraction=0)


@pytest.mark.parametrize("name", ["r.ndjson", "r.NDJSON.GZ", "r.tsv", "r.tsv.gz"])
def test_further_suffixes(name, tmp_path):
    content = "instruction\toutput\na\tx\nb\ty\n" if ".tsv" in name else LINES
    content = content.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.lower().endswith(".gz") else content)
    assert texts(load(tmp_path / name).train_rows) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("r.json", LINES.encode("utf-16"), ": is UTF-16 text; save it as UTF-8"),
        ("r.jsonl", LINES.encode("utf-16-be"), "perhaps UTF-16; save it as UTF-8"),
        ("r.jsonl", LINES.encode("utf-32"), ": is UTF-32 text; save it as UTF-8"),
        ("r.csv", "instruction,output\na,x\n".encode("utf-16"), ": is UTF-16 text; save it as UTF-8"),
        ("r.csv", b"instruction,output\na,x\nb,caf\xe9\n", ", line 3: is not UTF-8 text"),
        ("r.jsonl", LINES.encode() + b'{"instruction": "\xff"}\n', ", line 3: is not UTF-8 text"),
        ("r.jsonl.gz", b"no gzip", ": is damaged, or no gzip file"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], ": is damaged, or no gzip file"),
        ("r.jsonl.gz", gzip.compress(b"", mtime=0), ": the file is empty"),
        ("r.parquet", b"PAR1 and no more", ": cannot be read as Parquet"),
        ("r.parquet", LINES.encode(), ": is no Parquet file"),
        ("r.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        ("r.jsonl", LINES.encode() + b'{"instruction": "\\ud800"}\n', ", row 3: 'instruction' holds half of"),
        ("r.jsonl", LINES.encode() + b'{"instruction": "c"\n', ", line 3: an object or a list is not closed"),
        ("r.json", b'{"mean": 3}', "rows need instruction and output as columns; here are mean"),
    ],
)
def test_what_cannot_be_read_names_the_file_and_the_cause(name, content, wanted, tmp_path):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"`data` {tmp_path / name}") and wanted in message
    # and of a folder the file that is to blame
    (tmp_path / name).rename(tmp_path / f"train{name[1:]}")
    (tmp_path / "test.jsonl").write_text(LINES)
    assert f"train{name[1:]}" in refusal(tmp_path) or "columns" in wanted


@pytest.mark.parametrize("held", ["val", "valid", "dev", "eval", "Validation", "VAL"])
def test_names_of_validation(held, tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / f"{held}.jsonl").write_text(LINES.replace("x", "held"))
    saved = DatasetDict({"train": Dataset.from_list(TWO), held: Dataset.from_list(TWO[:1])})
    saved.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "one.json").write_text(json.dumps({"train": TWO, held: TWO[:1]}))
    assert [row.output for row in load(tmp_path).eval_rows] == ["held", "y"]
    for data in (saved, tmp_path / "saved", tmp_path / "one.json"):
        assert (len(load(data).train_rows), texts(load(data).eval_rows)) == (2, TEXTS[:1])
        for asked in (held, "validation"):
            assert texts(load_split(str(data) if data is not saved else data, asked).rows) == TEXTS[:1]


def test_names_of_splits():
    for name, split in {"my-train": "train", "val_2024": "validation", "test_sft": "test", "all": "all"}.items():
        assert standard_names([name, "other"]) == {name: split, "other": "other"}
    assert standard_names(["train", "train_more"]) == {"train": "train", "train_more": "train_more"}
    assert standard_names(["dev", "validation"]) == {"dev": "dev", "validation": "validation"}
    assert standard_names(["train_a", "train_b"]) == {"train_a": "train_a", "train_b": "train_b"}
    assert standard_names(["train_test", "constrain"]) == {"train_test": "train_test", "constrain": "constrain"}


def shards(folder, split, count, of=None, kind="parquet"):
    """Rows in numbered files; returns them as they should be read."""
    folder.mkdir(exist_ok=True, parents=True)
    rows = [{"instruction": f"{split} {place}", "output": "x"} for place in range(2 * count)]
    for place in range(count):
        write(folder, kind, rows[2 * place : 2 * place + 2], f"{split}-{place:05d}-of-{of or count:05d}")
    return [row["instruction"] for row in rows]


@pytest.mark.parametrize("inner", ["", "data"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_shards_and_a_clone_of_the_hub(inner, kind, tmp_path):
    train = shards(tmp_path / inner, "train", 12, kind=kind)
    held = shards(tmp_path / inner, "validation", 1, kind=kind)
    (tmp_path / "README.md").write_text("---\n---\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    splits = load(tmp_path)
    assert [row.columns["instruction"] for row in splits.train_rows] == train
    assert [row.columns["instruction"] for row in splits.eval_rows] == held
    assert [row.number for row in splits.train_rows] == [*range(1, 25)]
    assert splits.notes == [f"{tmp_path}: these files are not read: dataset_infos.json"]


def test_a_shard_that_is_missing_is_said_and_an_empty_one_is_none(tmp_path):
    shards(tmp_path, "train", 2, of=3)
    columns = pyarrow.table({"instruction": [""], "output": [""]}).slice(0, 0)
    pyarrow.parquet.write_table(columns, tmp_path / "train-00001-of-00003.parquet")
    splits = load(tmp_path)
    assert [row.columns["instruction"] for row in splits.train_rows] == ["train 0", "train 1"]
    assert splits.notes == [f"{tmp_path}: of the 3 files of the split train, only 2 are there"]


def test_numbered_files_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / f"train_{number}.jsonl").write_text(LINES.replace("x", str(number)))
    assert [row.output for row in load(tmp_path).train_rows][::2] == ["1", "2", "10"]


def test_folders_named_by_split(tmp_path):
    shards(tmp_path / "train", "0000", 2)
    shards(tmp_path / "valid", "0000", 1)
    splits = load(tmp_path)
    assert (len(splits.train_rows), len(splits.eval_rows)) == (4, 2)


def test_a_wrong_type_in_a_shard_names_its_file_and_its_row_there(tmp_path):
    for number in range(3):
        rows = [*TWO, {"instruction": "c", "output": ["x"]}] if number == 1 else TWO
        write(tmp_path, "jsonl", rows, f"train-{number}-of-3")
    assert (
        refusal(tmp_path) == f"{tmp_path / 'train-1-of-3.jsonl'}, row 3: output is a list, not text; write it as text"
    )


def test_a_wrong_type_in_a_folder_names_its_file(tmp_path):
    write(tmp_path, "jsonl", TWO, "train")
    write(tmp_path, "jsonl", [*TWO, {"instruction": "c", "output": {"x": 1}}], "dev")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'dev.jsonl'}, row 3: output is a dict")


def test_a_row_that_is_nested_too_deeply_is_one_line(tmp_path):
    for depth in (300, 600, 900, 5000):
        nested = '{"a": ' * depth + "1" + "}" * depth
        (tmp_path / "r.jsonl").write_text(LINES + f'{{"instruction": "q", "output": "a", "more": {nested}}}\n')
        try:
            assert len(load(tmp_path / "r.jsonl").train_rows) == 3
        except UserError as error:
            assert "nested too deeply" in str(error) and depth > 300


def test_numbers_in_memory_may_be_those_of_numpy_and_pandas():
    import pandas

    rows = [{"instruction": numpy.int64(7), "input": pandas.NA, "output": numpy.float32(0.1)}]
    assert texts(load(rows).train_rows) == [("7", "", "0.1")]
    with pytest.raises(UserError, match="output is a ndarray, not text"):
        load([TWO[0] | {"output": numpy.zeros(2)}])


def test_a_data_folder_comes_after_rows_beside_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "my.jsonl").write_text(LINES)
    (tmp_path / "data" / "other.jsonl").write_text(LINES.replace("x", "z"))
    assert load(tmp_path).train_rows[0].output == "x"
    (tmp_path / "data" / "other.jsonl").rename(tmp_path / "data" / "train.jsonl")
    splits = load(tmp_path)
    assert splits.train_rows[0].output == "z" and splits.notes == [f"{tmp_path}: these files are not read: my.jsonl"]


def test_hidden_and_stray_files_are_named_and_not_fatal(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / "._train.jsonl").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "stats.json").write_text('{"mean": 3}')
    (tmp_path / "dataset_info.json").write_text('{"my": {"file_name": "my.json"}}')
    (tmp_path / "eval_results.json").write_text('{"eval_loss": 3}')
    (tmp_path / "notes.txt").write_text("")
    splits = load(tmp_path)
    assert texts(splits.train_rows) == TEXTS and splits.eval_rows == []
    (note,) = splits.notes
    assert note.startswith(f"{tmp_path}: these files are not read: ")
    assert set(note.rpartition(": ")[2].split(", ")) == {
        "._train.jsonl", "stats.json", "dataset_info.json", "eval_results.json",
    }  # fmt: skip
    # without a name that says so, the file that holds rows is the one
    (tmp_path / "train.jsonl").rename(tmp_path / "my.json")
    assert texts(load(tmp_path).train_rows) == TEXTS


def test_a_split_that_is_not_used_is_said(tmp_path):
    for name in ("train", "test", "extra"):
        (tmp_path / f"{name}.jsonl").write_text(LINES)
    assert load(tmp_path).notes == [f"{tmp_path}: these splits are not used: extra"]


def test_two_files_of_one_split_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    for name in ("train.json", "train.jsonl.gz", "train-00000-of-00001.jsonl"):
        (tmp_path / name).write_text(LINES)
        assert "two files are of the same split train" in refusal(tmp_path)
        (tmp_path / name).unlink()


def test_columns_that_are_not_used_are_named_if_they_hold_something(tmp_path):
    rows = [row | {"source": "", "n": None, "tags": [], "topic": "Be brief.", "pairs": [["q", "a"]]} for row in TWO]
    wanted = "columns that hold something and are not used: topic, pairs"
    for kind in ("json", "jsonl", "parquet", "save_to_disk"):
        assert load(write(tmp_path, kind, rows)).notes[0].endswith(wanted), kind
    assert load(rows).notes == [f"the rows given: {wanted}"]
    assert load(TWO).notes == []


def test_a_context_is_an_input_and_a_response_an_output(tmp_path):
    rows = [{"instruction": "a", "context": "c", "response": "x"}]
    splits = load(write(tmp_path, "jsonl", rows))
    (row,) = splits.train_rows
    assert (dict(row.columns), row.output) == ({"instruction": "a", "context": "c"}, "x")
    assert row.messages == ({"role": "user", "content": "a\nc"},)
    assert splits.notes[0].endswith("the column context is read as input, and response is read as output")
    both = [{"instruction": "a", "input": "i", "output": "o"} | rows[0]]
    assert texts(load(both).train_rows) == [("a", "i", "o")]


def test_questions_carry_their_other_columns_and_blank_ones_are_skipped(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"id": 7.10, "instruction": "a", "tags": ["x"]}\n{"id": "2"}\n{"input": "b"}\n')
    rows, name, notes, _ = load_questions(str(tmp_path / "r.jsonl"))
    assert texts(rows) == [("a", "", ""), ("", "b", "")] and [row.number for row in rows] == [1, 3]
    assert [dict(row.others) for row in rows] == [{"id": "7.10", "tags": '["x"]'}, {}]
    assert notes == [f"{name}: 1 without a question skipped: row 2"]


@pytest.mark.parametrize("name", ["polite", "steps"])
def test_what_ships_reads_as_the_readers_of_datasets_read_it(name, tmp_path):
    folder = sources.data_folder(f"builtin:{name}")
    theirs = load_dataset(str(folder), cache_dir=str(tmp_path))
    ours = load(f"builtin:{name}")
    assert ours.notes == [] and len(ours.train_rows) == 2000
    for split, rows in (("train", ours.train_rows), ("validation", ours.eval_rows), ("test", ours.test_rows)):
        assert texts(rows) == [(row["instruction"], row["input"], row["output"]) for row in theirs[split]]
