"""Refined rows as a data set that others train on: a folder for `datasets.load_from_disk`, JSONL, or Parquet.

    messages  the chat with the fused answer as its last turn: what TRL, axolotl and LLaMA-Factory train on
    question, answer, answers, rewrite, fused, accepted   what it was made of

There is no column `prompt`: beside one, TRL takes a row as prompt and completion and does not look at `messages`.
`raft_ray.data` reads all three formats back. Rows stream; `datasets` and `pyarrow` are imported inside the functions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from raft_ray.errors import ConfigError, DataError
from raft_ray.refine.schema import part_files

BATCH = 512
"""Rows read at a time."""
_READ = ["messages", "prompt", "answer", "answers", "rewrite", "accepted", "fused"]


def check_export(form: str, out: Path) -> None:
    """Refuse an export that cannot be written, before the work that it would come after. Raises `ConfigError`."""
    if form not in FORMATS:
        raise ConfigError(f"export format {form}: must be one of {', '.join(FORMATS)}")
    if out.exists():
        raise ConfigError(f"{out}: exists already; name a new {'folder' if form == 'hf' else 'file'} for the export")
    # The ending decides how raft-ray, datasets and others read a file.
    if form != "hf" and out.suffix != f".{form}":
        raise ConfigError(f"{out}: an export in the format {form} must be named *.{form}")


def export(refined: Path, form: str, out: Path) -> int:
    """Write the rows of the folder `refined` to `out`, and return how many there are.

    `out` appears when it is complete; an export that was cut off leaves `OUT.partial`, which the next one replaces.

    Args:
        refined: `RUN/refined`.
        form: `hf` (a folder for `datasets.load_from_disk`), `jsonl` or `parquet`.

    Raises `ConfigError` as `check_export` does, `DataError` where there are no refined rows.
    """
    check_export(form, out)
    files = part_files(refined)
    if not files:
        raise DataError(f"{refined}: no refined rows there (part-*.parquet); run `raft-ray refine` first")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    count = FORMATS[form](files, partial)
    os.replace(partial, out)
    return count


def exported_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of refined part files as they are exported, in order. Raises `DataError` naming a broken file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=BATCH, columns=_READ):
                    yield from map(_exported, batch.to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{file}: not a file of refined rows ({type(error).__name__}: {error})") from error


def _exported(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [*row["messages"], {"role": "assistant", "content": row["fused"]}],
        "question": row["prompt"],
        "answer": row["answer"],
        "answers": row["answers"],
        "rewrite": row["rewrite"],
        "fused": row["fused"],
        "accepted": row["accepted"],
    }


def _jsonl(files: list[Path], out: Path) -> int:
    count = 0
    with out.open("w", encoding="utf-8") as stream:
        for row in exported_rows(files):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _parquet(files: list[Path], out: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(out, _schema()) as writer:
        for rows in _batches(exported_rows(files)):
            writer.write_table(pa.Table.from_pylist(rows, schema=_schema()))
            count += len(rows)
    return count


def _hf(files: list[Path], out: Path) -> int:
    from datasets import Dataset, Features, disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        # Its cache, through which rows go to disk one by one, lies beside the export and goes with it.
        data = Dataset.from_generator(
            exported_rows,
            gen_kwargs={"files": files},
            features=Features.from_arrow_schema(_schema()),
            cache_dir=str(out / "cache"),
        )
        data.save_to_disk(str(out / "data"))
        count = len(data)
        del data
    finally:
        if not quiet:
            enable_progress_bars()
    for part in (out / "data").iterdir():
        part.rename(out / part.name)
    (out / "data").rmdir()
    shutil.rmtree(out / "cache")
    return count


FORMATS: dict[str, Callable[[list[Path], Path], int]] = {"hf": _hf, "jsonl": _jsonl, "parquet": _parquet}
"""Each writes part files to a path that it makes, and returns the number of rows."""


def _schema() -> Any:
    import pyarrow as pa

    text, messages = pa.string(), pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.schema(
        [
            ("messages", messages),
            ("question", text),
            ("answer", text),
            ("answers", pa.list_(text)),
            ("rewrite", text),
            ("fused", text),
            ("accepted", pa.bool_()),
        ]
    )


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch
