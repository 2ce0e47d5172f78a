"""A refined row: its columns, how Parquet stores them, and the counts over a set of them.

Knows nothing about how rows are refined. `docs/design.md` ("A refined row") says what each column means.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.errors import DataError

OFF = "off"
"""`refused` of rows that were never refined (`refine.enabled=false`)."""

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SCORES = pa.list_(pa.struct([("judge", pa.string()), ("score", pa.float64())]))

SOURCE_SCHEMA = pa.schema(
    [("row", pa.int64()), ("messages", _MESSAGES), ("answer", pa.string()), ("answers", pa.list_(pa.string()))]
)
"""What stage 1 reads of a row."""

REFINED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("messages", _MESSAGES),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("rewrite", pa.string()),
        ("similarity", pa.float64()),
        ("accepted", pa.bool_()),
        ("refused", pa.string()),
        (
            "candidates",
            pa.list_(
                pa.struct(
                    [
                        ("text", pa.string()),
                        ("source", pa.string()),
                        ("round", pa.int32()),
                        ("scores", _SCORES),
                        ("score", pa.float64()),
                    ]
                )
            ),
        ),
        ("rounds", pa.int32()),
        ("fused", pa.string()),
    ]
)


Message = dict[str, str]
"""`role` and `content`."""


class Score(TypedDict):
    judge: str
    score: float


class Candidate(TypedDict):
    """A candidate of the fusion. One that a guard refused has no `scores` and `score` 0, and is never chosen."""

    text: str
    source: str
    """`fuse`, `rewrite` or `gold`."""
    round: int
    """0 for those there from the start, 1 and up for fusion's."""
    scores: list[Score]
    score: float
    """Mean of `scores`."""


class RefinedRow(TypedDict):
    row: int
    messages: list[Message]
    prompt: str
    answer: str
    answers: list[str]
    rewrite: str | None
    similarity: float | None
    accepted: bool
    refused: str | None
    candidates: list[Candidate]
    rounds: int
    fused: str


def refined_table(rows: list[RefinedRow]) -> pa.Table:
    """The rows as a table of `REFINED_SCHEMA`."""
    return pa.Table.from_pylist(rows, schema=REFINED_SCHEMA)


def part_files(folder: Path) -> list[Path]:
    """The Parquet files of a refined folder."""
    return sorted(folder.glob("part-*.parquet"))


def read_refined(folder: Path) -> list[RefinedRow]:
    """All rows of a refined folder, ordered by `row`. Raises `DataError` where there are none, or other files."""
    files = part_files(folder)
    if not files:
        raise DataError(f"{folder}: no refined rows there (part-*.parquet); run `raft-ray refine` first")
    tables = []
    for file in files:
        table = pq.read_table(file)
        if missing := [name for name in REFINED_SCHEMA.names if name not in table.column_names]:
            raise DataError(f"{file}: not a file of refined rows, it lacks the columns {', '.join(missing)}")
        tables.append(table.select(REFINED_SCHEMA.names).cast(REFINED_SCHEMA))
    return pa.concat_tables(tables).sort_by("row").to_pylist()


def summarise(rows: list[RefinedRow], seconds: float) -> dict[str, Any]:
    """Counts over refined rows: how many were accepted, why others were not, who wrote what training uses.

    `seconds` is what stage 1 took. Means are null over no rows.
    """
    accepted = [row for row in rows if row["accepted"]]
    similarities = [row["similarity"] for row in rows if row["similarity"] is not None]
    return {
        "rows": len(rows),
        "accepted": len(accepted),
        "acceptance": _mean([float(row["accepted"]) for row in rows]),
        "refused": dict(Counter(row["refused"] for row in rows if row["refused"] is not None).most_common()),
        "sources": dict(Counter(_source(row) for row in rows).most_common()),
        "similarity_mean": _mean(similarities),
        "score_mean": _mean([max(c["score"] for c in row["candidates"]) for row in accepted if row["candidates"]]),
        "rounds_mean": _mean([float(row["rounds"]) for row in accepted]),
        "answer_words_mean": _mean([float(len(row["answer"].split())) for row in rows]),
        "fused_words_mean": _mean([float(len(row["fused"].split())) for row in rows]),
        "seconds": round(seconds, 3),
    }


SUMMARY = "_summary.json"
"""In the refined folder. The underscore hides it from what reads all of a folder as Parquet."""


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_summary(folder: Path) -> dict[str, Any]:
    """What `write_summary` wrote. Raises `DataError` if stage 1 did not finish there."""
    try:
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no {SUMMARY} there, stage 1 did not finish; run it again ({error})") from error


def _source(row: RefinedRow) -> str:
    """Who wrote the text that training uses."""
    if not row["accepted"]:
        return "gold"
    chosen = (candidate["source"] for candidate in row["candidates"] if candidate["text"] == row["fused"])
    return next(chosen, "rewrite")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
