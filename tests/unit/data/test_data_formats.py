"""Files in the shapes that people have: each gives its rows, or one line that names file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray.config import DataConfig
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
    ({"instruction": "a", "input": "b", "output": "c"}, "field 'prompt' is missing (fields there: instruction,"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "field 'prompt' is missing (fields there: conversations)"),
    ({"prompt": "q", "completion": "a"}, "field 'answer' is missing (fields there: prompt, completion)"),
    ({"prompt": [USER], "completion": [REPLY]}, "prompt is not text (list); a chat belongs in data.messages_field"),
    ({"prompt": "q", "answer": ["a", "b"]}, "answer is not text (list); several right answers belong in data.answers_"),
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
    (chat(USER, REPLY, answer="other"), "have the field ignored with data.answer_field=NAME, a name that no row has"),
    (chat(USER, FOUR, answer="14"), "messages end with another answer"),
    (chat(USER, FOUR, answer=5), "messages end with another answer"),
    (chat(USER, FOUR, answer=True), "messages end with another answer"),
    (chat(USER, FOUR, answer=["4"]), "messages end with another answer"),
    (chat(USER, REPLY, prompt=[REPLY]), "messages do not hold the question in field 'prompt'"),
    (chat(USER, REPLY, prompt="other"), "have the field ignored with data.prompt_field=NAME, a name that no row has"),
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
    (
        chat({"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}),
        "message 1 has `from` and `value`, as ShareGPT names them; rename them to `role`",
    ),
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
        ("data.csv", b"prompt,answer\nq,a\n", "unknown file type .csv; convert it to .jsonl or .parquet"),
        ("data.jsonl.gz", gzip.compress(LINE, mtime=0), "unknown file type .gz; convert it to .jsonl or .parquet"),
        ("data.json", b"[" + LINE + b"]", "unknown file type .json; convert it to .jsonl or .parquet"),
        ("data.jsonl", b"[" + LINE[:-1] + b"," + LINE[:-1] + b"]", "begins with a JSON array"),
        ("data.jsonl", json.dumps([GOOD], indent=1).encode(), "begins with a JSON array"),
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


@pytest.mark.parametrize("name", ["input", "system"])
def test_an_instructions_input_is_not_dropped_without_a_word(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data.jsonl"
    names = DataConfig(train=str(path), prompt_field="instruction", answer_field="output")
    path.write_bytes(encoded({"instruction": "Translate", name: "", "output": "a dog"}))
    assert [row.prompt for row in read_rows(str(path), names, split="train")[0]] == ["Translate"]
    path.write_bytes(encoded({"instruction": "Translate", name: "Hund", "output": "a dog"}))
    with pytest.raises(DataError, match=rf"line 1: has `{name}` beside `instruction`, and nothing reads it"):
        check_rows(*read_rows(str(path), names, split="train"), names, "data.train")
