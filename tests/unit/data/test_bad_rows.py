"""What happens with bad rows: the run stops, or goes on without them and lists them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raft_ray.config import DataConfig, OnBadRow
from raft_ray.data import BadRow, Row, check_rows, write_bad_rows
from raft_ray.errors import DataError

ROW = Row(index=0, line=1, messages=[{"role": "user", "content": "x"}], answer="y", answers=["y"])


def test_bad_rows_stop_the_run_with_the_first_of_them_and_the_fix() -> None:
    bad = [BadRow(line, "answer is empty", "line") for line in range(2, 9)]
    with pytest.raises(DataError) as caught:
        check_rows([ROW], bad, DataConfig(), "my.jsonl")
    message = str(caught.value)
    assert message.startswith("my.jsonl: 7 of 8 rows cannot be used (line 2: answer is empty; ")
    assert "line 6" in message
    assert "line 7" not in message
    assert message.endswith("data.on_bad_row=skip")
    assert "\n" not in message


def test_good_rows_alone_pass() -> None:
    check_rows([ROW], [], DataConfig(), "my.jsonl")


def test_skipping_goes_on_without_the_bad_rows_but_not_without_any() -> None:
    config = DataConfig(on_bad_row=OnBadRow.skip)
    bad = [BadRow(3, "not UTF-8")]
    check_rows([ROW], bad, config, "my.parquet")
    with pytest.raises(DataError, match=r"my\.parquet: no row is left .*row 3: not UTF-8"):
        check_rows([], bad, config, "my.parquet")


def test_bad_rows_are_written_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "bad_rows.jsonl"
    write_bad_rows([BadRow(9, "old")], path)
    write_bad_rows([BadRow(3, "not UTF-8"), BadRow(7, "ž is missing")], path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"line": 3, "reason": "not UTF-8"},
        {"line": 7, "reason": "ž is missing"},
    ]
