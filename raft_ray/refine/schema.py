"""A refined row: its columns, how Parquet stores them, and the counts over a set of them.

Knows nothing about how rows are refined. `docs/design.md` ("A refined row") says what each column means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.errors import DataError
from raft_ray.refine.generation import Message

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


class Score(TypedDict):
    judge: str
    score: float | None
    """None where the judge failed or answered nonsense; it is left out of the mean."""


class Candidate(TypedDict):
    """A candidate of the fusion. One that a guard refused has no `scores` and `score` 0, and is never chosen."""

    text: str
    source: str
    """`fuse`, `rewrite` or `gold`."""
    round: int
    """0 for those there from the start, 1 and up for fusion's."""
    scores: list[Score]
    score: float
    """Mean of the `scores` that there are."""


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
    return sorted(iterate_refined(folder), key=lambda row: row["row"])


def iterate_refined(folder: Path) -> Iterator[RefinedRow]:
    """The rows of a refined folder, file by file, in the order of the files. Raises as `read_refined`."""
    files = part_files(folder)
    if not files:
        raise DataError(f"{folder}: no refined rows there (part-*.parquet); run `raft-ray refine` first")
    for file in files:
        table = pq.read_table(file)
        if missing := [name for name in REFINED_SCHEMA.names if name not in table.column_names]:
            raise DataError(f"{file}: not a file of refined rows, it lacks the columns {', '.join(missing)}")
        yield from table.select(REFINED_SCHEMA.names).cast(REFINED_SCHEMA).to_pylist()


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


def summarise(rows: Iterable[RefinedRow], seconds: float) -> dict[str, Any]:
    """Counts over refined rows, which are read once: how many were accepted, why others were not, who wrote what
    training uses, how often each judge had no score.

    `seconds` is what stage 1 took. Means are null over no rows.
    """
    count = 0
    refused: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    accepted, similarity, score, rounds, answer, fused = (_Mean() for _ in range(6))
    for row in rows:
        count += 1
        sources[_source(row)] += 1
        accepted.add(float(row["accepted"]))
        answer.add(len(row["answer"].split()))
        fused.add(len(row["fused"].split()))
        if row["refused"] is not None:
            refused[row["refused"]] += 1
        if row["similarity"] is not None:
            similarity.add(row["similarity"])
        if row["accepted"]:
            rounds.add(row["rounds"])
            if row["candidates"]:
                score.add(max(candidate["score"] for candidate in row["candidates"]))
        for candidate in row["candidates"]:
            failures.update(score["judge"] for score in candidate["scores"] if score["score"] is None)
    return {
        "rows": count,
        "accepted": round(accepted.total),
        "acceptance": accepted.value,
        "refused": dict(refused.most_common()),
        "sources": dict(sources.most_common()),
        "similarity_mean": similarity.value,
        "score_mean": score.value,
        "rounds_mean": rounds.value,
        "answer_words_mean": answer.value,
        "fused_words_mean": fused.value,
        "judge_failures": dict(failures.most_common()),
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
