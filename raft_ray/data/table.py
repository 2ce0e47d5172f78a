"""The rows of a source on disk, by index: checked once, read by whoever needs some of them, on this node.

Good rows go into an Arrow file as they are checked, so memory does not grow with them, and what is trained on later is
what was checked, whatever happens to the source. A slice of them says by its digest whether they are the same as
another time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from raft_ray.config import DataConfig
from raft_ray.data.rows import BadRow, BadRows, Check, Row, check_any, iterate
from raft_ray.data.sources import Source, Split
from raft_ray.files import writing

MOST = 1024
"""Slices of a source."""
_BATCH = 64
"""Rows that are read from disk together."""
_DIGESTS = 2**256
_PREFIX = "raft-ray-rows-"
_NEW = 60.0
"""Seconds for which a file without a lock may be one that was just made."""
_TEXTS = pa.list_(pa.large_string())
_SCHEMA = pa.schema(
    {
        "line": pa.int64(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.large_string()})),
        "answer": pa.large_string(),
        "answers": _TEXTS,
        "choices": _TEXTS,
        "rewrite": pa.large_string(),
        "fused": pa.large_string(),
        "file": pa.string(),
    }
)


@dataclass(frozen=True)
class Slice:
    """Good rows that stand one after the other."""

    first: int
    """Index of its first row."""
    count: int
    digest: int = 0
    """Of its rows: the sum of their own digests."""


class RowTable:
    """Good rows by index, and the bad ones that stood among them. Pickled, it is the path of its file: another process
    of this node reads the same rows, as long as the first one keeps the table."""

    def __init__(self, path: str = "", count: int = 0, kept: object = None) -> None:
        self._path, self._count = path, count
        self._kept = kept
        """The temporary file, which goes when nothing holds it any more."""
        self.bad = BadRows()
        self.fused = 0
        """Rows that bring a fused answer along."""
        self.rewrites = 0
        """Rows that bring an accepted rewrite along."""

    def __reduce__(self) -> tuple[Any, ...]:
        return RowTable, (self._path, self._count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return next(self.rows(index, 1))

    def __iter__(self) -> Iterator[Row]:
        return self.rows(0, self._count)

    def rows(self, first: int, count: int) -> Iterator[Row]:
        """`count` rows from index `first` on. Raises `IndexError` where there are fewer."""
        if not 0 <= first <= first + count <= self._count:
            raise IndexError(f"rows {first} to {first + count - 1} of {self._count}")
        place = first
        while place < first + count:
            batch = self._file.get_batch(place // _BATCH).slice(place % _BATCH, first + count - place)
            for record in batch.to_pylist():
                yield Row(index=place, **record)
                place += 1

    def slices(self, batch: int, most: int = MOST) -> list[Slice]:
        """All rows in slices of `batch`, or twice as many, or four times, .., so that there are `most` at most."""
        size = batch
        while self._count > size * most:
            size *= 2
        return [self._slice(first, min(size, self._count - first)) for first in range(0, self._count, size)]

    def _slice(self, first: int, count: int) -> Slice:
        return Slice(first, count, sum(map(digest, self.rows(first, count))) % _DIGESTS)

    def taking(self, found: Iterable[Row | BadRow]) -> Iterator[Row]:
        """The good ones of `found`, counted; the bad ones stay here."""
        for row in found:
            if isinstance(row, BadRow):
                self.bad.append(row)
                continue
            self._count += 1
            self.fused += row.fused is not None
            self.rewrites += row.rewrite is not None
            yield row

    def held_out(self, indices: Collection[int]) -> tuple[RowTable, list[Row]]:
        """A table of the other rows, numbered anew without a gap, and the rows at `indices`."""
        rest, rows = _new_table(), []
        rest.bad = self.bad

        def others() -> Iterator[Row]:
            for row in self:
                if row.index in indices:
                    rows.append(row)
                else:
                    yield replace(row, index=row.index - len(rows))

        rest.write(others())
        return rest, rows

    def write(self, found: Iterable[Row | BadRow]) -> None:
        """Fill the table's file."""
        taken = self.taking(found)
        with writing(self._path), pa.ipc.new_file(self._path, _SCHEMA) as file:
            while batch := list(islice(taken, _BATCH)):
                file.write(pa.RecordBatch.from_pylist([vars(row) for row in batch], schema=_SCHEMA))

    @cached_property
    def _file(self) -> pa.RecordBatchFileReader:
        # Not mapped into memory: pages that were read would count as this process's own.
        return pa.ipc.open_file(pa.OSFile(self._path))


def read_table(source: Source, config: DataConfig, *, split: Split, check: Check | None = None) -> RowTable:
    """The rows of `source`, read and checked in one pass. `check`: what a good row must pass besides. Raises
    `DataError` when the source is missing, of an unknown kind, broken, empty, or has no usable row."""
    table = _new_table()
    table.write(iterate(source, config, split=split, check=check))
    check_any(table, table.bad, source, split)
    return table


def _new_table() -> RowTable:
    """An empty one, whose file goes with it; that of a process that was killed goes when another makes a table."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # As long as its process lives it is locked, but for the moment after it is made.
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - left.stat().st_mtime > _NEW:
                left.unlink()
    kept = tempfile.NamedTemporaryFile(prefix=_PREFIX, suffix=".arrow")  # noqa: SIM115
    fcntl.flock(kept, fcntl.LOCK_EX)
    return RowTable(kept.name, kept=kept)


def digest(row: Row) -> int:
    """Of all that a row says, and of its index."""
    text = json.dumps([row.index, row.messages, row.answer, row.answers, row.rewrite, row.fused], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest())
