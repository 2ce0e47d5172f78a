"""The part files of a refined folder: a slice of the training set each, which says what it was made of.

    part-<first row>.parquet   rows, and in the metadata: settings (a fingerprint), digest (of the gold rows),
                               failed (rows that a resumed run tries again), content (digest of the refined rows)

Knows nothing about how rows are refined.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.config import Config
from raft_ray.data import Slice
from raft_ray.errors import DataError
from raft_ray.files import writing
from raft_ray.refine.roles import RefinePrompts
from raft_ray.refine.schema import FAILED, REFINED_SCHEMA, part_files

_SETTINGS, _DIGEST, _FAILED = b"raft_ray.config.settings", b"raft_ray.digest", b"raft_ray.failed"
_CONTENT = b"raft_ray.content"
_PROMPTS = ("rewrite_prompt", "fuse_prompt", "judge_prompt")
_NOT_IN_THE_ROWS = ("actors", "workers", "max_workers", "gap", "models", *_PROMPTS)
"""Keys of `refine` that change no row, or that the fingerprint has in another form."""


def fingerprint(config: Config, prompts: RefinePrompts, identities: Mapping[str, str]) -> str:
    """Of everything but the rows that decides what is in a part file. `identities`: by name, of the models that have a
    role."""
    refine = {name: value for name, value in asdict(config.refine).items() if name not in _NOT_IN_THE_ROWS}
    text = json.dumps([refine, config.run.seed, prompts.hashes(), dict(identities)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def part_name(part: Slice) -> str:
    """File name, which sorts as the rows do."""
    return f"part-{part.first:08d}.parquet"


def write_part(table: pa.Table, part: Slice, settings: str, folder: Path) -> None:
    """Write a slice's refined rows; the file is whole or not there. Raises `ValueError` for other rows."""
    rows = table["row"].to_pylist()
    if rows != list(range(part.first, part.first + part.count)):
        raise ValueError(f"rows {rows[:1]} to {rows[-1:]} came for the slice of {part.count} rows from {part.first} on")
    failed = table["refused"].to_pylist().count(FAILED)
    table = table.select(REFINED_SCHEMA.names).cast(REFINED_SCHEMA)
    metadata = {_SETTINGS: settings, _DIGEST: f"{part.digest:x}", _FAILED: str(failed), _CONTENT: _content(table)}
    unfinished = folder / f"_{part_name(part)}.partial"
    with writing(folder / part_name(part)):
        pq.write_table(table.replace_schema_metadata(metadata), unfinished)
        os.replace(unfinished, folder / part_name(part))


def sort_out(folder: Path, slices: Iterable[Slice], settings: str) -> list[Slice]:
    """Which slices are still to be refined; removes the part files of others or of other settings. Nothing is lost by
    it: their texts are in the cache. Raises `DataError` for a part file of unknown origin, and for one whose rows were
    changed since they were written."""
    wanted = {part_name(part): part for part in slices}
    pending = dict(wanted)
    for file in part_files(folder):
        try:
            # Not `read_table`, which takes a folder named KEY=VALUE on the way for a column.
            table = pq.ParquetFile(file).read()
            content = _content(table)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as Parquet ({error}); delete it, and run again") from error
        found = table.schema.metadata or {}
        if _SETTINGS not in found:
            raise DataError(f"{file}: not made by this stage 1; move it elsewhere, or name a new run.dir")
        if found.get(_CONTENT) != content.encode():
            raise DataError(
                f"{file}: its rows are not those that stage 1 wrote; delete it, and they are made again, or train on a "
                f"copy of the folder with data.train=COPY refine.enabled=false"
            )
        part = wanted.get(file.name)
        expected = {_SETTINGS: settings, _DIGEST: f"{part.digest:x}", _FAILED: "0"} if part else {}
        if part and all(found.get(key) == value.encode() for key, value in expected.items()):
            del pending[file.name]
        else:
            file.unlink()
    return list(pending.values())


def _content(table: pa.Table) -> str:
    """Of a table's rows, whatever their layout in memory or file."""
    digest = hashlib.sha256()
    for row in table.to_pylist():
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
