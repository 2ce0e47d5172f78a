"""A source cut into slices: one pass checks and counts its rows, and notes where each slice stands.

A slice is `batch` rows, or twice as many, or four times, ..: what is noted grows no further once there are `MOST`
slices, so neither memory nor the number of files that are made of them grows with the source. A slice is read again
without reading the rest, on any process that sees the source, and refused if its rows are not what they were.

    records ── check ──> good rows ──> slice 0 | slice 1 | .. (first row, count, place, bad lines, digest)
                  └────> bad rows
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raft_ray.config import DataConfig
from raft_ray.data import BadRow, BadRows, Check, Row, check_any, iterate
from raft_ray.data.sources import Place, Split
from raft_ray.errors import DataError

MOST = 1024
"""Slices of a source."""
_DIGESTS = 2**256


@dataclass(frozen=True)
class Slice:
    """Good rows that stand one after the other."""

    first: int
    """Index of its first row."""
    count: int
    start: Place
    """Of its first row."""
    bad: tuple[int, ...] = ()
    """Lines inside it that are no rows."""
    digest: int = 0
    """Of its rows; the sum of the rows' own digests, so that those of neighbours add up."""

    def __add__(self, after: Slice) -> Slice:
        """This slice and the one right after it."""
        digest = (self.digest + after.digest) % _DIGESTS
        return Slice(self.first, self.count + after.count, self.start, self.bad + after.bad, digest)


@dataclass
class Scan:
    """What one pass over a source found."""

    source: str
    config: DataConfig
    split: Split
    slices: list[Slice] = field(default_factory=list)
    rows: int = 0
    """Good ones."""
    fused: int = 0
    """Rows that bring a fused answer along."""
    rewrites: int = 0
    """Rows that bring an accepted rewrite along."""
    bad: BadRows = field(default_factory=BadRows)

    def __len__(self) -> int:
        return self.rows


def scan(
    source: str,
    config: DataConfig,
    *,
    split: Split,
    batch: int,
    check: Check | None = None,
    visit: Callable[[Row], None] | None = None,
    most: int = MOST,
) -> Scan:
    """One pass over `source`.

    Args:
        batch: rows of a slice, or a half, a quarter .. of them.
        check: what a good row must pass besides.
        visit: called with every good row.
        most: slices at most.

    Raises `DataError` when the source is missing, of an unknown kind, broken, empty, or has no usable row.
    """
    found = Scan(source, config, split)
    size = batch
    for place, row in iterate(source, config, split=split, check=check):
        if isinstance(row, BadRow):
            found.bad.append(row)
            if found.slices:
                found.slices[-1] += Slice(row.line, 0, place, (row.line,))
            continue
        one = Slice(row.index, 1, place, (), digest(row))
        if found.slices and found.slices[-1].count < size:
            found.slices[-1] += one
        elif len(found.slices) == most:
            pairs = zip(found.slices[::2], found.slices[1::2], strict=True)
            found.slices = [*(left + right for left, right in pairs), one]
            size *= 2
        else:
            found.slices.append(one)
        found.rows += 1
        found.fused += row.fused is not None
        found.rewrites += row.rewrite is not None
        if visit:
            visit(row)
    check_any(found, found.bad, source, split)
    return found


def read_slice(source: str, config: DataConfig, split: Split, part: Slice) -> Iterator[Row]:
    """The rows of a slice, one at a time. Raises `DataError` if they are not those of the scan."""
    read, total = 0, 0
    rows = iterate(source, config, split=split, start=part.start, index=part.first, known_bad=frozenset(part.bad))
    while read < part.count:
        _, row = next(rows, (None, None))
        if not isinstance(row, Row):
            break
        read += 1
        total += digest(row)
        yield row
    if read != part.count or total % _DIGESTS != part.digest:
        raise DataError(
            f"data.{split}={source}: rows {part.first} to {part.first + part.count - 1} are not what they were when "
            "the run started; leave the file as it is, and run again with --resume"
        )


def digest(row: Row) -> int:
    """Of all that a row says, and of its index."""
    text = json.dumps([row.index, row.messages, row.answer, row.answers, row.rewrite, row.fused], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest())
