"""Refined rows as a data set that others train on: a folder for `datasets.load_from_disk`, JSONL, or Parquet.

    messages  the chat with the fused answer as its last turn: what TRL, axolotl and LLaMA-Factory train on
    question, answer, answers, rewrite, fused, accepted   what it was made of

There is no column `prompt`: beside one, TRL takes a row as prompt and completion and does not look at `messages`.
`raft_ray.data` reads all three formats back. Rows stream; `datasets` is imported inside the functions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.errors import ConfigError, DataError
from raft_ray.refine.schema import REFINED_SCHEMA, part_files

BATCH = 512
"""Rows read at a time."""
_COLUMNS = {"messages": "messages", "question": "prompt"} | {
    name: name for name in ("answer", "answers", "rewrite", "fused", "accepted")
}
"""Of an export, and the refined rows' own for each."""


def _write_lines(data: Any, out: str) -> None:
    with open(out, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in data)


FORMATS: dict[str, Callable[[Any, str], object]] = {
    "hf": lambda data, out: data.save_to_disk(out),
    "jsonl": _write_lines,
    "parquet": lambda data, out: data.to_parquet(out),
}
"""How a `datasets.Dataset` writes each."""


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
    """Write the rows of the folder `refined` to `out`, and return how many there are. `out` appears when it is
    complete; an export that was cut off leaves `OUT.partial`, which the next one replaces. `refined`: `RUN/refined`.
    `form`: `hf` (a folder for `datasets.load_from_disk`), `jsonl` or `parquet`. Raises `ConfigError` as `check_export`
    does, `DataError` where there are no refined rows."""
    from datasets import Dataset, Features, disable_progress_bars, enable_progress_bars
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils import are_progress_bars_disabled

    check_export(form, out)
    files = part_files(refined)
    if not files:
        raise DataError(f"{refined}: no refined rows there (part-*.parquet); run `raft-ray refine` first")
    partial = out.with_name(f"{out.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    partial.mkdir(parents=True)
    schema = pa.schema([(name, REFINED_SCHEMA.field(column).type) for name, column in _COLUMNS.items()])
    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        # Its cache, through which rows go to disk one by one, lies beside the export and goes with it.
        data = Dataset.from_generator(
            exported_rows,
            gen_kwargs={"files": files},
            features=Features.from_arrow_schema(schema),
            cache_dir=str(partial / "cache"),
        )
        FORMATS[form](data, str(partial / "data"))
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    finally:
        if not quiet:
            enable_progress_bars()
    os.replace(partial / "data", out)
    shutil.rmtree(partial)
    return len(data)


def exported_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of refined part files as they are exported, in order. Raises `DataError` naming a broken file."""
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=BATCH, columns=list(_COLUMNS.values())):
                    yield from map(_exported, batch.to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{file}: not a file of refined rows ({type(error).__name__}: {error})") from error


def _exported(row: dict[str, Any]) -> dict[str, Any]:
    chat = [*row["messages"], {"role": "assistant", "content": row["fused"]}]
    return {name: row[column] for name, column in _COLUMNS.items()} | {"messages": chat}
