"""Our reader of CSV against the csv module: fields as they stand there, whatever divides them."""

import csv
import io
import random

import pytest

from softprompt.data.csv_rows import read_csv
from softprompt.errors import UserError

PIECES = ["a", '"', ",", ";", "\t", "\n", "\r\n", " ", "é", "007", "NA", "\u2028"]


def read(text, suffix=".csv", notes=None):
    return list(read_csv(io.StringIO(text, newline=""), suffix, [] if notes is None else notes))


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".csv", "\t"), (".tsv", "\t")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_fields_are_what_the_csv_module_wrote(suffix, delimiter, line_end, quoting):
    draw = random.Random(1)
    names = ["instruction", "input", "output"]
    records = [["".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in names] for _ in range(200)]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows([names, *records])
    assert read(file.getvalue(), suffix) == [dict(zip(names, record, strict=True)) for record in records]


def test_delimiters_come_from_the_header():
    assert read("instruction;output\na,b;3,10\n") == [{"instruction": "a,b", "output": "3,10"}]
    assert read("instruction,output\na;b,c\n", ".tsv") == [{"instruction": "a;b", "output": "c"}]
    assert read("instruction\na,b\n".replace(",", ";")) == [{"instruction": "a;b"}]
    assert read("sep=;\r\ninstruction;output\r\na;,\r\n") == [{"instruction": "a", "output": ","}]
    assert read('\n"instruction;x",output\n\na;b,c\n') == [{"instruction;x": "a;b", "output": "c"}]


def test_blanks_around_names_are_taken_off_and_said():
    notes = []
    assert read("instruction, input ,output\na, b,\n", notes=notes) == [
        {"instruction": "a", "input": " b", "output": ""}
    ]
    assert notes == ["blanks around names in the header were taken off: ' input '"]
    notes.clear()
    assert read("a,b\n1,2\n", notes=notes) and not notes


def test_names_that_are_missing_or_there_twice():
    assert read(",a,a, a,\n1,2,3,4,5\n") == [{"Unnamed: 0": "1", "a": "2", "a.1": "3", "a.2": "4", "Unnamed: 4": "5"}]


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n", "a,b\n\n\n"])
def test_files_without_a_row(text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3, row 2: has 1 fields, the header has 2"),
        ('a,b\n"1\n1",2\n\n3,4,5\n', "line 5, row 2: has 3 fields, the header has 2"),
        ('a,b\n1,"2\n3,4\n', "line 2: a quote is opened and never closed"),
        ('sep=,\na,b\n1,2\n1,"2\n3,4\n', "line 4: a quote is opened and never closed"),
        ('a,b\n1,2\n1,"2"3\n', "line 3: ',' expected after '\"'"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith(message)


def test_the_limit_of_the_csv_module_is_as_it_was():
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert read(f"a,b\n{long},2\n") == [{"a": long, "b": "2"}]
    with pytest.raises(UserError):
        read("a,b\n1\n")
    assert csv.field_size_limit() == before
