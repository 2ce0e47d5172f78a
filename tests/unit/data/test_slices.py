"""A source in slices: read again part by part it is the same, in constant memory, and a change is noticed."""

from __future__ import annotations

import json
import random
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.config import DataConfig
from raft_ray.data import BadRow, Row, read_rows
from raft_ray.data.slices import MOST, Slice, digest, read_slice, scan
from raft_ray.errors import DataError

CONFIG = DataConfig()


def write(path: Path, good: list[bool], end: bytes = b"\n") -> str:
    """Row i says `i`; bad ones have no answer. Lines differ in length."""
    lines = []
    for number, fine in enumerate(good):
        record = {"prompt": f"What is {number}? {'ž' * (number % 7)}"}
        if fine:
            record["answer"] = f"It is {number}."
        lines.append(json.dumps(record, ensure_ascii=False).encode() + end)
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    return str(path)


def parts(source: str, slices: list[Slice], config: DataConfig = CONFIG) -> list[Row]:
    """All rows, the slices read in no particular order."""
    mixed = random.Random(0).sample(slices, len(slices))
    return sorted((row for part in mixed for row in read_slice(source, config, "train", part)), key=lambda r: r.index)


@settings(deadline=None, max_examples=60)
@given(
    good=st.lists(st.booleans(), min_size=1, max_size=40).filter(any),
    batch=st.integers(1, 6),
    most=st.sampled_from([2, 4, 1024]),
    limit=st.none() | st.integers(1, 12),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_the_slices_of_a_jsonl_file_are_the_file(
    good: list[bool],
    batch: int,
    most: int,
    limit: int | None,
    end: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    source = write(tmp_path_factory.mktemp("data") / "rows.jsonl", good, end)
    config = DataConfig(limit=limit)
    rows, bad = read_rows(source, config, split="train")
    seen: list[Row] = []
    found = scan(source, config, split="train", batch=batch, most=most, visit=seen.append)
    assert (seen, list(found.bad), found.rows) == (rows, bad, len(rows))
    assert parts(source, found.slices, config) == rows
    # Slices lie side by side, all but the last are of one size, and that is a batch doubled now and then.
    assert all(left.first + left.count == right.first for left, right in pairwise(found.slices))
    assert len(found.slices) <= most
    assert len({part.count for part in found.slices[:-1]}) <= 1
    if len(found.slices) > 1:
        assert (found.slices[0].count // batch).bit_count() == 1
        assert found.slices[0].count % batch == 0


@pytest.mark.parametrize("groups", [1, 4, 100])
def test_parquet_is_read_from_the_row_group_on(tmp_path: Path, groups: int) -> None:
    for part, first in enumerate((0, 11)):
        table = pa.Table.from_pylist(
            [{"prompt": f"q{n}", "answer": None if n % 5 == 3 else f"a{n}"} for n in range(first, first + 11)]
        )
        pq.write_table(table, tmp_path / f"part-{part:05d}.parquet", row_group_size=groups)
    source = str(tmp_path)
    found = scan(source, CONFIG, split="train", batch=3)
    rows, bad = read_rows(source, CONFIG, split="train")
    assert parts(source, found.slices) == rows
    assert list(found.bad) == bad == [BadRow(line, bad[0].reason) for line in (4, 9, 14, 19)]


def test_data_sets_and_domains_are_read_by_index(tmp_path: Path) -> None:
    from datasets import Dataset

    saved = str(tmp_path / "saved")
    Dataset.from_list([{"prompt": f"q{n}", "answer": f"a{n}"} for n in range(10)]).save_to_disk(saved)
    for source in (saved, "domain:chemistry:20"):
        found = scan(source, CONFIG, split="train", batch=4)
        assert parts(source, found.slices) == read_rows(source, CONFIG, split="train")[0]


def test_a_check_makes_rows_bad_once_and_for_all(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [True] * 10)
    found = scan(
        source, CONFIG, split="train", batch=4, check=lambda row: "odd" if int(row.prompt.split()[2][0]) % 2 else None
    )
    assert [row.reason for row in found.bad] == ["odd"] * 5
    # The slices know it without the check.
    assert [row.line for row in parts(source, found.slices)] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("change", ["text", "order", "fewer"])
def test_a_source_that_changes_under_the_run_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "rows.jsonl"
    source = write(path, [True] * 8)
    found = scan(source, CONFIG, split="train", batch=4)
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "text":
        lines[5] = lines[5].replace(b"It is", b"It as")
    elif change == "order":
        lines[4], lines[5] = lines[5], lines[4]
    else:
        del lines[6:]
    path.write_bytes(b"".join(lines))
    assert len(list(read_slice(source, CONFIG, "train", found.slices[0]))) == 4
    with pytest.raises(DataError, match=r"rows 4 to 7 are not what they were"):
        list(read_slice(source, CONFIG, "train", found.slices[1]))


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
    assert digest(Row(0, 9, row.messages, "b", ["b"])) == digest(row)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_source(tmp_path: Path, kind: str) -> None:
    """40,000 rows of 40 MB: what the pass holds at any moment stays far below, and slices do not become more."""
    count, filler = 40_000, "x" * 1000
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        with path.open("w") as file:
            for number in range(count):
                answer = "" if number % 10 == 0 else f'"answer": "{number}", '
                file.write(f'{{{answer}"prompt": "{number} {filler}"}}\n')
    else:
        schema = pa.schema([("prompt", pa.string()), ("answer", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for first in range(0, count, 4_000):
                numbers = range(first, first + 4_000)
                table = {
                    "prompt": [f"{n} {filler}" for n in numbers],
                    "answer": [None if n % 10 == 0 else str(n) for n in numbers],
                }
                writer.write_table(pa.table(table, schema=schema))
    pq.ParquetFile(path).close() if kind == "parquet" else None  # modules are loaded before anything is measured
    tracemalloc.start()
    try:
        found = scan(str(path), CONFIG, split="train", batch=8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.rows, len(found.bad)) == (36_000, 4_000)
    assert MOST // 2 < len(found.slices) <= MOST
    assert peak < 8e6
    last = found.slices[-1]
    assert [row.index for row in read_slice(str(path), CONFIG, "train", last)][-1] == 35_999
