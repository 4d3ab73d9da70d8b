"""Formats of rows: which columns decide them, and what becomes of a record, whatever kind of file it came from."""

import json
import re

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from helpers.rows import write

from softprompt.data.splits import load_questions, load_split, load_splits
from softprompt.errors import UserError

NESTED = ("json", "jsonl", "memory")
ALL = (*NESTED, "csv", "parquet")


def load(tmp_path, kind, rows, **settings):
    data = rows if kind == "memory" else write(tmp_path, kind, rows)
    return load_splits(data, eval_fraction=0.0, seed=1, **settings)


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def turns(row):
    return [dict(message) for message in row.messages]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "names",
    [
        ("instruction", "output"),
        ("prompt", "completion"),
        ("question", "answer"),
        ("query", "response"),
        ("instruction", "response"),
    ],
    ids="/".join,
)
def test_pairs_of_columns(tmp_path, kind, names):
    asked, answered = names
    splits = load(tmp_path, kind, [{asked: "Why?", answered: "So. "}, {asked: "007", answered: "true"}])
    assert [turns(row) for row in splits.train_rows] == [[user("Why?")], [user("007")]]
    assert [row.output for row in splits.train_rows] == ["So. ", "true"]
    assert splits.train_rows[0].columns[asked] == "Why?" and not splits.choices


@pytest.mark.parametrize("kind", ALL)
def test_a_context_is_the_input(tmp_path, kind):
    rows = [{"instruction": "Who?", "context": "Ann and Ben.", "response": "Ann"}] * 2
    (first, _) = load(tmp_path, kind, rows).train_rows
    assert turns(first) == [user("Who?\nAnn and Ben.")] and first.output == "Ann"


@pytest.mark.parametrize("kind", NESTED)
def test_history_and_system(tmp_path, kind):
    row = {
        "instruction": "And then?",
        "output": "Rest.",
        "system": "Be kind.",
        "history": [["One?", "1"], ["Two?", "2"]],
    }
    blank = {"instruction": "Now?", "output": "Yes.", "system": " ", "history": []}
    first, second = load(tmp_path, kind, [row, blank]).train_rows
    before = [{"role": "system", "content": "Be kind."}, user("One?"), said("1"), user("Two?"), said("2")]
    assert turns(first) == [*before, user("And then?")] and first.output == "Rest."
    assert turns(second) == [user("Now?")]


def test_a_history_in_a_csv_file_is_json_text(tmp_path):
    rows = [
        {"instruction": "c", "output": "d", "history": json.dumps([["a", "b"]])},
        {"instruction": "x", "output": "y", "history": ""},
    ]
    first, second = load(tmp_path, "csv", rows).train_rows
    assert turns(first) == [user("a"), said("b"), user("c")] and turns(second) == [user("x")]


@pytest.mark.parametrize("kind", NESTED)
def test_turns_of_a_prompt_are_given_and_those_of_a_history_are_learnt(tmp_path, kind):
    asked, answered = [user("One?"), said("1"), user("Two?")], [said("2"), user("Three?"), said("3")]
    (row, _) = load(tmp_path, kind, [{"prompt": asked, "completion": answered}] * 2).train_rows
    assert turns(row) == [*asked, *answered[:-1]] and row.output == "3" and row.given == len(asked)
    (row, _) = load(tmp_path, kind, [{"prompt": asked, "completion": answered, "system": "Be."}] * 2).train_rows
    assert turns(row)[0]["role"] == "system" and row.given == 1 + len(asked)
    (row, _) = load(tmp_path, kind, [{"prompt": asked, "response": "2"}] * 2).train_rows
    assert row.given == len(asked) and row.output == "2"
    for others in (
        {"instruction": "Two?", "output": "2", "history": [["One?", "1"]]},
        {"messages": [*asked, said("2")]},
    ):
        (row, _) = load(tmp_path, kind, [others] * 2).train_rows
        assert turns(row) == asked and row.output == "2" and row.given == 0


def test_a_completion_without_an_answer_takes_none_from_its_prompt(tmp_path):
    rows = [{"prompt": [user("a"), said("b")], "completion": []}, {"prompt": [user("a")], "completion": [said("b")]}]
    first, second = load(tmp_path, "jsonl", rows).train_rows
    assert not first.has_answer and turns(first) == [user("a"), said("b")] and second.output == "b"


@pytest.mark.parametrize("kind", ["memory", "jsonl", "parquet"])
def test_a_context_that_is_an_object_is_json_text_and_counted(tmp_path, kind):
    context = {"title": "Ann", "facts": [{"is": "x"}, {"is": None}], "none": None}
    rows = [{"question": "Who?", "context": context, "answer": "a"}] * 2
    splits = load(tmp_path, kind, rows)
    question, _, written = splits.train_rows[0].messages[0]["content"].partition("\n")
    assert question == "Who?" and json.loads(written) == {"title": "Ann", "facts": [{"is": "x"}, {}]}
    (note,) = [note for note in splits.notes if "JSON" in note]
    assert "2 rows have a list or an object in context, which is written as JSON text: row 1, 2" in note
    assert load_questions(write(tmp_path, "jsonl", rows)).rows[0].messages == splits.train_rows[0].messages


def test_a_context_keeps_its_digits_and_a_text_stays_a_text(tmp_path):
    lines = ['{"a": 1.10, "b": 9007199254740993, "c": 1e3}', "[]", '"{\\"a\\": null}"', "null"]
    text = "".join(f'{{"question": "q", "context": {line}, "answer": "x"}}\n' for line in lines)
    (tmp_path / "rows.jsonl").write_text(text, "utf-8")
    splits = load_splits(str(tmp_path / "rows.jsonl"), eval_fraction=0.0, seed=1)
    found = [row.messages[0]["content"] for row in splits.train_rows]
    assert found == [f"q\n{lines[0]}", "q", 'q\n{"a": null}', "q"]
    assert [
        note for note in splits.notes if "1 row has a list or an object in context" in note and note.endswith("row 1")
    ]


def test_a_system_column_gives_way_to_a_system_turn(tmp_path):
    talk = [{"role": "system", "content": "Be kind."}, user("a"), said("b")]
    rows = [
        {"messages": talk, "system": "Be rude."},
        {"messages": talk, "system": "Be kind."},
        {"messages": talk[1:], "system": "Be rude."},
        {"messages": talk, "system": ""},
    ]
    splits = load(tmp_path, "jsonl", rows)
    assert [row.messages[0]["content"] for row in splits.train_rows] == ["Be kind.", "Be kind.", "Be rude.", "Be kind."]
    assert all(len(row.messages) == 2 for row in splits.train_rows)
    (note,) = [note for note in splits.notes if "system text" in note]
    assert "1 row has a turn of the system as well as a system text, of which the turn is used: row 1" in note


def test_python_lists_in_a_csv_file(tmp_path):
    """pandas writes a list into a CSV file as Python shows it."""
    talk = [user('Say "it\'s"'), said("None, True")]
    tools = [{"name": "f", "strict": True, "more": None}]
    rows = [{"messages": str(talk), "tools": str(tools)}] * 2
    (row, _) = load(tmp_path, "csv", rows).train_rows
    assert turns(row) == talk[:1] and row.output == "None, True" and row.tools == ({"name": "f", "strict": True},)
    (row, _) = load(tmp_path, "csv", [{"instruction": "c", "output": "d", "history": "[('a', 'b')]"}] * 2).train_rows
    assert turns(row) == [user("a"), said("b"), user("c")]
    with pytest.raises(UserError, match="messages is a text that is no JSON; write a list of turns"):
        load(tmp_path, "csv", [{"messages": "__import__('os').getcwd()", "tools": ""}])


AMBIGUOUS = {
    "messages and a pair": (
        {"messages": [user("a"), said("b")], "prompt": "p", "completion": "c"},
        ["read as messages (column messages)", "question and answer, too (columns prompt, completion)",
         "`columns` prompt=prompt,completion=completion does"],
    ),
    "two pairs": (
        {"prompt": "p", "completion": "c", "question": "q", "answer": "a"},
        ["question and answer (columns prompt, completion)", "too (columns question, answer)"],
    ),
    "messages and a label": (
        {"messages": [user("a"), said("b")], "text": "t", "label": "l", "url": "u"},
        ["text and label, too (columns text, label)", "are not used: url"],
    ),
    "two answers": (
        {"question": "q", "answer": "a", "response": "r", "output": "o"},
        ["read as question and answer (columns question, answer)", "are not used: response, output"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_columns_that_fit_two_formats_are_named_once(tmp_path, name):
    row, wanted = AMBIGUOUS[name]
    notes = load(tmp_path, "jsonl", [row, row]).notes
    assert all(any(words in note for note in notes) for words in wanted), notes
    lists = [each[0] or each[1] for note in notes for each in re.findall(r"\(columns? ([^)]*)\)|not used: (.*)$", note)]
    assert sorted(", ".join(lists).split(", ")) == sorted(row)


@pytest.mark.parametrize(
    "columns", [("input_ids", "labels"), ("input_ids", "labels", "attention_mask"), ("input_ids",)]
)
def test_encoded_rows_are_no_questions_and_no_mapping_is_proposed(tmp_path, columns):
    rows = [{column: [5, 6] for column in columns}] * 2
    data = write(tmp_path, "jsonl", rows)
    with pytest.raises(UserError) as caught:
        load_questions(data)
    message = str(caught.value)
    assert "rows are token ids (input_ids)" in message and "give questions as text" in message
    assert "`columns`" not in message and "\n" not in message
    if "labels" not in columns:
        with pytest.raises(UserError, match="rows with input_ids need labels as well") as caught:
            load(tmp_path, "jsonl", rows)
        assert "`columns`" not in str(caught.value)


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations(tmp_path, kind, column):
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}, {"from": "human", "value": "?"}]
    openai = [{"role": "developer", "content": "Be."}, user("Hi"), said("Ho"), user("Ho?"), said("Hi!")]
    written = [sharegpt, openai][column == "messages"]
    first, _ = load(tmp_path, kind, [{column: written}, {column: written}]).train_rows
    if column == "messages":
        assert turns(first) == [{"role": "system", "content": "Be."}, user("Hi"), said("Ho"), user("Ho?")]
        assert first.output == "Hi!"
    else:
        assert turns(first) == [user("Hi")] and first.output == "Ho"  # the turn behind the last answer is left out


def test_turns_behind_the_last_answer_are_counted(tmp_path):
    rows = [{"messages": [user("a"), said("b"), user("c")]}, {"messages": [user("a"), said("b")]}]
    notes = load(tmp_path, "jsonl", rows).notes
    assert [note for note in notes if "1 row has turns behind the last answer" in note and "row 1" in note]


def test_tools_and_their_calls(tmp_path):
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": {"a": 3.10, "b": 10**30, "c": None}},
    }
    answer = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"x": None, "type": "object"}}}]
    text = json.dumps({"messages": [user("3.1 + 1e30"), answer], "tools": tools}).replace("3.1,", "3.10,")
    (tmp_path / "rows.jsonl").write_text((text + "\n") * 2, "utf-8")
    (row, _) = load_splits(str(tmp_path / "rows.jsonl"), eval_fraction=0.0, seed=1).train_rows
    assert row.output == "" and row.has_answer and turns(row) == [user("3.1 + 1e30")]
    (found,) = row.answer["tool_calls"]
    assert found["function"]["arguments"] == {"a": 3.10, "b": 10**30} and "name" not in row.answer
    assert str(found["function"]["arguments"]["a"]) == "3.10"
    assert row.tools == ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)


@pytest.mark.parametrize("kind", ALL)
def test_text_and_its_labels(tmp_path, kind):
    rows = [{"text": f"film {place}", "label": ["good", "bad"][place % 2]} for place in range(6)]
    splits = load(tmp_path, kind, rows)
    assert splits.choices == ("bad", "good")
    assert turns(splits.train_rows[1]) == [user("film 1")] and splits.train_rows[1].output == "bad"


def test_class_labels_have_names():
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes", "never"])})
    data = Dataset.from_list([{"sentence": f"s{place}", "label": place % 2} for place in range(4)], features=features)
    splits = load_splits(data, eval_fraction=0.0, seed=1)
    assert splits.choices == ("no", "yes", "never") and [row.output for row in splits.train_rows] == ["no", "yes"] * 2
    assert load_split(data).choices == splits.choices


@pytest.mark.parametrize("kind", ALL)
def test_text_alone_is_learnt_whole(tmp_path, kind):
    first, _ = load(tmp_path, kind, [{"text": "Once upon a time."}, {"text": "The end."}]).train_rows
    assert first.text == "Once upon a time." and not first.messages and first.has_question and first.has_answer


@pytest.mark.parametrize("kind", NESTED)
def test_rows_that_are_encoded_already(tmp_path, kind):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    assert [row.encoded for row in load(tmp_path, kind, rows).train_rows] == [([5, 6, 7], [-100, 6, 7]), ([8], [8])]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, "2 input_ids and 1 labels"),
        ({"input_ids": [1, 2], "labels": [1, 3]}, "label 2 is 3 and its id is 2"),
        ({"input_ids": [1, -2], "labels": [1, -2]}, "id 2 is -2"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "the role 'bot' is not known"),
        ({"messages": [{"content": "x"}]}, "has no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text can be read"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "pair 1: is no pair"),
        ({"instruction": ["a"], "output": "b"}, "instruction is a list"),
    ],
    ids=str,
)
def test_what_a_row_cannot_hold_is_one_line_with_its_number(tmp_path, row, words):
    with pytest.raises(UserError) as caught:
        load(tmp_path, "jsonl", [row])
    assert "row 1" in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_columns_of_other_names_are_mapped(tmp_path):
    rows = [{"ask": "a", "reply": "b", "n": 1}] * 2
    first, _ = load(tmp_path, "jsonl", rows, columns="question=ask,answer=reply").train_rows
    assert turns(first) == [user("a")] and first.output == "b"
    with pytest.raises(UserError) as caught:
        load(tmp_path, "jsonl", rows)
    message = str(caught.value)
    assert '{"ask": "a", "reply": "b", "n": 1}' in message and "`columns` instruction=ask,output=reply" in message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("question", "NAME=COLUMN"),
        ("asked=a", "asked is none of"),
        ("question=a,question=b", "question is given twice"),
    ],
)
def test_a_mapping_that_says_nothing_is_refused(tmp_path, columns, words):
    with pytest.raises(UserError, match=words):
        load(tmp_path, "jsonl", [{"a": "x"}], columns=columns)


def test_questions_leave_answers_aside(tmp_path):
    rows = [{"messages": [user("a"), said("b"), user("c"), said("d")], "id": 7}, {"messages": [user("e")], "id": 8}]
    found = load_questions(write(tmp_path, "jsonl", rows)).rows
    assert [turns(row) for row in found] == [[user("a"), said("b"), user("c")], [user("e")]]
    assert [row.output for row in found] == ["", ""] and [row.others["id"] for row in found] == ["7", "8"]


def test_a_part_of_the_training_rows(tmp_path):
    rows = [{"question": str(place), "answer": "x"} for place in range(20)]
    whole = load_splits(write(tmp_path, "jsonl", rows), eval_fraction=0.5, seed=3)
    part = load_splits(write(tmp_path, "jsonl", rows), eval_fraction=0.5, seed=3, max_train_rows=4)
    assert part.train_rows == whole.train_rows[:4] and part.eval_rows == whole.eval_rows
