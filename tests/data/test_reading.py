"""Rows from every source, what is refused, and which rows are held out."""

import socket
import time
from types import MappingProxyType

import pytest
from datasets import Dataset, DatasetDict
from helpers.commands import run_python, snapshot
from helpers.rows import FORMATS, write

from softprompt.data.splits import load_questions, load_split, load_splits
from softprompt.errors import UserError

TEXTS = [
    {"instruction": "问：1 + 1?", "input": "", "output": "two\nlines"},
    {"instruction": "NA", "input": "null", "output": "None"},
    {"instruction": 'a "quoted", word', "input": "nan", "output": "N/A"},
    {"instruction": " spaced ", "input": "007", "output": "0012.50"},
]


def load(data, *, eval_data=None, eval_fraction=None, seed=1, test_data=None):
    return load_splits(data, eval_data=eval_data, eval_fraction=eval_fraction, seed=seed, test_data=test_data)


def texts(rows):
    return [(row.columns["instruction"], row.columns["input"], row.output) for row in rows]


def numbered(count, prefix="row"):
    return [{"instruction": f"{prefix} {place}", "input": "", "output": "x"} for place in range(count)]


def refusal(data, **options):
    with pytest.raises(UserError) as caught:
        load(data, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_text_stays_as_it_is(kind, tmp_path):
    splits = load(write(tmp_path, kind, TEXTS), eval_fraction=0)
    assert texts(splits.train_rows) == [tuple(row.values()) for row in TEXTS]
    assert [row.number for row in splits.train_rows] == [1, 2, 3, 4]
    assert splits.eval_rows == []


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_become_text(kind, tmp_path):
    rows = [{"instruction": 12, "input": 3.5, "output": -7}, {"instruction": 13, "input": 0.25, "output": 10**12}]
    splits = load(write(tmp_path, kind, rows))
    assert texts(splits.train_rows) == [("12", "3.5", "-7"), ("13", "0.25", "1000000000000")]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_numbers_beside_text(kind, tmp_path):
    rows = [{"instruction": "a", "input": 5, "output": 7}, {"instruction": "b", "input": "five", "output": "seven"}]
    assert texts(load(write(tmp_path, kind, rows)).train_rows) == [("a", "5", "7"), ("b", "five", "seven")]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "save_to_disk"])
def test_whole_numbers_with_a_gap_stay_whole(kind, tmp_path):
    rows = [{"instruction": "a", "input": 5, "output": "x"}, {"instruction": "b", "input": None, "output": "y"}]
    assert texts(load(write(tmp_path, kind, rows)).train_rows) == [("a", "5", "x"), ("b", "", "y")]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_input_column(kind, tmp_path):
    rows = [{"output": "x", "instruction": "a", "more": "not used"}]
    assert texts(load(write(tmp_path, kind, rows)).train_rows) == [("a", "", "x")]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "save_to_disk"])
def test_null_input_is_empty(kind, tmp_path):
    rows = [{"instruction": "a", "input": None, "output": "x"}, {"instruction": "b", "input": "i", "output": "y"}]
    assert texts(load(write(tmp_path, kind, rows)).train_rows) == [("a", "", "x"), ("b", "i", "y")]


def test_keys_that_some_rows_lack(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "x"}\n{"instruction": "b", "output": "y", "input": "i"}\n')
    assert texts(load(str(path)).train_rows) == [("a", "", "x"), ("b", "i", "y")]


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "rows.CSV"
    path.write_bytes('instruction,input,output\r\n"two\nlines",,007\r\n是,TRUE,1e3\r\n'.encode("utf-8-sig"))
    assert texts(load(str(path)).train_rows) == [("two\nlines", "", "007"), ("是", "TRUE", "1e3")]


def test_blank_output_is_left_to_encoding(tmp_path):
    rows = [{"instruction": "a", "input": "", "output": ""}, {"instruction": "b", "input": "", "output": "y"}]
    for kind in FORMATS:
        assert texts(load(write(tmp_path, kind, rows)).train_rows) == [("a", "", ""), ("b", "", "y")]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "save_to_disk"])
@pytest.mark.parametrize("column", ["instruction", "output"])
def test_null_is_blank_and_left_to_encoding(kind, column, tmp_path):
    rows = numbered(3)
    rows[1][column] = None
    found = load(write(tmp_path, kind, rows)).train_rows
    assert texts(found) == [tuple((row | {column: row[column] or ""}).values()) for row in rows]
    assert [row.number for row in found] == [1, 2, 3]
    assert [row.has_question for row in found] == [True, column == "output", True]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["instruction", "output"])
def test_missing_column_is_refused(kind, column, tmp_path):
    rows = [{key: value for key, value in row.items() if key != column} for row in numbered(2)]
    message = refusal(write(tmp_path, kind, rows))
    assert "row 1" in message and f"no {column}" in message


def test_blank_instruction_is_left_to_encoding_and_an_input_is_a_question(tmp_path):
    rows = [*numbered(1), {"instruction": " \n", "input": "", "output": "x"}]
    rows.append({"instruction": "", "input": "why?", "output": "y"})
    for kind in FORMATS:
        found = load(write(tmp_path, kind, rows)).train_rows
        assert texts(found) == [tuple(row.values()) for row in rows]
        assert [row.has_question for row in found] == [True, False, True]


def test_short_csv_row_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("instruction,input,output\na,b,c\nd\n")
    assert "line 3, row 2: has 1 fields, the header has 3" in refusal(str(path))


@pytest.mark.parametrize("column", ["instruction", "input", "output"])
@pytest.mark.parametrize(
    ("value", "kind_of_value"), [(["x"], "list"), ({"x": 1}, "dict"), (True, "bool")], ids=["list", "dict", "bool"]
)
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "save_to_disk"])
def test_wrong_types_are_refused(kind, value, kind_of_value, column, tmp_path):
    rows = [row | {column: value} for row in numbered(2)]
    message = refusal(write(tmp_path, kind, rows))
    assert "row 1" in message and column in message and kind_of_value in message


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("value", [["x"], {"x": 1}, True], ids=["list", "dict", "bool"])
def test_one_wrong_type_among_texts_is_refused(kind, value, tmp_path):
    rows = numbered(3)
    rows[1]["output"] = value
    message = refusal(write(tmp_path, kind, rows))
    assert "row 2" in message and "output" in message


def test_split_names(tmp_path):
    train, held = Dataset.from_list(numbered(4)), Dataset.from_list(numbered(2, "held"))
    for name in ("validation", "test"):
        folder = str(tmp_path / name)
        DatasetDict({"train": train, name: held}).save_to_disk(folder)
        splits = load(folder)
        assert len(splits.train_rows) == 4
        assert [row.columns["instruction"] for row in splits.eval_rows] == ["held 0", "held 1"]


def test_validation_goes_before_test(tmp_path):
    parts = {name: Dataset.from_list(numbered(2, name)) for name in ("test", "train", "validation")}
    DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
    splits = load(str(tmp_path / "all"))
    assert [row.columns["instruction"] for row in splits.train_rows] == ["train 0", "train 1"]
    assert [row.columns["instruction"] for row in splits.eval_rows] == ["validation 0", "validation 1"]


def test_several_splits_without_train(tmp_path):
    parts = {name: Dataset.from_list(numbered(2)) for name in ("validation", "other")}
    DatasetDict(parts).save_to_disk(str(tmp_path / "odd"))
    message = refusal(str(tmp_path / "odd"))
    assert "validation" in message and "other" in message and "no train" in message


@pytest.mark.parametrize("name", ["all", "test"])
def test_single_split_trains(name, tmp_path):
    DatasetDict({name: Dataset.from_list(numbered(3))}).save_to_disk(str(tmp_path / "one"))
    splits = load(str(tmp_path / "one"))
    assert len(splits.train_rows) == 3 and splits.eval_rows == []


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_folder_of_files(kind, tmp_path):
    write(tmp_path, kind, numbered(3), "train")
    write(tmp_path, kind, numbered(2, "held"), "validation")
    (tmp_path / "README.md").write_text("not data")
    splits = load(str(tmp_path))
    assert len(splits.train_rows) == 3
    assert [row.columns["instruction"] for row in splits.eval_rows] == ["held 0", "held 1"]


def test_reading_writes_nothing_beside_the_data(tmp_path):
    for kind in FORMATS:
        write(tmp_path, kind, numbered(3), f"rows-{kind}")
    before = snapshot(tmp_path)
    for kind in FORMATS:
        load(str(tmp_path / (f"rows-{kind}" + ("" if kind == "save_to_disk" else f".{kind}"))))
    assert len(before) > len(FORMATS) and snapshot(tmp_path) == before


def test_eval_data_wins(tmp_path):
    write(tmp_path, "jsonl", numbered(3), "train")
    write(tmp_path, "jsonl", numbered(1, "own"), "validation")
    other = tmp_path / "other"
    other.mkdir()
    held = write(other, "csv", numbered(2, "given"))
    splits = load(str(tmp_path), eval_data=held)
    assert len(splits.train_rows) == 3
    assert [row.columns["instruction"] for row in splits.eval_rows] == ["given 0", "given 1"]


def test_eval_data_takes_the_held_out_split(tmp_path):
    write(tmp_path, "jsonl", numbered(3), "train")
    write(tmp_path, "jsonl", numbered(2, "held"), "test")
    splits = load(str(tmp_path / "train.jsonl"), eval_data=str(tmp_path))
    assert [row.columns["instruction"] for row in splits.eval_rows] == ["held 0", "held 1"]


def test_seeded_fraction(tmp_path):
    data = write(tmp_path, "jsonl", numbered(50))
    first, again, other = (load(data, eval_fraction=0.2, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert (len(first.train_rows), len(first.eval_rows)) == (40, 10)
    train, held = ([row.number for row in rows] for rows in (first.train_rows, first.eval_rows))
    assert sorted(train + held) == list(range(1, 51))  # disjoint, and nothing is lost
    assert train == sorted(train) and held == sorted(held)
    assert held != list(range(1, 11)) and held != list(range(41, 51))


def test_default_fraction(tmp_path):
    for count, expected in ((79, 0), (80, 8), (100, 10), (20_000, 200)):
        splits = load(write(tmp_path, "parquet", numbered(count), str(count)))
        assert (len(splits.train_rows), len(splits.eval_rows)) == (count - expected, expected)


def test_test_rows_are_what_is_named_or_the_own_test_split_unless_it_chooses(tmp_path):
    (tmp_path / "three").mkdir()
    for name, count in (("train", 10), ("validation", 3), ("test", 2)):
        write(tmp_path / "three", "jsonl", numbered(count), name)
    (tmp_path / "two").mkdir()
    write(tmp_path / "two", "jsonl", numbered(10), "train")
    write(tmp_path / "two", "jsonl", numbered(2), "test")
    other = write(tmp_path, "jsonl", numbered(5), "other")

    def sizes(*arguments, **options):
        splits = load(*map(str, arguments), **options)
        return len(splits.train_rows), len(splits.eval_rows), len(splits.test_rows)

    assert sizes(tmp_path / "three") == (10, 3, 2)
    assert sizes(tmp_path / "three", test_data=str(other)) == (10, 3, 5)
    assert sizes(tmp_path / "three", eval_data=str(other)) == (10, 5, 2)
    assert sizes(tmp_path / "three", eval_fraction=0.2) == (8, 2, 2)
    assert sizes(tmp_path / "two", eval_data=str(other)) == (10, 5, 2)
    assert sizes(tmp_path / "two") == (10, 2, 0)  # the only other split chooses, so it cannot report


def test_fraction_leaves_a_row_to_train_on(tmp_path):
    splits = load(write(tmp_path, "jsonl", numbered(2)), eval_fraction=0.99)
    assert (len(splits.train_rows), len(splits.eval_rows)) == (1, 1)


def test_given_fraction_wins_over_the_own_split(tmp_path):
    write(tmp_path, "jsonl", numbered(10), "train")
    write(tmp_path, "jsonl", numbered(1, "held"), "validation")
    splits = load(str(tmp_path), eval_fraction=0.3)
    assert len(splits.eval_rows) == 3
    assert all(row.columns["instruction"].startswith("row") for row in splits.eval_rows)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_empty_file(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    path.touch()
    message = refusal(str(path))
    assert str(path) in message and "empty" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.json", "[]"), ("rows.jsonl", "\n\n"), ("rows.csv", "instruction,input,output\n")],
)
def test_no_rows(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert str(tmp_path / name) in refusal(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", b'[{"instruction": "a", "outp'),
        ("rows.json", b'"just a text"'),
        ("rows.jsonl", b'{"instruction": "a", "output": "b"}\n{"instru'),
        ("rows.jsonl", b"\xff\xfe\x00"),
        ("rows.csv", b"instruction,output\n\xff\xfe,b\n"),
        ("rows.csv", b"\xff\xfe\n"),
        ("rows.csv", b"instruction,output\na,b,c,d,e\n"),
        ("rows.parquet", b"PAR1 but not really"),
    ],
)
def test_unreadable(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(str(tmp_path / name))


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    assert "suffix" in refusal("rows.txt")
    assert "folder" in refusal("folder") and "save_to_disk" in refusal("folder")
    for name in ("gone.jsonl", "./gone", str(tmp_path / "gone"), "~/surely/not/there.csv", "gone/rows.parquet"):
        assert f"`data` {name}: no such file" in refusal(name)
    write(tmp_path, "jsonl", numbered(2))
    assert "`eval_data` gone.json: no such file" in refusal("rows.jsonl", eval_data="gone.json")
    assert "builtin:nothing" in refusal("builtin:nothing")


def test_hub_names_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/rows", "rows"):
        message = refusal(name)
        assert f"`data` {name}: no file or folder" in message and "cannot be reached" in message
    assert "`data` not/a/hub/id" in refusal("not/a/hub/id")
    write(tmp_path, "jsonl", numbered(2))
    assert "`eval_data` owner/rows: no file or folder" in refusal("rows.jsonl", eval_data="owner/rows")


def test_hub_that_never_answers(tmp_path):
    code = """
import time
from softprompt.base.loading import load_base
from softprompt.data.splits import load_splits
from softprompt.errors import UserError
from softprompt.system.process import silence_libraries
silence_libraries()
for ask in (
    lambda: load_splits("owner/rows", eval_data=None, eval_fraction=None, seed=1),
    lambda: load_base("owner/model", device=None, precision="fp32"),
):
    start = time.perf_counter()
    try:
        ask()
    except UserError as error:
        print(time.perf_counter() - start, error)
"""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = {"HF_ENDPOINT": where, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "HF_HOME": str(tmp_path / "hub")}
        start = time.perf_counter()
        done = run_python(code, tmp_path, **settings)
        wall = time.perf_counter() - start
    assert done.returncode == 0 and done.stderr == "", done.stderr
    answers = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [text.split(":")[0] for _, text in answers] == ["`data` owner/rows", "`model` owner/model"]
    for seconds, text in answers:
        assert "cannot be reached" in text
        assert 1 < float(seconds) < 5  # it did ask, and did not ask again and again
    assert wall < 60


def test_the_split_that_is_scored(tmp_path):
    """A test split before a validation split, which may have chosen the prompt; then the only one, or train."""
    for split in ("train", "validation", "test"):
        write(tmp_path, "jsonl", numbered(2, split), split)
    found = {}
    for wanted in (None, "train", "validation", "test"):
        rows, name, *_ = load_split(str(tmp_path), wanted)
        found[wanted] = [row.columns["instruction"].split()[0] for row in rows]
        assert name == f"{tmp_path} ({wanted or 'test'})"
    assert found == {wanted: [wanted or "test"] * 2 for wanted in found}
    assert load_split(str(tmp_path / "train.jsonl"))[1] == str(tmp_path / "train.jsonl")
    (tmp_path / "test.jsonl").unlink()
    assert load_split(str(tmp_path))[0][0].columns["instruction"] == "validation 0"
    (tmp_path / "validation.jsonl").rename(tmp_path / "other.jsonl")
    assert load_split(str(tmp_path))[0][0].columns["instruction"] == "train 0"
    with pytest.raises(UserError, match="`split` test: `data` .* has only other, train"):
        load_split(str(tmp_path), "test")


def in_memory(kind, rows):
    """The same rows as each kind of object that holds rows."""
    if kind == "Dataset":
        return Dataset.from_list(rows)
    return {"list": list, "tuple": tuple, "read-only": lambda rows: [*map(MappingProxyType, rows)]}[kind](rows)


IN_MEMORY = ("list", "tuple", "read-only", "Dataset")


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_rows_in_memory_are_those_of_a_file(kind, tmp_path):
    splits = load(in_memory(kind, TEXTS), eval_fraction=0)
    assert splits == load(write(tmp_path, "jsonl", TEXTS), eval_fraction=0)
    assert [row.number for row in splits.train_rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_rows_in_memory_are_held_out_by_the_same_draw(kind, tmp_path):
    rows = numbered(50)
    assert load(in_memory(kind, rows), eval_fraction=0.2) == load(write(tmp_path, "jsonl", rows), eval_fraction=0.2)


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_rows_in_memory_to_choose_and_to_report(kind):
    held, last = (in_memory(kind, numbered(2, name)) for name in ("held", "last"))
    splits = load(in_memory(kind, numbered(3)), eval_data=held, test_data=last)
    assert [row.columns["instruction"] for row in splits.train_rows] == ["row 0", "row 1", "row 2"]
    assert [row.columns["instruction"] for row in splits.eval_rows] == ["held 0", "held 1"]
    assert [row.columns["instruction"] for row in splits.test_rows] == ["last 0", "last 1"]


def test_the_splits_of_a_dataset_dict_are_those_of_its_folder(tmp_path):
    names = ("train", "validation", "test")
    data = DatasetDict({name: Dataset.from_list(numbered(2, name)) for name in names})
    data.save_to_disk(str(tmp_path / "all"))
    assert load(data) == load(str(tmp_path / "all"))
    assert [row.columns["instruction"] for row in load(data).test_rows] == ["test 0", "test 1"]
    rows, name, *_ = load_split(data, "validation")
    assert [row.columns["instruction"] for row in rows] == ["validation 0", "validation 1"]
    assert name == "the rows given (validation)"
    with pytest.raises(UserError, match="`split` dev: `data` the rows given has only train, validation, test"):
        load_split(data, "dev")
    del data["train"]
    assert "`data` the rows given: has the splits validation, test but no train" in refusal(data)


def test_rows_in_memory_keep_numbers_whole_and_may_lack_an_input():
    rows = [{"instruction": 1, "output": 2.5, "more": object()}, {"instruction": "b", "input": None, "output": "y"}]
    assert texts(load(rows).train_rows) == [("1", "", "2.5"), ("b", "", "y")]
    assert rows[0].keys() == {"instruction", "output", "more"}  # the caller's rows stay as they are


def test_questions_in_memory_need_no_output():
    for kind in IN_MEMORY:
        rows, name, *_ = load_questions(in_memory(kind, [{"instruction": "a"}, {"instruction": "b"}]))
        assert texts(rows) == [("a", "", ""), ("b", "", "")] and name == "the rows given"


@pytest.mark.parametrize("kind", IN_MEMORY)
@pytest.mark.parametrize("column", ["instruction", "output"])
def test_null_in_memory_is_blank(kind, column):
    rows = numbered(3)
    rows[1][column] = None
    found = load(in_memory(kind, rows)).train_rows
    assert texts(found) == [tuple((row | {column: row[column] or ""}).values()) for row in rows]


@pytest.mark.parametrize("column", ["instruction", "input", "output"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [(["x"], "list"), ({"x": 1}, "dict"), (True, "bool"), (b"x", "bytes"), (1j, "complex")],
    ids=["list", "dict", "bool", "bytes", "complex"],
)
def test_wrong_types_in_memory_are_refused_with_their_row(value, kind, column):
    rows = numbered(3)
    rows[2][column] = value
    assert f"the rows given, row 3: {column} is a {kind}, not text" in refusal(rows)


@pytest.mark.parametrize("row", ["text", None, 7, ["instruction", "output"], ("a", "b")], ids=repr)
def test_a_row_that_is_no_dict_is_refused_with_its_number(row):
    message = refusal([*numbered(1), row])
    assert message == f"`data` the rows given: row 2: is a {type(row).__name__}, not a dict"
    message = refusal(numbered(2), eval_data=[row])
    assert message == f"`eval_data` the rows given: row 1: is a {type(row).__name__}, not a dict"


@pytest.mark.parametrize("data", [7, 1.5, b"rows.jsonl", {"instruction": "a"}, {"train": numbered(2)}, object()])
def test_what_holds_no_rows_is_refused(data):
    message = refusal(data)
    assert f"`data` the rows given: is a {type(data).__name__}; give a name, a list of dicts or a data set" in message
    assert "`test_data` the rows given: is a " in refusal(numbered(2), test_data=data)


def test_no_row_in_memory():
    for empty in ([], (), Dataset.from_list([]), Dataset.from_dict({"instruction": [], "output": []})):
        assert refusal(empty).startswith(("`data` the rows given: ", "the rows given: holds no row"))
    assert "the rows given: rows need instruction and output as columns; here are question" in refusal(
        [{"question": "a"}]
    )
    for lacking in ({"question": "a"}, {}):
        assert texts(load([*numbered(1), lacking]).train_rows)[1] == ("", "", "")
    assert "here are none" in refusal([{}])
