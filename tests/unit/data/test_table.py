"""Rows on disk: by index and in slices they are those of the source, in constant memory, and a change is noticed."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.config import DataConfig
from raft_ray.data import BadRow, Row, RowTable, read_rows, read_table
from raft_ray.data.table import MOST, digest
from raft_ray.errors import DataError

CONFIG = DataConfig()


def write(path: Path, good: list[bool]) -> str:
    """Row i says `i`; bad ones have no answer. Lines differ in length."""
    lines = []
    for number, fine in enumerate(good):
        record = {"prompt": f"What is {number}? {'ž' * (number % 7)}"}
        if fine:
            record["answer"] = f"It is {number}."
        lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    path.write_bytes(b"".join(lines))
    return str(path)


def table_of(path: Path, limit: int | None = None) -> RowTable:
    return read_table(str(path), DataConfig(limit=limit), split="train")


@settings(deadline=None, max_examples=60)
@given(
    good=st.lists(st.booleans(), min_size=1, max_size=200).filter(any),
    batch=st.integers(1, 6),
    most=st.sampled_from([2, 4, 1024]),
    limit=st.none() | st.integers(1, 12),
)
def test_a_table_and_its_slices_are_the_file(
    good: list[bool], batch: int, most: int, limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write(tmp_path_factory.mktemp("data") / "rows.jsonl", good)
    rows, bad = read_rows(source, DataConfig(limit=limit), split="train")
    table = read_table(source, DataConfig(limit=limit), split="train")
    assert (list(table), list(table.bad), len(table)) == (rows, bad, len(rows))
    assert all(table[index] == rows[index] for index in random.Random(0).sample(range(len(rows)), len(rows)))
    slices = table.slices(batch, most)
    elsewhere = pickle.loads(pickle.dumps(table))
    assert [row for part in slices for row in elsewhere.rows(part.first, part.count)] == rows
    assert [part.digest for part in slices] == [
        sum(map(digest, rows[part.first : part.first + part.count])) % 2**256 for part in slices
    ]
    # Slices lie side by side, all but the last are of one size, and that is a batch doubled now and then.
    assert all(left.first + left.count == right.first for left, right in pairwise(slices))
    assert len(slices) <= most
    assert len({part.count for part in slices[:-1]}) <= 1
    if len(slices) > 1:
        assert (slices[0].count // batch).bit_count() == 1
        assert slices[0].count % batch == 0


def test_all_that_a_row_says_is_kept(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ž\u2028"}]
    record = {"messages": chat, "answer": "a", "answers": ["b"], "choices": ["a", "b"], "rewrite": "c", "fused": "d"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({**record, "accepted": False}) + "\n")
    expected, _ = read_rows(str(path), CONFIG, split="test")
    table = read_table(str(path), CONFIG, split="test")
    assert list(table) == expected
    assert expected[0].choices == ["a", "b"]
    assert (table.fused, table.rewrites) == (2, 1)


def test_there_are_no_rows_behind_the_last_one(tmp_path: Path) -> None:
    table = table_of(Path(write(tmp_path / "rows.jsonl", [True] * 3)))
    for index in (3, -1):
        with pytest.raises(IndexError):
            table[index]
    assert (list(RowTable()), RowTable().slices(4), len(RowTable().bad)) == ([], [], 0)


def test_refined_parts_are_numbered_through(tmp_path: Path) -> None:
    for part, first in enumerate((0, 11)):
        rows = [{"prompt": f"q{n}", "answer": None if n % 5 == 3 else f"a{n}"} for n in range(first, first + 11)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"part-{part:05d}.parquet", row_group_size=4)
    table = table_of(tmp_path)
    assert [row.line for row in table] == [line for line in range(1, 23) if line % 5 != 4]
    assert list(table.bad) == [
        BadRow(line, "field 'answer' is missing (fields there: prompt)") for line in (4, 9, 14, 19)
    ]


def test_data_sets_and_domains_are_read_into_tables(tmp_path: Path) -> None:
    from datasets import Dataset

    saved = tmp_path / "saved"
    Dataset.from_list([{"prompt": f"q{n}", "answer": f"a{n}"} for n in range(10)]).save_to_disk(str(saved))
    for source in (str(saved), "domain:chemistry:20"):
        table = read_table(source, CONFIG, split="train")
        assert list(table) == read_rows(source, CONFIG, split="train")[0]


def test_a_check_makes_rows_bad_once_and_for_all(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [True] * 10)
    table = read_table(
        source, CONFIG, split="train", check=lambda row: "odd" if int(row.prompt.split()[2][0]) % 2 else None
    )
    assert [row.reason for row in table.bad] == ["odd"] * 5
    assert [row.line for row in table] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("change", ["text", "order", "fewer"])
def test_a_source_that_changes_leaves_the_table_and_has_another_digest(tmp_path: Path, change: str) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [True] * 8)
    table = table_of(path)
    before, rows = table.slices(4), list(table)
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "text":
        lines[5] = lines[5].replace(b"It is", b"It as")
    elif change == "order":
        lines[4], lines[5] = lines[5], lines[4]
    else:
        del lines[6:]
    path.write_bytes(b"".join(lines))
    assert list(table) == rows
    after = table_of(path).slices(4)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_every_field_of_a_row_counts_in_its_digest() -> None:
    row = Row(index=0, line=1, messages=[{"role": "user", "content": "a"}], answer="b", answers=["b"])
    others = [
        Row(1, 1, row.messages, "b", ["b"]),
        Row(0, 1, [{"role": "user", "content": "x"}], "b", ["b"]),
        Row(0, 1, row.messages, "x", ["b"]),
        Row(0, 1, row.messages, "b", ["b", "x"]),
        Row(0, 1, row.messages, "b", ["b"], rewrite="x"),
        Row(0, 1, row.messages, "b", ["b"], fused="x"),
    ]
    assert len({digest(row), *map(digest, others)}) == len(others) + 1
    assert digest(Row(0, 9, row.messages, "b", ["b"], file="elsewhere")) == digest(row)
    # Refined folders keep it: it must be the same next year.
    assert f"{digest(row):x}"[:16] == "906b2b62f0b61f43"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_memory_does_not_grow_with_the_source(tmp_path: Path, kind: str) -> None:
    """20,000 rows of 20 MB: what the pass holds at any moment stays far below, and slices do not become more."""
    count, filler = 20_000, "x" * 1000
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        schema = pa.schema([("prompt", pa.string()), ("answer", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for first in range(0, count, 2_000):
                numbers = range(first, first + 2_000)
                table = {
                    "prompt": [f"{n} {filler}" for n in numbers],
                    "answer": [None if n % 10 == 0 else str(n) for n in numbers],
                }
                writer.write_table(pa.table(table, schema=schema))
    else:
        marks = {"jsonl": ("", "\n", ""), "json": ("[", ",", "]"), "csv": ("prompt,answer", "\n", "")}
        before, between, behind = marks[kind]
        with path.open("w") as file:
            file.write(before)
            for number in range(count):
                prompt, answer = f"{number} {filler}", "" if number % 10 == 0 else str(number)
                row = f"{prompt},{answer}" if kind == "csv" else json.dumps({"prompt": prompt, "answer": answer})
                file.write(between * (number > 0 or kind == "csv") + row)
            file.write(behind)
    pq.ParquetFile(path).close() if kind == "parquet" else None  # modules are loaded before anything is measured
    tracemalloc.start()
    try:
        found = table_of(path)
        slices = found.slices(8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(found), len(found.bad)) == (18_000, 2_000)
    assert MOST // 2 < len(slices) <= MOST
    assert peak < 8e6
    last = slices[-1]
    assert [row.index for row in found.rows(last.first, last.count)][-1] == 17_999


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 2 rows can be used \(line 1: field 'answer' is missing"):
        table_of(Path(write(tmp_path / "rows.jsonl", [False] * 2)))


def test_the_file_of_a_process_that_was_killed_goes_with_the_next_table_and_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = write(tmp_path / "rows.jsonl", [True] * 3), tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    killed = f"""
import os, signal
from raft_ray.config import DataConfig
from raft_ray.data import read_table
table = read_table({source!r}, DataConfig(), split="train")
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(folder)}
    assert subprocess.run([sys.executable, "-c", killed], env=environment, timeout=300).returncode == -signal.SIGKILL
    (left,) = folder.iterdir()
    os.utime(left, (0, 0))
    first = table_of(Path(source))
    assert not left.exists()
    second = table_of(Path(source))
    assert list(first) == list(second)
    assert len(list(folder.iterdir())) == 2
    del first, second
    assert list(folder.iterdir()) == []
