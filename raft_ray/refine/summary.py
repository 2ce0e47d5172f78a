"""Counts over refined rows, taken in one part file after the other: what `_summary.json` says of them.

Memory does not grow with the rows, and the numbers do not depend on how they were cut into files. Knows nothing about
how rows are refined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from raft_ray.config import RefineConfig, RefineModelConfig
from raft_ray.refine.cache import Counts
from raft_ray.refine.schema import RefinedRow

_WAYS = 2**40
"""Means are sums of whole numbers of 1/_WAYS, so that their order does not matter."""
_MEANS = ("similarity_mean", "score_mean", "rounds_mean", "answer_words_mean", "fused_words_mean")


class Summary:
    """A running count."""

    def __init__(self) -> None:
        self._rows = self._accepted = 0
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in ("refused", "sources", "judge_failures")}
        self._sums: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def add(self, rows: Iterable[RefinedRow]) -> None:
        for row in rows:
            self._rows += 1
            self._accepted += row["accepted"]
            scores = [score for candidate in row["candidates"] for score in candidate["scores"]]
            self._counts["refused"].update([row["refused"]] if row["refused"] is not None else [])
            self._counts["sources"].update([source(row)])
            self._counts["judge_failures"].update(score["judge"] for score in scores if score["score"] is None)
            best = max((candidate["score"] for candidate in row["candidates"]), default=None)
            of_accepted = (best, row["rounds"]) if row["accepted"] else (None, None)
            lengths = (len(row["answer"].split()), len(row["fused"].split()))
            for name, value in zip(_MEANS, (row["similarity"], *of_accepted, *lengths), strict=True):
                if value is not None:
                    self._sums[name] += round(value * _WAYS)
                    self._numbers[name] += 1

    def result(self) -> dict[str, Any]:
        """`rows`, `accepted` and their share, reasons and sources by frequency, failures by judge, and means, which
        are null over nothing."""
        sums, numbers = self._sums, self._numbers
        return {
            "rows": self._rows,
            "accepted": self._accepted,
            "acceptance": self._accepted / self._rows if self._rows else None,
            **{
                name: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
                for name, counts in self._counts.items()
            },
            **{name: sums[name] / _WAYS / numbers[name] if numbers[name] else None for name in _MEANS},
        }


def source(row: RefinedRow | dict[str, Any]) -> str:
    """Who wrote the fused answer ŷ, the text that training uses: `gold`, `rewrite`, `fuse` or another writer."""
    if not row["accepted"]:
        return "gold"
    chosen = (candidate["source"] for candidate in row["candidates"] or [] if candidate["text"] == row["fused"])
    return next(chosen, "rewrite")


def spending(counts: Counts, before: Counts, refine: RefineConfig) -> dict[str, Any]:
    """What the rows took, from the cache's counts. `counts`: since the run folder was made, runs that were killed
    included. `before`: the counts when this run began. Returns `cache`: `hits` and `misses` of this run, in requests.
    `stages`: of this run, `rows`, `seconds` of its workers (waiting for models included) and `rows_per_second` a
    worker. `models`: in all runs, by model `asks`, `failed`, `input_tokens`, `output_tokens`, `seconds` of waiting,
    `cost`; and the same by role in `roles`."""
    now = {key: amount - before.get(key, 0.0) for key, amount in counts.items()}
    stages = {}
    for stage in ("rewrite", "fuse"):
        rows, seconds = int(now.get((stage, "rows"), 0)), now.get((stage, "seconds"), 0.0)
        each = round(rows / seconds, 3) if seconds else None
        stages[stage] = {"rows": rows, "seconds": round(seconds, 3), "rows_per_second": each}
    names = sorted({whose for whose, _ in counts if " " in whose})
    roles = {name: _spent([name], counts, refine) for name in names}
    models = sorted({name.split(" ", 1)[1] for name in names})
    return {
        "cache": {what: int(sum(now.get((name, what), 0) for name in names)) for what in ("hits", "misses")},
        "stages": stages,
        "models": {
            model: _spent([name for name in names if name.split(" ", 1)[1] == model], counts, refine)
            for model in models
        },
        "roles": roles,
    }


def _spent(names: list[str], counts: Counts, refine: RefineConfig) -> dict[str, Any]:
    """Over `names`, each a role and the same model."""
    total = {
        what: sum(counts.get((name, what), 0.0) for name in names)
        for what in ("misses", "failed", "input_tokens", "output_tokens", "seconds")
    }
    model = refine.models.get(names[0].split(" ", 1)[1], RefineModelConfig())
    cost = (total["input_tokens"] * model.input_cost + total["output_tokens"] * model.output_cost) / 1e6
    return {
        "asks": int(total["misses"]),
        **{what: int(total[what]) for what in ("failed", "input_tokens", "output_tokens")},
        "seconds": round(total["seconds"], 3),
        "cost": round(cost, 6),
    }
