"""The compatibility gap: how likely the original model finds the answers that it is to be trained on.

The measure is the mean log-likelihood a token, in nats: of the answer's tokens and the end-of-turn token, given the
question in the chat template, under the original model. Gold answers are unlikely (they are not the model's words),
rewritten and fused ones should be likelier: closing this gap is what stage 1 is for.

The fused answer is read once more in the teacher's place (Eq. 7), with itself as the reference: how far that raises its
likelihood tells whether the teacher uses what it is shown. One that finds the answer unlikely even then pulls the
student away from it.

Here are the numbers: what is kept of each row, and what all of them come to. The model that gives them is
`raft_ray.refine.likelihood`'s; this module knows nothing about models or Ray.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raft_ray.errors import DataError
from raft_ray.refine.interval import Means

COLUMNS = ["row", "messages", "answer", "rewrite", "accepted", "fused"]
"""What is read of a refined row."""

KINDS = ("gold", "rewrite", "fused")
CONDITIONED = "conditioned"
"""The fused answer for a teacher that has been shown it."""

VALUES_SCHEMA = pa.schema(
    [("row", pa.int64()), ("accepted", pa.bool_()), *((kind, pa.float64()) for kind in (*KINDS, CONDITIONED))]
)
"""A row's mean log-likelihoods a token; null where the row has no such text, or where it does not fit the context."""

GAP = "_gap.json"
VALUES = "_gap.pq"
"""Both in the refined folder. The underscore keeps the second out of what pyarrow and others read of it as Parquet, the
ending out of what `datasets` and Ray Data read."""


class Gap:
    """What rows of `VALUES_SCHEMA` come to, taken in one after the other.

    Args:
        seed: of the bootstrap.
    """

    def __init__(self, seed: int) -> None:
        names = (*KINDS, CONDITIONED, "rewrite_minus_gold", "fused_minus_gold", "conditioned_minus_fused")
        self._names = [f"{part}.{name}" for part in ("all", "accepted") for name in names]
        self._means = Means(self._names, seed)
        self._rows = 0

    def add(self, values: pa.Table) -> None:
        """Take in some rows."""
        gold, rewrite, fused, conditioned = (
            values[kind].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
            for kind in (*KINDS, CONDITIONED)
        )
        accepted = values["accepted"].to_numpy(zero_copy_only=False).astype(bool)
        rises = (rewrite - gold, fused - gold, conditioned - fused)
        columns = np.stack([gold, rewrite, fused, conditioned, *rises], axis=1)
        self._means.add(np.concatenate([columns, np.where(accepted[:, None], columns, np.nan)], axis=1))
        self._rows += values.num_rows

    def result(self) -> dict[str, Any]:
        """`rows`; and for `all` and for the `accepted` rows the intervals of each kind and of its rise: of rewrites and
        fused answers over gold, of what the teacher is shown over the same unseen."""
        result: dict[str, Any] = {"rows": self._rows, "all": {}, "accepted": {}}
        for name, interval in self._means.intervals().items():
            part, column = name.split(".")
            result[part][column] = interval
        return result


def describe(gap: dict[str, Any]) -> str:
    """Whether the gap shrank, in one sentence: the paired difference of fused and gold answers over all rows."""
    rise = gap["all"]["fused_minus_gold"]
    if not rise["n"]:
        return "The compatibility gap could not be measured: no row fits the model's context."
    if not gap["accepted"]["fused"]["n"]:
        return "The compatibility gap is as it was: no rewrite was accepted, so training uses the gold answers."
    if rise["low"] is None:
        return "The compatibility gap rests on a single row, which shows nothing."
    amount = f"{rise['mean']:+.3f} nats a token (95% interval {rise['low']:+.3f} to {rise['high']:+.3f})"
    change = f"fused answers against gold ones over the same {rise['n']:,} rows: {amount}"
    if rise["low"] > 0:
        return f"The compatibility gap shrank; {change}."
    if rise["high"] < 0:
        return f"The compatibility gap grew; {change}. The refined answers are further from the model than gold."
    return f"It is not shown that the compatibility gap shrank; {change}."


def describe_reference(gap: dict[str, Any]) -> str | None:
    """Whether the teacher uses the reference, in one sentence; none where it was not measured.

    Likelihoods are said as probabilities a token (geometric means), which need no logarithms to be understood.
    """
    rise, shown = gap["all"]["conditioned_minus_fused"], gap["all"][CONDITIONED]
    if not rise["n"]:
        return None
    if rise["low"] is None:
        return "Whether the teacher uses the reference rests on a single row, which shows nothing."
    amount = f"{rise['mean']:+.3f} nats, 95% interval {rise['low']:+.3f} to {rise['high']:+.3f}"
    share = f"{math.exp(shown['mean'] - rise['mean']):.2g} to {math.exp(shown['mean']):.2g}"
    change = f"a token's probability goes from {share} ({amount}, {rise['n']:,} rows)"
    if rise["low"] > 0:
        return f"Shown the fused answer, the teacher finds it likelier: {change}."
    return f"The teacher does not use the reference as far as these rows show: {change}."


def read_gap(folder: Path) -> dict[str, Any] | None:
    """The measured gap of a refined folder, none where it was not measured. Raises `DataError` for a broken file."""
    path = folder / GAP
    if not path.exists():
        return None
    try:
        gap = json.loads(path.read_text(encoding="utf-8"))
        describe(gap)
        describe_reference(gap)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a measured gap ({type(error).__name__}: {error}); delete it") from error
    return gap
