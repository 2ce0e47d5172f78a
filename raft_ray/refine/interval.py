"""Means with 95% bootstrap intervals over a stream of rows of any length.

Knows nothing about what the numbers are. Poisson bootstrap: a resample counts each row Poisson(1) times, which for
many rows is the ordinary bootstrap, and needs only the running sums of each resample, never the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000


class Interval(TypedDict):
    """A mean over `n` rows with its 95% interval; all null over no rows, no interval over fewer than two."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class Means:
    """The means of some columns over the same rows, which are resampled together.

    The same rows in the same order and the same seed give the same intervals, however they were cut into `add`s.

    Args:
        names: of the columns.
        seed: of the resamples.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._names = list(names)
        self._random = np.random.default_rng(seed % 2**63)
        # The first line is the sample itself, the others are the resamples.
        self._sums_RC = np.zeros((1 + RESAMPLES, len(self._names)))
        self._counts_RC = np.zeros_like(self._sums_RC)

    def add(self, values_NC: npt.ArrayLike) -> None:
        """Take in rows; NaN where a row has no value in a column."""
        values = np.asarray(values_NC, dtype=np.float64).reshape(-1, len(self._names))
        there = np.isfinite(values)
        weights = np.concatenate(
            [np.ones((len(values), 1)), self._random.poisson(1.0, (len(values), RESAMPLES))], axis=1
        )
        self._sums_RC += weights.T @ np.where(there, values, 0.0)
        self._counts_RC += weights.T @ there

    def intervals(self) -> dict[str, Interval]:
        """The interval of each column so far."""
        return {name: self._interval(column) for column, name in enumerate(self._names)}

    def _interval(self, column: int) -> Interval:
        sums, counts = self._sums_RC[:, column], self._counts_RC[:, column]
        n = int(counts[0])
        if n == 0:
            return {"mean": None, "low": None, "high": None, "n": 0}
        mean = float(sums[0] / n)
        if n == 1:
            return {"mean": mean, "low": None, "high": None, "n": 1}
        drawn = counts[1:] > 0
        low, high = np.quantile(sums[1:][drawn] / counts[1:][drawn], (0.025, 0.975))
        return {"mean": mean, "low": float(low), "high": float(high), "n": n}
