"""A refined row: its columns, how Parquet stores them, and the summary beside them.

Knows nothing about how rows are refined. `docs/design.md` ("A refined row") says what each column means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from raft_ray.errors import DataError
from raft_ray.files import write_whole
from raft_ray.refine.generation import Message

OFF = "off"
"""`refused` of rows that were never refined (`refine.enabled=false`)."""
FAILED = "failed"
"""`refused` of rows whose rewriter gave no text although all retries were used up; a resumed run tries them again."""

_STRINGS = pa.list_(pa.string())
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_SCORES = pa.list_(pa.struct({"judge": pa.string(), "score": pa.float64()}))
_CANDIDATES = pa.list_(
    pa.struct(
        {"text": pa.string(), "source": pa.string(), "round": pa.int32(), "scores": _SCORES, "score": pa.float64()}
    )
)

SOURCE_SCHEMA = pa.schema({"row": pa.int64(), "messages": _MESSAGES, "answer": pa.string(), "answers": _STRINGS})
"""What stage 1 reads of a row."""

REFINED_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "messages": _MESSAGES,
        "prompt": pa.string(),
        "answer": pa.string(),
        "answers": _STRINGS,
        "rewrite": pa.string(),
        "similarity": pa.float64(),
        "accepted": pa.bool_(),
        "refused": pa.string(),
        "candidates": _CANDIDATES,
        "rounds": pa.int32(),
        "fused": pa.string(),
    }
)


class Score(TypedDict):
    judge: str
    score: float | None
    """None where the judge failed or answered nonsense: it is left out of the mean."""


class Candidate(TypedDict):
    """A candidate of the fusion. One that a guard refused has no `scores`; it, and one that no judge could score, has
    `score` 0 and is never chosen."""

    text: str
    source: str
    """`fuse`, `rewrite` or `gold`."""
    round: int
    """0 for those there from the start, 1 and up for fusion's."""
    scores: list[Score]
    score: float
    """Mean of `scores`, those that are None left out."""


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


SUMMARY = "_summary.json"
"""In the refined folder. The underscore hides it from what reads all of a folder as Parquet."""


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """What `write_summary` wrote. Raises `DataError` if stage 1 did not finish there."""
    try:
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no {SUMMARY} there, stage 1 did not finish; run it again ({error})") from error
