"""Resident memory while a data set of a million rows is read, checked, kept and read back by index.

    python benchmarks/data_memory.py [--rows 1000000] [--formats jsonl json csv parquet jsonl.gz]

Prints, for each format, the process's resident memory after the first 1,000 rows and its most until the last row was
read back, in MiB. It must grow by less than 10%: exits with 1 where it does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.config import DataConfig
from raft_ray.data import Row, read_table

FORMATS = ("jsonl", "json", "csv", "parquet", "jsonl.gz")
_FIRST = 1_000
_LIMIT = 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    arguments = parser.parse_args()
    grown = []
    print("| format | rows | before, MiB | most, MiB | grown |\n|---|---:|---:|---:|---:|")
    for form in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows.{form}"
            write(path, arguments.rows)
            before, most = measure(path)
        print(f"| {form} | {arguments.rows:,} | {before:.0f} | {most:.0f} | {most / before - 1:.1%} |", flush=True)
        grown.append(most / before)
    return int(max(grown) >= _LIMIT)


def measure(path: Path) -> tuple[float, float]:
    """Resident memory in MiB: after the first rows, and its most."""
    process = psutil.Process()
    seen: list[float] = []

    def look(row: Row) -> None:
        if row.index % _FIRST == _FIRST - 1:
            seen.append(process.memory_info().rss / 2**20)

    def check(row: Row) -> str | None:
        look(row)
        return None

    table = read_table(str(path), DataConfig(), split="train", check=check)
    for row in table:
        look(row)
    table.slices(64)
    seen.append(process.memory_info().rss / 2**20)
    return seen[0], max(seen)


def write(path: Path, count: int) -> None:
    """Rows of some 200 characters."""
    if path.suffix == ".parquet":
        schema = pa.schema([("prompt", pa.string()), ("answer", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for first in range(0, count, 10_000):
                part = [record(number) for number in range(first, min(first + 10_000, count))]
                writer.write_table(pa.Table.from_pylist(part, schema=schema))
        return
    with pa.output_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as file:
        for line in lines(path.suffixes[0], count):
            file.write(line.encode())


def lines(suffix: str, count: int) -> Iterator[str]:
    if suffix == ".csv":
        yield "prompt,answer\n"
    for number in range(count):
        row = record(number)
        if suffix == ".csv":
            yield f'"{row["prompt"]}","{row["answer"]}"\n'
        elif suffix == ".json":
            yield ("," if number else "[") + json.dumps(row)
        else:
            yield json.dumps(row) + "\n"
    if suffix == ".json":
        yield "]"


def record(number: int) -> dict[str, str]:
    return {"prompt": f"What is known of number {number}? " + "x" * 120, "answer": f"It comes after {number - 1}."}


if __name__ == "__main__":
    sys.exit(main())
