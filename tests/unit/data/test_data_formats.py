"""Files in the shapes that people have: each gives its rows, or one line that names file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray.config import ColumnsConfig, DataConfig
from raft_ray.data import check_rows, length_check, read_rows, write_bad_rows
from raft_ray.data.general import general_prompts
from raft_ray.errors import DataError
from raft_ray.printable import one_line

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
FOUR = {"role": "assistant", "content": "The answer is 4."}
GOOD = {"prompt": "q", "answer": "a"}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def encoded(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    records = content if isinstance(content, list) else [content]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(tmp_path: Path, content: Any, name: str) -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(encoded(content))
    rows, bad = read_rows(str(path), DataConfig(), split="train")
    check_rows(rows, bad, DataConfig(), f"data.train={path}")
    return [(row.prompt, row.answer) for row in rows]


LINE = encoded(GOOD)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbf" + LINE, [("q", "a")]),
        (LINE.replace(b"\n", b"\r\n") * 2, [("q", "a")] * 2),
        (b"\n" + LINE + b"   \n" + LINE, [("q", "a")] * 2),
        ('{"prompt": "a\u2028b\u0085c", "answer": "d\u2029e"}'.encode(), [("a\u2028b\x85c", "d\u2029e")]),
        ({"prompt": "\u202e\u05e9", "answer": "👩\u200d👧"}, [("\u202e\u05e9", "👩\u200d👧")]),
        (LINE * 3, [("q", "a")] * 3),
        (b'{"prompt": "q", "answer": "a", "id": ' + b"9" * 5000 + b"}", [("q", "a")]),
        (b'{"prompt": "q", "answer": "a", "score": NaN}', [("q", "a")]),
        (chat(USER, REPLY), [("Hi", "Hello")]),
        (chat({**USER, "weight": 0}, {**REPLY, "weight": 1}), [("Hi", "Hello")]),
        *((chat({**USER, "weight": no}, {**REPLY, "weight": 1}), [("Hi", "Hello")]) for no in (0, 0.0, "0", False)),
        *((chat(USER, {**REPLY, "weight": yes}), [("Hi", "Hello")]) for yes in (1, 1.0, "1", True)),
        (chat({**USER, "train": False}, {**REPLY, "train": True}), [("Hi", "Hello")]),
        (chat(USER, {**REPLY, "prefix": False, "tool_calls": False, "refusal": None}), [("Hi", "Hello")]),
        (chat({**USER, "id": 7, "timestamp": 1.5, "lang": "en"}, {**REPLY, "model": "m"}), [("Hi", "Hello")]),
        (chat(USER, {**REPLY, "tool_calls": [], "name": None, "reasoning_content": ""}), [("Hi", "Hello")]),
        (chat({"role": "developer", "content": "Be brief"}, USER, REPLY), [("Hi", "Hello")]),
        (chat({"role": "user", "content": "a"}, {"role": "user", "content": "b"}, REPLY), [("b", "Hello")]),
        (chat(USER, REPLY, answer="Hello", prompt="Hi"), [("Hi", "Hello")]),
        (chat(USER, REPLY, answer=" Hello\n", prompt="Hi\n"), [("Hi", "Hello")]),
        (chat(USER, FOUR, answer="4"), [("Hi", "The answer is 4.")]),
        (chat(USER, FOUR, answer=4), [("Hi", "The answer is 4.")]),
        (chat(USER, FOUR, answer="I add 2 and 2. The answer is 4."), [("Hi", "The answer is 4.")]),
        (chat(USER, REPLY, answer="", prompt=[]), [("Hi", "Hello")]),
        (chat(USER, REPLY, prompt=[{"role": "user", "content": "Hi\n"}]), [("Hi", "Hello")]),
        *((chat(USER, REPLY, tools=none), [("Hi", "Hello")]) for none in ("[]", "null", "{}", "", [], {})),
        (chat(USER, REPLY, {"role": "user", "content": "Bye"}, REPLY, prompt="Hi"), [("Bye", "Hello")]),
        (
            chat({"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, REPLY),
            [("Hi", "Hello")],
        ),
    ],
)
def test_a_file_that_people_have_gives_its_rows(tmp_path: Path, content: Any, rows: list[tuple[str, str]]) -> None:
    assert read(tmp_path, content, "data.jsonl") == rows


BAD_LINES = [
    (LINE[:-1] + b"," + b"\n", "a comma stands behind the object"),
    (LINE.replace(b"\n", b"\r") * 2, "a carriage return inside the line"),
    (b'{"prompt": "Gr\xf6\xdfe", "answer": "a"}', "not UTF-8"),
    (b'{"prompt": "q", "prompt": "r", "answer": "a"}', "field 'prompt' stands twice"),
    (b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}', "field 'role' stands twice"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "the last of conversations is not an assistant message"),
    ({"conversations": [{"from": "observation", "value": "a"}]}, "message 1 has role 'observation'"),
    ({"prompt": [USER], "completion": [REPLY]}, "prompt is not text (list); a chat belongs in data.columns.messages"),
    ({"prompt": "q", "answer": [4, 5]}, "answer is not text (list)"),
    ({"prompt": "q", "answer": []}, "answer is not text (list)"),
    ({"prompt": "q", "answer": ["a", " "]}, "item 2 of 'answer' is empty"),
    ({"instruction": "a", "input": 4, "output": "c"}, "input is not text (int)"),
    ({"instruction": "a", "history": [["b", "c"]], "output": "d"}, "has `history` beside `instruction`"),
    ({"prompt": "q", "answer": 4}, "answer is not text (int); write it in quotes"),
    ({"prompt": "q", "answer": 4.0}, "answer is not text (float); write it in quotes"),
    ({"prompt": "q", "answer": True}, "answer is not text (bool); write it in quotes"),
    ({"prompt": "q", "answer": None}, "field 'answer' is missing"),
    ({"prompt": "q", "answers": ["a"]}, "field 'answer' is missing"),
    ({"prompt": "q", "answer": "\u200b"}, "answer has nothing but control and zero-width characters"),
    ({"prompt": "q", "answer": "\u00a0\u3000"}, "answer is empty"),
    ({"prompt": "q", "answer": "a", "answers": ["a", "\u200d"]}, "item 2 of 'answers' has nothing but"),
    ({"prompt": "a\0b", "answer": "c"}, "prompt has a NUL character"),
    ({"prompt": "\ud83d", "answer": "x"}, "prompt has half of a surrogate pair"),
    (chat(prompt="P", answer="A"), "field 'messages' is not a list of messages"),
    (chat(USER, REPLY, USER), "the last of messages is not an assistant message"),
    (chat({"role": "system", "content": "x"}, REPLY), "messages have no user message right before"),
    (chat(USER, {**REPLY, "content": ""}), "content of message 2 is empty"),
    (chat(USER, {**REPLY, "content": None}), "content of message 2 is not text"),
    (chat(USER, REPLY, answer="other"), "messages end with another answer than the one in field 'answer'"),
    (chat(USER, REPLY, answer="other"), "have the field ignored with data.columns.answer=NAME, a name that no row has"),
    (chat(USER, FOUR, answer="14"), "messages end with another answer"),
    (chat(USER, FOUR, answer=5), "messages end with another answer"),
    (chat(USER, FOUR, answer=True), "messages end with another answer"),
    (chat(USER, FOUR, answer=["4"]), "messages end with another answer"),
    (chat(USER, REPLY, prompt=[REPLY]), "messages do not hold the question in field 'prompt'"),
    (chat(USER, REPLY, prompt="other"), "have the field ignored with data.columns.prompt=NAME, a name that no row has"),
    (chat(USER, REPLY, tools='[{"type": "function"}]'), "field 'tools' offers tools"),
    (chat(USER, REPLY, prompt="other"), "messages do not hold the question in field 'prompt'"),
    (chat(USER, REPLY, tools=[{"type": "function"}]), "field 'tools' offers tools"),
    (chat(USER, {**REPLY, "content": None, "tool_calls": [{"id": "1"}]}), "message 2 has a field 'tool_calls'"),
    (chat(USER, {**REPLY, "function_call": {"name": "f"}}), "message 2 has a field 'function_call'"),
    (chat(USER, {"role": "tool", "content": "x"}, REPLY), "message 2 has role 'tool'"),
    (chat(USER, {**REPLY, "reasoning_content": "x"}), "message 2 has a field 'reasoning_content': reasoning is not"),
    (chat({**USER, "name": "Ann"}, REPLY), "message 1 has a field 'name'"),
    (chat(USER, {**REPLY, "train": False}), "message 2 has train False; an answer counts whole"),
    (chat(USER, {**REPLY, "train": "some"}), "message 2 has train 'some'; an answer counts whole"),
    (chat(USER, {**REPLY, "weight": "0"}), "message 2 has weight '0'; an answer counts whole"),
    (chat(USER, {**REPLY, "refusal": "I cannot"}), "message 2 has a field 'refusal': nothing reads it"),
    (chat(USER, {**REPLY, "annotations": [{"url": "x"}]}), "message 2 has a field 'annotations': nothing reads it"),
    (chat(USER, {**REPLY, "audio": {"id": "1"}}), "message 2 has a field 'audio': nothing reads it"),
    (chat({**USER, "images": ["x.png"]}, REPLY), "message 1 has a field 'images': nothing reads it"),
    (chat(USER, {**REPLY, "prefix": True}), "message 2 has a field 'prefix': nothing reads it"),
    (chat({"from": "human", "value": "a", "content": "b"}, REPLY), "message 1 has a field 'content': nothing reads it"),
    (chat(USER, {**REPLY, "weight": 0}), "message 2 has weight 0"),
    (chat(USER, {**REPLY, "weight": 0.5}), "message 2 has weight 0.5"),
    (
        chat({**USER, "content": [{"type": "image_url", "image_url": {}}]}, REPLY),
        "part 1 of message 1 is of type 'image",
    ),
    (chat({**USER, "content": [{"type": "text"}]}, REPLY), "part 1 of message 1 has no text"),
    (chat({**USER, "content": [{"type": "text", "text": "a", "x": 1}]}, REPLY), "part 1 of message 1 has a field 'x'"),
    (chat({**USER, "content": ["a"]}, REPLY), "part 1 of message 1 is of type 'str'"),
    (chat({**USER, "content": []}, REPLY), "content of message 1 is not text (list)"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_LINES)
def test_what_no_row_can_honour_is_one_line_with_file_line_and_field(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, LINE + encoded(content), "data.jsonl")
    message = one_line(str(caught.value))
    assert f"{tmp_path / 'data.jsonl'}: 1 of 2 rows cannot be used (line 2: " in message
    assert reason in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data.jsonl.gz", LINE, "zlib inflate failed: incorrect header check; make the file readable"),
        ("data.jsonl.gz", gzip.compress(LINE * 9, mtime=0)[:30], "Truncated compressed stream"),
        ("data.json", b"[" + LINE + LINE + b"]", "data.json: line 2: not JSON: no comma between two elements of the"),
        ("data.json", b"[" + LINE + b",\n]", "data.json: line 3: not JSON: Expecting value"),
        ("data.json", b"[" + LINE, "data.json: line 2: not JSON: the array is not closed"),
        ("data.json", b"[" + LINE + b"]\n\n]", "data.json: line 4: not JSON: something stands behind the array"),
        ("data.json", b'[\n{"prompt": "q\n', "data.json: line 2: not JSON: Invalid control character"),
        ("data.json", b"[" * 100_000, "data.json: line 1: not JSON: nested too deeply"),
        ("data.json", b"[]", "the data set is empty"),
        ("data.csv", b"", "the data set is empty"),
        ("data.csv", b"prompt,answer,prompt\nq,a,b\n", "data.csv: line 1: column 'prompt' stands twice in the header"),
        ("data.csv", b'prompt,answer\nq,a\n"q,a\nq,a\n', "data.csv: line 3: a quotation mark opens there and is not"),
        ("data.arrow", b"x" * 20, "data.arrow cannot be read as Arrow"),
        ("data.jsonl", b"", "the data set is empty"),
        ("data.jsonl", b"\n \n", "the data set is empty"),
    ],
)
def test_a_file_of_another_form_is_one_line_that_names_what_is_read(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)
    assert str(caught.value).startswith(f"data.train={tmp_path / name}: {reason}")


@pytest.mark.parametrize("field", ["\ud800", "\x1b[31mred\x1b[0m", "a\0b", "[/bold]", "a" * 100_000])
def test_whatever_a_field_is_called_its_row_is_one_line_that_can_be_written(tmp_path: Path, field: str) -> None:
    path = tmp_path / "[x]" / "data.jsonl"
    path.parent.mkdir()
    path.write_bytes(encoded([GOOD, {field: "x"}]))
    _, bad = read_rows(str(path), DataConfig(), split="train")
    assert len(bad[0].reason) <= 500
    assert bad[0].reason.isprintable()
    write_bad_rows(bad, tmp_path / "bad_rows.jsonl")
    assert json.loads((tmp_path / "bad_rows.jsonl").read_text())["line"] == 2


def test_a_huge_text_is_refused_after_counting_its_beginning() -> None:
    counted: list[int] = []

    def count(messages: list[dict[str, str]], answer: str) -> tuple[int, int]:
        counted.append(max(len(answer), *(len(message["content"]) for message in messages)))
        return sum(len(message["content"].split()) for message in messages), len(answer.split())

    from raft_ray.data import Row

    check = length_check(DataConfig(max_prompt=10, max_answer=10), count)
    huge = "word " * 1_000_000
    spaces = "word" + " " * 1_000_000
    short = [{"role": "user", "content": "q"}]
    assert "answer has more than" in (check(Row(0, 1, short, huge, [])) or "")
    assert "prompt has more than" in (check(Row(0, 1, [{"role": "user", "content": huge}], "a", [])) or "")
    assert "fused answer has more than" in (check(Row(0, 1, short, "a", [], fused=huge)) or "")
    answers = Row(0, 1, short, "a", ["a", "b", huge])
    assert "one of the answers has more than" in (check(answers) or "")
    choices = Row(0, 1, short, "a", ["a"], choices=["a", huge])
    assert "one of the choices has more than" in (check(choices) or "")
    assert max(counted) < 1000
    assert check(Row(0, 1, short, spaces, [])) is None  # however long, it has one token


@pytest.mark.parametrize("line", [b'{"a": ' * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}", b'{"prompt": "\\ud800"}'])
def test_a_general_prompt_that_cannot_be_read_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "general.jsonl"
    path.write_bytes(line)
    with pytest.raises(DataError, match=r"eval.general=.*line 1: "):
        general_prompts(str(path))


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"input": "Hund"}, [{"role": "user", "content": "Translate\n\nHund"}]),
        ({"input": ""}, [{"role": "user", "content": "Translate"}]),
        ({"input": None, "system": " ", "history": []}, [{"role": "user", "content": "Translate"}]),
        (
            {"system": "Be brief."},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Translate"}],
        ),
    ],
)
def test_an_instructions_input_and_system_are_used(
    tmp_path: Path, fields: dict[str, Any], messages: list[dict[str, str]]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(encoded({"instruction": "Translate", "output": "a dog", **fields}))
    ((row,), bad) = read_rows(str(path), DataConfig(), split="train")
    assert (row.messages, row.answer, bad) == (messages, "a dog", [])
    # Beside a `prompt` nobody expects an input, unless it is named.
    path.write_bytes(encoded({"prompt": "Translate", "answer": "a dog", "input": "Hund"}))
    assert read_rows(str(path), DataConfig(), split="train")[0][0].prompt == "Translate"
    named = DataConfig(columns=ColumnsConfig(input="input"))
    assert read_rows(str(path), named, split="train")[0][0].prompt == "Translate\n\nHund"


def test_of_a_list_of_answers_the_first_is_the_gold_answer_and_all_are_right(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(encoded({"prompt": "q", "answer": ["a", "b"], "answers": ["c", "a"]}))
    ((row,), _) = read_rows(str(path), DataConfig(), split="test")
    assert (row.answer, row.answers) == ("a", ["a", "b", "c"])
    # What looks like a list of JSON is the text that it is.
    path.write_bytes(encoded({"prompt": "q", "answer": '["a"]'}))
    assert read(tmp_path, path.read_bytes(), "data.jsonl") == [("q", '["a"]')]


def test_sharegpt_names_its_system_message_beside_the_chat(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    path = tmp_path / "data.jsonl"
    path.write_bytes(encoded({"conversations": [*turns, {"from": "gpt", "value": "d"}], "system": "Be brief."}))
    ((row,), _) = read_rows(str(path), DataConfig(), split="train")
    assert [(each["role"], each["content"]) for each in row.messages] == [
        *(("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    assert row.answer == "d"
