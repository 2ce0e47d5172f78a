"""What the reports keep of refined rows: counts, histograms and a few rows to read, from one pass over the files.

Memory does not grow with the rows. Knows the columns of `docs/design.md` ("A refined row") and nothing about charts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft_ray.errors import RaftError
from raft_ray.refine.agreement import SAMPLE, Agreement, agreement
from raft_ray.refine.gap import KINDS, VALUES
from raft_ray.refine.schema import OFF, part_files
from raft_ray.refine.summary import source
from raft_ray.report.counts import Counts, Reservoir
from raft_ray.report.refine_style import Style

Record = dict[str, Any]

COLUMNS = ["row", "prompt", "answer", "rewrite", "similarity", "accepted", "refused", "candidates", "rounds", "fused"]
"""The columns that the reports read."""

NEAREST = 4
"""Rows kept on each side of τ."""
SAMPLES = 4
"""Rows kept of each kind: accepted, by who wrote what training uses, and refused, by reason."""
BELOW_TAU = "similarity"
"""`refused` of rows that passed the guards and failed Eq. 3."""
SIMILARITY_BINS = 100
SCORE_BINS = 20
LIKELIHOOD_BINS = 100
LEAST_LIKELIHOOD = -20.0
"""Nats per token; what is less likely counts as this."""


class Facts:
    """Counts over refined rows. `tau`: threshold of Eq. 3, around which rows are kept to read; none where it is not
    known."""

    def __init__(self, tau: float | None) -> None:
        self.tau = tau
        self.rows = 0
        self.rewritten = 0
        self.accepted = 0
        self.unwritten: Counter[str] = Counter()
        """Rows for which no rewrite came, by reason, such as an endpoint that failed; those never asked for apart."""
        self.refused: Counter[str] = Counter()
        """Rewritten rows that were not accepted, by reason."""
        self.sources: Counter[str] = Counter()
        """All rows by who wrote the text that training uses."""
        self.rounds: Counter[int] = Counter()
        """Accepted rows by rounds of fusion."""
        self.candidates: Counter[str] = Counter()
        """`judged` and `refused` (by a guard, or by every judge) candidates."""
        self.similarity = {name: Counts(-1, 1, SIMILARITY_BINS) for name in ("accepted", "refused")}
        self.scores: dict[str, Counts] = {}
        """By judge."""
        self.styles = {kind: Style() for kind in KINDS}
        self.likelihood = {kind: Counts(LEAST_LIKELIHOOD, 0, LIKELIHOOD_BINS) for kind in KINDS}
        self._judged: Reservoir[dict[str, float | None]] = Reservoir(SAMPLE)
        self._samples: defaultdict[tuple[bool, str], Reservoir[Record]] = defaultdict(lambda: Reservoir(SAMPLES))
        self.nearest: tuple[list[Record], list[Record]] = ([], [])
        """The rows nearest to τ: below it, and at it or above; the nearest first."""

    def add(self, row: Record) -> None:
        """Count a row with `COLUMNS`."""
        self.rows += 1
        writer = source(row)
        self.sources[writer] += 1
        self.styles["gold"].add(row["answer"])
        self.styles["fused"].add(row["fused"])
        if row["refused"] == OFF:
            return
        if row["rewrite"] is None:
            self.unwritten[row["refused"] or "no reason given"] += 1
            return
        self.rewritten += 1
        self.styles["rewrite"].add(row["rewrite"])
        if row["accepted"]:
            self.accepted += 1
            self.rounds[row["rounds"] or 0] += 1
            self._samples[True, writer].offer(row)
        else:
            reason = row["refused"] or "no reason given"
            self.refused[reason] += 1
            self._samples[False, reason].offer(row)
        self.similarity["accepted" if row["accepted"] else "refused"].add(row["similarity"])
        if (tau := self.tau) is not None and row["similarity"] is not None:
            side = self.nearest[row["similarity"] >= tau]
            side.append(row)
            side.sort(key=lambda one: abs(one["similarity"] - tau))
            del side[NEAREST:]
        for candidate in row["candidates"] or []:
            scores = candidate["scores"] or []
            found = {score["judge"]: score["score"] for score in scores if score["score"] is not None}
            for judge, value in found.items():
                self.scores.setdefault(judge, Counts(0, 1, SCORE_BINS)).add(value)
            self.candidates["judged" if found else "refused"] += 1
            if found:
                self._judged.offer(found)

    def samples(self, accepted: int, refused: int, reasons: int | None = None) -> list[Record]:
        """Rows drawn at random: `accepted` of the accepted ones, over all writers, from high to low cosine; then
        `refused` of each reason, the commonest first, of at most so many `reasons`."""
        writers = [self._samples[key].items for key in sorted(self._samples) if key[0]]
        # One of each writer in turn, until there are enough.
        mixed = [items[i] for i in range(SAMPLES) for items in writers if i < len(items)][:accepted]
        rows = sorted(mixed, key=lambda row: -(row["similarity"] or 0.0))
        for reason, _ in self.refused.most_common(reasons):
            rows += self._samples[False, reason].items[:refused]
        return rows

    def unscored(self, judge: str) -> int:
        """Candidates that others scored and this judge did not."""
        return self.candidates["judged"] - self.scores[judge].total

    @property
    def agreement(self) -> Agreement:
        """Of the judges, over a sample of candidates."""
        return agreement(self._judged.items)


def read_facts(folder: Path, tau: float | None) -> Facts | None:
    """The facts of `RUN/refined`, none where there are no part files. Raises `RaftError` naming a broken file."""
    parts = part_files(folder)
    if not parts:
        return None
    facts = Facts(tau)
    for part in parts:
        for row in _rows(part, COLUMNS):
            facts.add(row)
    if (folder / VALUES).exists():
        for row in _rows(folder / VALUES, list(KINDS)):
            for kind in KINDS:
                facts.likelihood[kind].add(row[kind])
    return facts


def _rows(path: Path, columns: list[str]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise RaftError(f"{path}: column `{missing[0]}` is missing; it is not a refined data set")
            for batch in parquet.iter_batches(batch_size=512, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RaftError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
