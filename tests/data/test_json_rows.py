"""Our reader of JSON against `json.loads`: every document, whatever its layout and wherever a chunk of it ends."""

import io
import json
import random
import tracemalloc

import pytest

from softprompt.data import json_rows
from softprompt.data.json_rows import WHOLE, read_json
from softprompt.data.tables import Table, TableWriter
from softprompt.data.values import Raw, kind_of, to_json
from softprompt.errors import UserError

ROWS = [{"instruction": "q", "output": f"a{place}"} for place in range(3)]
# a value as it stands in a file, and what is to be trained on
WRITTEN = {
    "42": Raw("42"),
    "-0": Raw("-0"),
    "3.10": Raw("3.10"),
    "1e3": Raw("1e3"),
    "1E-05": Raw("1E-05"),
    "9007199254740993": Raw("9007199254740993"),
    "123456789012345678901234567890": Raw("123456789012345678901234567890"),
    '"007"': "007",
    '"3.10"': "3.10",
    '"true"': "true",
    '"null"': "null",
    '"NaN"': "NaN",
    '"[1, 2]"': "[1, 2]",
    r'"{\"name\": \"Ann\"}"': '{"name": "Ann"}',
    r'"\"quoted\""': '"quoted"',
    r'"\u4f60\ud83d\ude42\n"': "你🙂\n",
    "true": Raw("true"),
    '{"n": 3.10, "t": "1e3", "l": [null, 1.0, {}]}': Raw('{"n": 3.10, "t": "1e3", "l": [null, 1.0, {}]}'),
    "[]": Raw("[]"),
}


PIECES = ['"', "\\", "\n", "a", "é", "🙂", "{", "]", ",", "null", " ", "\u2028"]


def read(text, suffix=".json", notes=None):
    return list(read_json(io.StringIO(text), suffix, [] if notes is None else notes))


def rows_of(text, suffix=".json"):
    return [row for _, row in read(text, suffix)]


def stored(rows, folder):
    """Rows after their way through the Arrow files."""
    folder.mkdir(exist_ok=True)
    writer = TableWriter(folder)
    for row in rows:
        writer.add(row)
    table = Table.of(writer.finish())
    return [row for _, row in table.rows(table.columns)]


def same(found, expected):
    """Equal, and text where text is expected: `Raw` is a str, too."""
    types = [[{key: type(value) for key, value in row.items()} for row in rows] for rows in (found, expected)]
    return found == expected and types[0] == types[1]


PIECES = ['"', "\\", "\n", "a", "é", "🙂", "{", "]", ",", "null", " ", "\u2028"]


def random_value(draw, depth=2):
    kinds = ["text", "number", "word"] + (["list", "object"] if depth else [])
    kind = draw.choice(kinds)
    if kind == "text":
        return "".join(
            draw.choices(['"', "\\", "\n", "a", "é", "🙂", "{", "]", ",", "null", " ", "\u2028"], k=draw.randint(0, 9))
        )
    if kind == "number":
        return draw.choice([0, -7, 10**25, 2.5, -1e-7, 1e300])
    if kind == "word":
        return draw.choice([None, True, False])
    if kind == "list":
        return [random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    return {f"k{draw.randint(0, 4)}": random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))}


def random_rows(draw):
    return [
        {draw.choice("abcdef") + str(place): random_value(draw) for place in range(draw.randint(0, 4))}
        for _ in range(draw.randint(1, 7))
    ]


def expected_row(row):
    """The definition: null keys go, texts stay, everything else is the JSON of its own."""
    found = {}
    for key, value in row.items():
        if value is not None:
            found[key] = value if isinstance(value, str) else Raw(json.dumps(value, ensure_ascii=False))
    return found


LAYOUTS = {
    "array": (".json", lambda rows: json.dumps(rows)),
    "indented array": (".json", lambda rows: json.dumps(rows, indent=2, ensure_ascii=False)),
    "array in .jsonl": (".jsonl", lambda rows: json.dumps(rows)),
    "lines": (".jsonl", lambda rows: "\n".join(map(json.dumps, rows)) + "\n"),
    "lines in .json": (".json", lambda rows: "\n\n".join(map(json.dumps, rows))),
    "indented objects": (".jsonl", lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows)),
    "under data": (".json", lambda rows: json.dumps({"version": "1.0", "data": rows, "n": 3})),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 2**18])
def test_rows_are_those_of_the_standard_library(layout, chunk, monkeypatch, tmp_path):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    suffix, written = LAYOUTS[layout]
    draw, seen = random.Random(chunk), 0
    for place in range(40):
        rows = random_rows(draw)
        if layout == "indented objects":
            rows.insert(0, {"a": [1, "two"]})  # of which the first takes more than one line
        found = rows_of(written(rows), suffix)
        expected = [expected_row(row) for row in rows]
        assert same(found, expected)
        if place < 5:
            assert same(stored(found, tmp_path / str(place)), expected)
        seen += len(rows)
    assert seen > 100


@pytest.mark.parametrize("chunk", [3, 2**18])
def test_what_is_written_is_what_is_read(chunk, monkeypatch, tmp_path):
    """Each value beside each other one in its column, through the Arrow files."""
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    lines = [f'{{"instruction": "q", "output": {value}}}' for value in WRITTEN]
    expected = [{"instruction": "q", "output": value} for value in WRITTEN.values()]
    for text, suffix in (("\n".join(lines), ".jsonl"), (f"[{','.join(lines)}]", ".json")):
        found = rows_of(text, suffix)
        assert same(found, expected)
        assert same(stored(found, tmp_path / suffix), expected)


def test_numbers_that_are_missing_are_left_out():
    assert rows_of('[{"a": NaN, "b": null, "c": "NaN", "d": [NaN, null]}]') == [{"c": "NaN", "d": "[NaN, null]"}]


def test_json_text_is_that_of_the_standard_library():
    draw = random.Random(3)
    for _ in range(300):
        value = random_value(draw, depth=3)
        assert to_json(value) == json.dumps(value, ensure_ascii=False)
    assert to_json({"a": [Raw("1.50"), "1.50"]}) == '{"a": [1.50, "1.50"]}'


def test_keys_and_types_may_change_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("softprompt.data.tables.ROWS_TOGETHER", 10)
    rows = [{"a": "x"}] * 25
    rows += [{"a": Raw("7"), "late": "y"}] * 12
    rows += [{"a": Raw("[7]")}, {"later": Raw("2.5"), "a": "z"}]
    assert same(stored(rows, tmp_path / "rows"), rows)
    assert len(list((tmp_path / "rows").iterdir())) == 3  # a file for each set of columns, and not one for each change


def test_splits_of_one_object():
    notes = []
    text = json.dumps({"about": "x", "train": ROWS, "val": ROWS[:1], "test": [], "by": ["me"]})
    found = read(text, notes=notes)
    assert found == [*(("train", row) for row in ROWS), ("val", ROWS[0])]
    assert notes == ["beside its rows it holds about, by, which is not used"]
    # an object of arrays that are no rows is a row
    assert read('{"train": [1, 2], "data": "x"}') == [(WHOLE, {"train": Raw("[1, 2]"), "data": "x"})]


@pytest.mark.parametrize("text", ["", " \n\n", "[]", " [ ] ", '{"data": []}'])
def test_files_without_a_row(text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ('[\n{"a": 1},\n{"a": 2},\n]', 3, "a comma stands behind the last row"),
        ('{"a": 1}\n{"a": 2,}\n', 2, "a comma stands before a closing bracket"),
        ('[{"a": [1,\n2,\n]}]', 2, "a comma stands before a closing bracket"),
        ('{"a": 1,}\n', 1, "a comma stands before a closing bracket"),
        ('{"a": "one\ntwo"}\n', 1, "goes on over the end of its line"),
        ('[{"a": "x"},\n {"a": "one\ntwo"}]', 2, "goes on over the end of its line"),
        ('{"a": 1}\n\n{"a": "x}\n{"a": 2}\n', 3, "a text is not closed"),
        ('{"a": 1}\n{"a": 2\n{"a": 3}\n', 2, "an object or a list is not closed"),
        ('[{"a": 1},\n{"a": 2', 2, "an object or a list is not closed"),
        ('[{"a": 1},\n{"a": 2}\n', 3, "the file ends before the `]`"),
        ('[{"a": 1}\n{"a": 2}]', 2, "a comma is missing behind a row"),
        ('{"a": 1}\n{"a": "say "hi""}\n', 2, "a quote inside a text is not written"),
        ('{"a": 1}\n{"a": "\\x"}\n', 2, "a backslash in a text begins no escape"),
        ('{"a": 1}\n{"a": "x\ty"}\n', 2, "a control character stands in a text"),
        ("[\n{'a': 1}]", 2, "single quotes are no JSON"),
        ('{"a": 1}\n{"a": None}\n', 2, "None is Python and no JSON; write null"),
        ('{"a": 1}\n{a: 1}\n', 2, "a key must be a text between double quotes"),
        ('{"a": 1}\n{"a" 1}\n', 2, "a colon is missing behind a key"),
        ('{"a": 1},\n{"a": 2},\n', 1, "a comma stands where a row"),
        ('{"a": 1}\n{"a": 2} {"a": 3}\n', 2, "something stands behind the object"),
        ('[{"a": 1}]\n[{"a": 2}]', 2, "something stands behind the `]`"),
        ('{"data": [{"a": 1}]}\n{"a": 1}', 2, "something stands behind the object"),
        ("instruction,output\na,b\n", 1, "is not JSON (at 'instruction,output')"),
        ('["a", "b"]', 1, "a row is a text"),
        ('{"a": 1}\n7\n', 2, "a row is a number"),
        ('[{"a": 1},\nnull]', 2, "a row is null"),
        ('"text"', 1, "a row is a text"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"a": 1}\n{"a": ' + "[" * 100_000, 2, "nested too deeply"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [5, 2**18])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_errors_name_the_line_and_the_cause(text, line, cause, suffix, chunk, monkeypatch):
    if suffix == ".jsonl" and text.startswith('{"data"'):
        pytest.skip("in a file of lines that is a row")
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    with pytest.raises(UserError) as caught:
        read(text, suffix)
    assert str(caught.value).startswith(f"line {line}: ") and cause in str(caught.value), str(caught.value)


def test_a_damaged_document_is_refused_or_read_as_the_standard_library_reads_it(monkeypatch):
    draw, refused, kept = random.Random(1), 0, 0
    for _ in range(1500):
        monkeypatch.setattr(json_rows, "CHUNK", draw.choice([1, 4, 50]))
        text = list(json.dumps(random_rows(draw), indent=draw.choice([None, 1])))
        for _ in range(draw.randint(0, 2)):
            place = draw.randrange(len(text))
            text[place] = draw.choice(['"', ",", "}", "]", "", "\n", "x", "1", "[", "{", ":"])
        text = "".join(text)
        try:
            expected = json.loads(text)
        except ValueError:
            expected = None
        if not isinstance(expected, list) or not all(isinstance(row, dict) for row in expected):
            if text.lstrip().startswith("["):
                with pytest.raises(UserError):
                    read(text)
                refused += 1
            continue
        as_written = json.loads(text, parse_int=Raw, parse_float=Raw)
        assert [{k: json.loads(v) if type(v) is Raw else v for k, v in row.items()} for row in rows_of(text)] == [
            {k: v for k, v in row.items() if v is not None} for row in expected
        ]
        numbers = [v for row in as_written for v in row.values() if type(v) is Raw]
        assert [v for row in rows_of(text) for v in row.values() if kind_of(v) == "number"] == numbers
        kept += 1
    assert refused > 300 and kept > 300


def test_memory_is_bounded(tmp_path):
    """20 MB of rows, as lines and as one array on one line, take a few MB."""
    row = json.dumps({"instruction": "q" * 900, "output": "a" * 100, "n": 3})
    layouts = [("r.jsonl", "", "\n", ""), ("r.json", "[", ",", "]"), ("d.json", '{"data": [', ",", "]}")]
    for name, begin, between, end in layouts:
        path = tmp_path / name
        with path.open("w") as file:
            file.write(begin + row)
            for _ in range(20_000):
                file.write(between + row)
            file.write(end)
        (tmp_path / f"{name}-arrow").mkdir()
        writer = TableWriter(tmp_path / f"{name}-arrow")
        tracemalloc.start()
        with path.open() as file:
            for _, each in read_json(file, path.suffix, []):
                writer.add(each)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(map(len, writer.finish())) == 20_001
        assert path.stat().st_size > 20e6 and peak < 10e6
