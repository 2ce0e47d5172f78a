"""Records of every kind of source, from any place in it on: JSONL, Parquet, Hugging Face data sets, domains.

A place is found again without reading what stands before it (JSONL: by byte offset; Parquet: by row group; data sets:
by index), so that a large source can be read in parts, on other processes, at the same time. Nothing is held but the
record at hand. Knows nothing about what a record must contain; `raft_ray.data` makes rows of them.

`datasets` and `pyarrow` are imported inside the functions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raft_ray.config import DataConfig
from raft_ray.errors import DataError
from raft_ray.files import home

Split = Literal["train", "test"]

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<configuration>[\w.-]+))?")
_DIGITS = 4300
_FILE_ENDINGS = {".jsonl", ".parquet", ".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".xlsx", ".arrow", ".yaml"}


@dataclass(frozen=True)
class Place:
    """Where a record stands."""

    line: int = 1
    """1-based line (JSONL) or row number in the source."""
    offset: int = 0
    """Of its first byte in a JSONL file; 0 elsewhere."""


START = Place()


class Unusable(Exception):
    """Why a record is no row; `raft_ray.data` turns it into a `BadRow`."""


Records = Iterator[tuple[Place, "dict[str, Any] | Unusable"]]


def records(source: str, config: DataConfig, split: Split, start: Place = START) -> Records:
    """The records of `source` from `start` on, each with its place; one that could not be read is an `Unusable`.

    Raises `DataError`, naming the key, the source and the fix, when it is missing, of an unknown kind or broken.
    """
    where = f"data.{split}={source}"
    if source.startswith("domain:"):
        from raft_ray.data.domains import load

        return _indexed(load(source.removeprefix("domain:"), split), start)
    path = home(source)
    if path.is_dir():
        parts = sorted(path.glob("part-*.parquet"))
        if parts:
            return parquet(parts, where, start)
        if any((path / "refined").glob("part-*.parquet")):
            raise DataError(f"{where}: this is a run folder; its rows are in {path / 'refined'}")
        return _indexed(_dataset(str(path), None, config, split, where), start)
    if path.suffix == ".jsonl" and path.is_file():
        return jsonl(path, where, start)
    if path.suffix == ".parquet" and path.is_file():
        return parquet([path], where, start)
    if path.exists():
        ending = f"unknown file type {path.suffix}" if path.suffix else "a file without an ending"
        raise DataError(f"{where}: {ending}; convert it to .jsonl or .parquet")
    hub = _HUB_NAME.fullmatch(source)
    if path.suffix in _FILE_ENDINGS or hub is None or source.startswith(("./", "../")):
        raise DataError(
            f"{where}: no such file; name a .jsonl or .parquet file, a Hugging Face data set, or domain:NAME"
        )
    return _indexed(_dataset(hub["name"], hub["configuration"], config, split, where), start)


def absolute(source: str) -> str:
    """The same source for a process with another current folder."""
    path = home(source)
    return str(path.absolute()) if path.exists() else source


def jsonl(path: Path, where: str, start: Place = START) -> Records:
    """The records of a JSONL file. Reads bytes, so that a line which is not UTF-8 costs only itself. Blank lines are
    passed over. Raises `DataError`, beginning with `where`, for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start.offset)
            offset = start.offset
            for number, line in enumerate(file, start=start.line):
                place = Place(number, offset)
                offset += len(line)
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if line.lstrip().startswith(b"["):
                        raise DataError(
                            f"{where}: begins with a JSON array; what is read is an object on each line (JSONL): "
                            "convert it"
                        )
                if line.strip():
                    yield place, _parse(line)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}; make the file readable") from error


def _parse(line: bytes) -> dict[str, Any] | Unusable:
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_fields, parse_int=_integer)
    except Unusable as error:
        return error
    except UnicodeDecodeError:
        return Unusable("not UTF-8")
    except json.JSONDecodeError as error:
        if b"\r" in line.rstrip():
            return Unusable("not JSON: a carriage return inside the line; end lines with a newline")
        hint = "; a comma stands behind the object" if line.rstrip().endswith(b",") else ""
        return Unusable(f"not JSON: {error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:  # nestings beyond Python's limits
        return Unusable(f"not JSON: {first_line(error)}")
    return record if isinstance(record, dict) else Unusable("not a JSON object")


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last of two fields with the same name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise Unusable(f"field '{next(name for name in names if names.count(name) > 1)}' stands twice in an object")
    return fields


def _integer(digits: str) -> float:
    """A whole number; one beyond Python's limit for text, which no field that is read may hold, as infinity."""
    return int(digits) if len(digits) < _DIGITS else math.inf


def parquet(parts: list[Path], where: str, start: Place = START) -> Records:
    """The records of Parquet files, numbered through all parts in their order. Row groups before `start` are not read.
    Raises `DataError`, beginning with `where`, for a file that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    for part in parts:
        try:
            # Without the buffering of all columns of a row group, batches are all that is in memory.
            with pq.ParquetFile(part, pre_buffer=False) as file:
                groups: list[int] = []
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if not groups and before + rows < start.line:
                        before += rows
                    else:
                        groups.append(group)
                number = before
                for batch in file.iter_batches(batch_size=1024, row_groups=groups):
                    passed_over = max(0, min(start.line - 1 - number, batch.num_rows))
                    number += passed_over
                    for record in batch.slice(passed_over).to_pylist():
                        number += 1
                        yield Place(number), record
                before = number
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{where}: {part.name} cannot be read as Parquet ({first_line(error)}); write it anew"
            ) from error


def _indexed(rows: Any, start: Place) -> Records:
    """Of a list or `datasets.Dataset`."""
    for index in range(start.line - 1, len(rows)):
        yield Place(index + 1), rows[index]


def _dataset(name: str, configuration: str | None, config: DataConfig, split: Split, where: str) -> Any:
    """A `datasets.Dataset`, which lies on disk and not in memory."""
    from datasets import load_dataset, load_from_disk

    wanted = config.train_split if split == "train" else config.test_split
    try:
        if any((Path(name) / saved).exists() for saved in ("dataset_dict.json", "state.json")):
            loaded = load_from_disk(name)
            return loaded[wanted] if isinstance(loaded, dict) else loaded
        return load_dataset(name, configuration, split=wanted)
    # What the hub's client raises depends on its version and on httpx; all of it means that there is no data.
    except Exception as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        if Path(name).is_dir():
            fix = f"check the folder, and data.{split}_split ({wanted})"
        else:
            fix = (
                f"there is no such file, and as a Hugging Face data set it could not be loaded; check the name, "
                f"data.{split}_split ({wanted}) and the connection to the hub, or name a .jsonl or .parquet file"
            )
        raise DataError(f"{where}: {fix} ({cause})") from error


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
