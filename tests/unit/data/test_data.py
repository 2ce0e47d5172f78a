"""Sources become rows; what cannot be a row is reported with its line and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.config import ColumnsConfig, DataConfig
from raft_ray.data import BadRow, Row, read_rows
from raft_ray.data.normalise import visible
from raft_ray.errors import DataError

GOOD = {"prompt": "What is 2 + 2?", "answer": "4"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
]


def write_jsonl(path: Path, *records: Any) -> str:
    """Records as JSON lines; bytes go into the file as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def reasons(bad: list[BadRow]) -> dict[int, str]:
    return {row.line: row.reason for row in bad}


def words(messages: list[dict[str, str]], answer: str) -> tuple[int, int]:
    return sum(len(message["content"].split()) for message in messages), len(answer.split())


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: visible(text) and "\0" not in text
)


# What is read


@settings(deadline=None)
@given(records=st.lists(st.fixed_dictionaries({"prompt": texts, "answer": texts}), min_size=1, max_size=8))
def test_jsonl_rows_come_back_as_they_were_written(
    records: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [json.dumps(record, ensure_ascii=False).encode() for record in records]
    source = write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", *lines)
    rows, bad = read_rows(source, DataConfig(), split="train")
    assert bad == []
    assert [(row.prompt, row.answer) for row in rows] == [(r["prompt"], r["answer"]) for r in records]
    assert [row.index for row in rows] == list(range(len(records)))
    assert [row.line for row in rows] == list(range(1, len(records) + 1))


@settings(deadline=None)
@given(lines=st.lists(st.binary().filter(lambda line: b"\n" not in line), max_size=6))
def test_whatever_bytes_a_jsonl_file_holds_its_good_rows_are_read(
    lines: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", GOOD, *lines, GOOD)
    rows, bad = read_rows(source, DataConfig(), split="train")
    assert [row.line for row in rows] == [1, len(lines) + 2]
    marked = [line.removeprefix(b"\xef\xbb\xbf") for line in lines]
    assert [row.line for row in bad] == [number for number, line in enumerate(marked, start=2) if line.strip()]


def test_a_row_of_prompt_and_answer_is_one_user_message(tmp_path: Path) -> None:
    rows, _ = read_rows(write_jsonl(tmp_path / "a.jsonl", GOOD), DataConfig(), split="train")
    assert rows == [
        Row(index=0, line=1, messages=[{"role": "user", "content": "What is 2 + 2?"}], answer="4", answers=["4"])
    ]
    assert (rows[0].rewrite, rows[0].fused) == (None, None)


def test_field_names_come_from_the_config(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", {"q": "2 + 2?", "a": "4", "all": ["four", "4"]})
    config = DataConfig(columns=ColumnsConfig(prompt="q", answer="a", answers="all"))
    (row,), _ = read_rows(source, config, split="train")
    assert (row.prompt, row.answer, row.answers) == ("2 + 2?", "4", ["4", "four"])


def test_the_last_assistant_message_of_a_chat_is_the_answer(tmp_path: Path) -> None:
    (row,), _ = read_rows(write_jsonl(tmp_path / "a.jsonl", {"messages": CHAT}), DataConfig(), split="train")
    assert row.messages == CHAT[:-1]
    assert (row.prompt, row.answer) == ("What is 2 + 2?", "4")


def test_a_chat_may_leave_its_answer_to_the_answer_field(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", {"messages": CHAT[:-1], "answer": "4"})
    (row,), _ = read_rows(source, DataConfig(), split="train")
    assert (row.messages, row.answer) == (CHAT[:-1], "4")


def test_a_test_question_may_name_choices(tmp_path: Path) -> None:
    row = {"prompt": "Which?", "answer": "b", "choices": ["a", "b"]}
    path = write_jsonl(tmp_path / "t.jsonl", row, {"prompt": "What?", "answer": "c"})
    rows, bad = read_rows(path, DataConfig(), split="test")
    assert [one.choices for one in rows] == [["a", "b"], None]
    assert bad == []
    # Training has no use for them, whatever they look like.
    rows, bad = read_rows(
        write_jsonl(tmp_path / "u.jsonl", {**row, "choices": {"text": []}}), DataConfig(), split="train"
    )
    assert ([one.choices for one in rows], bad) == ([None], [])


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (["a"], "not a list of two or more texts"),
        ("ab", "not a list of two or more texts"),
        (["a", 1], "item 2 of 'choices' is not text"),
        (["b", "a", "b"], "names a choice twice"),
        (["a", "c"], "the answer is none of the texts in 'choices'"),
    ],
)
def test_choices_that_cannot_be_used_are_told(tmp_path: Path, choices: Any, reason: str) -> None:
    good = {"prompt": "What?", "answer": "c"}
    path = write_jsonl(tmp_path / "t.jsonl", good, {"prompt": "Which?", "answer": "b", "choices": choices})
    _, bad = read_rows(path, DataConfig(), split="test")
    assert [(row.line, reason in row.reason) for row in bad] == [(2, True)]


def test_a_fused_field_made_elsewhere_is_kept(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", {**GOOD, "fused": "It is 4.", "rewrite": "Four."}, GOOD)
    rows, _ = read_rows(source, DataConfig(), split="train")
    assert [(row.rewrite, row.fused) for row in rows] == [("Four.", "It is 4."), (None, None)]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"  \r", GOOD)
    rows, bad = read_rows(source, DataConfig(), split="train")
    assert ([row.line for row in rows], bad) == ([1, 4], [])


def test_the_limit_takes_the_first_good_rows_of_the_training_set_only(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", GOOD, b"broken", *[GOOD] * 5)
    config = DataConfig(limit=3)
    train, bad = read_rows(source, config, split="train")
    assert ([row.line for row in train], reasons(bad).keys()) == ([1, 3, 4], {2})
    assert len(read_rows(source, config, split="test")[0]) == 6


def test_a_parquet_file_is_read_with_its_lists_and_nulls(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(
        [{**GOOD, "answers": ["4", "four"]}, {"prompt": "x?", "answer": None, "answers": None}, {**GOOD}]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows, bad = read_rows(str(tmp_path / "a.parquet"), DataConfig(), split="test")
    assert [(row.line, row.answers) for row in rows] == [(1, ["4", "four"]), (3, ["4"])]
    assert reasons(bad) == {2: "field 'answer' is missing (fields there: prompt)"}


REFINED = pa.schema(
    [
        ("row", pa.int64()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("rewrite", pa.string()),
        ("similarity", pa.float64()),
        ("accepted", pa.bool_()),
        ("refused", pa.string()),
        ("fused", pa.string()),
    ]
)


def write_refined(folder: Path, sizes: tuple[int, ...] = (2, 1)) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    records = [
        {
            "row": number,
            "messages": CHAT[:-1],
            "prompt": CHAT[-2]["content"],
            "answer": f"gold {number}",
            "answers": [f"gold {number}", "other"],
            "rewrite": None if number == 1 else f"rewrite {number}",
            "similarity": None if number == 1 else 0.9,
            "accepted": number != 1,
            "refused": "empty" if number == 1 else None,
            "fused": f"fused {number}",
        }
        for number in range(sum(sizes))
    ]
    start = 0
    for part, size in enumerate(sizes):
        table = pa.Table.from_pylist(records[start : start + size], schema=REFINED)
        pq.write_table(table, folder / f"part-{part:05d}.parquet")
        start += size
    return records


# The names of the file that was refined do not matter any more.
@pytest.mark.parametrize(
    "config", [DataConfig(), DataConfig(columns=ColumnsConfig(prompt="q", answer="a", messages="m"))]
)
def test_a_folder_of_refined_parts_gives_all_rows_with_rewrite_and_fused_answer(
    tmp_path: Path, config: DataConfig
) -> None:
    records = write_refined(tmp_path / "refined")
    rows, bad = read_rows(str(tmp_path / "refined"), config, split="train")
    assert bad == []
    assert [row.index for row in rows] == [0, 1, 2]
    for row, record in zip(rows, records, strict=True):
        for name in ("messages", "prompt", "answer", "answers", "rewrite", "fused"):
            assert getattr(row, name) == record[name]


def test_a_run_folder_is_answered_with_the_folder_that_is_meant(tmp_path: Path) -> None:
    write_refined(tmp_path / "run" / "refined")
    with pytest.raises(DataError, match=r"run folder; its rows are in .*refined"):
        read_rows(str(tmp_path / "run"), DataConfig(), split="train")


def test_a_hugging_face_folder_is_loaded_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", *[GOOD] * 3, {"prompt": "", "answer": "x"})
    write_jsonl(folder / "validation.jsonl", {"prompt": "Who?", "answer": "me"})
    rows, bad = read_rows(str(folder), DataConfig(), split="train")
    assert (len(rows), reasons(bad)) == (3, {4: "prompt is empty"})
    (row,), _ = read_rows(str(folder), DataConfig(test_split="validation"), split="test")
    assert (row.prompt, row.answer) == ("Who?", "me")
    with pytest.raises(DataError, match=r"data\.test=.*data\.test_split \(test\)"):
        read_rows(str(folder), DataConfig(), split="test")


def test_a_data_set_saved_to_disk_is_loaded_too(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([GOOD] * 2)}).save_to_disk(str(tmp_path / "saved"))
    assert len(read_rows(str(tmp_path / "saved"), DataConfig(), split="train")[0]) == 2


def test_an_unreachable_hub_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data\.train=raft-ray/none:main: .*connection to the hub") as caught:
        read_rows("raft-ray/none:main", DataConfig(), split="train")
    assert "\n" not in str(caught.value)


def test_a_domain_is_a_source(tmp_path: Path) -> None:
    train, _ = read_rows("domain:chemistry", DataConfig(limit=10), split="train")
    test, _ = read_rows("domain:chemistry", DataConfig(), split="test")
    assert len(train) == 10
    assert [row.answer for row in train] == [row.answer for row in test[:20:2]]
    assert all(a.prompt != b.prompt for a, b in zip(train, test, strict=False))


# What is refused


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"prompt": "a", ', "not JSON: "),
        (b"[1, 2]", "not a JSON object"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "prompt is not text"),
        (b"[" * 100_000, "not JSON: "),
        ({"prompt": "a"}, "field 'answer' is missing (fields there: prompt)"),
        ({"query": "a", "answer": "b"}, "field 'prompt' is missing (fields there: query, answer)"),
        ({}, "field 'prompt' is missing (fields there: none)"),
        ({"prompt": "a", "answer": ""}, "answer is empty"),
        ({"prompt": " \n", "answer": "b"}, "prompt is empty"),
        ({"prompt": "a", "answer": 4}, "answer is not text (int)"),
        ({"prompt": "a\ud800", "answer": "b"}, "prompt has half of a surrogate pair"),
        ({**GOOD, "answers": "4"}, "field 'answers' is not a list of texts"),
        ({**GOOD, "answers": ["4", ""]}, "item 2 of 'answers' is empty"),
        ({**GOOD, "fused": ""}, "fused is empty"),
        ({"messages": []}, "field 'messages' is not a list of messages"),
        ({"messages": "hello"}, "field 'messages' is not a list of messages"),
        ({"messages": ["hello"]}, "message 1 is not an object"),
        ({"messages": CHAT[:-1]}, "the last of messages is not an assistant message"),
        ({"messages": CHAT[-1:]}, "messages have no user message right before the answer"),
        ({"messages": [CHAT[1], CHAT[2], CHAT[2]]}, "messages have no user message right before the answer"),
        ({"messages": [{"role": "tool", "content": "x"}, *CHAT]}, "message 1 has role 'tool'"),
        ({"messages": [*CHAT[:-1], {"role": "assistant", "content": [{"text": "4"}]}]}, "part 1 of message 5 is of"),
        ({"messages": [*CHAT[:-1], {"role": "assistant", "content": ""}]}, "content of message 5 is empty"),
    ],
)
def test_a_bad_row_is_told_by_line_and_reason_and_the_others_are_read(tmp_path: Path, line: Any, reason: str) -> None:
    rows, bad = read_rows(write_jsonl(tmp_path / "a.jsonl", GOOD, line, GOOD), DataConfig(), split="train")
    assert [(row.index, row.line) for row in rows] == [(0, 1), (1, 3)]
    assert [row.line for row in bad] == [2]
    assert bad[0].reason.startswith(reason)
    assert "\n" not in bad[0].reason


def test_rows_beyond_the_token_limits_are_bad(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "one two three", "answer": "a b"},
        {"prompt": "one two three four", "answer": "a"},
        {"prompt": "one", "answer": "a b c"},
        {"prompt": "one", "answer": "a", "fused": "a b c d"},
    )
    rows, bad = read_rows(source, DataConfig(max_prompt=3, max_answer=2), split="train", count_tokens=words)
    assert [row.line for row in rows] == [1]
    assert reasons(bad) == {
        2: "prompt has 4 tokens, data.max_prompt is 3",
        3: "answer has 3 tokens, data.max_answer is 2",
        4: "fused answer has 4 tokens, data.max_answer is 2",
    }


def test_lengths_are_not_checked_without_a_counter(tmp_path: Path) -> None:
    rows, _ = read_rows(write_jsonl(tmp_path / "a.jsonl", GOOD), DataConfig(max_prompt=1), split="train")
    assert len(rows) == 1


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("missing.parquet", None, "no such file"),
        ("missing.csv", None, "no such file"),
        ("missing/deeper/still", None, "no such file"),
        ("missing*.jsonl", None, "no file matches"),
        ("table.csv", b"prompt,answer\n", "the data set is empty"),
        ("table.xlsx", b"PK", "unknown file type .xlsx; convert it to .jsonl, .json, .csv, .tsv, .parquet or .arrow"),
        ("table.parquet.gz", b"", "unknown file type .parquet.gz; convert it to .jsonl, .json,"),
        ("noending", b"{}", "a file without an ending; convert it to .jsonl, .json,"),
        ("empty.jsonl", b"", "the data set is empty"),
        ("blank.jsonl", b"\n \n", "the data set is empty"),
        ("broken.parquet", b"no parquet", "broken.parquet cannot be read as Parquet"),
        ("useless.jsonl", b"{}\n[]\n", "none of its 2 rows can be used (line 1: field 'prompt' is missing"),
    ],
)
def test_a_source_that_cannot_be_used_names_key_file_and_fix(
    tmp_path: Path, name: str, content: bytes | None, message: str, split: Any
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(str(path), DataConfig(), split=split)
    assert str(caught.value).startswith(f"data.{split}={path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_domain_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"data\.train=domain:chemisty: .*did you mean domain:chemistry\?"):
        read_rows("domain:chemisty", DataConfig(), split="train")
