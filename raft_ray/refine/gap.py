"""The compatibility gap: how likely the original model finds the answers that it is to be trained on.

The measure is the mean log-likelihood per token, in nats: of the answer's tokens and the end-of-turn token, given the
question in the chat template, under the original model. Gold answers are unlikely (they are not the model's words),
rewritten and fused ones should be likelier: closing this gap is what stage 1 is for.

The fused answer is read once more in the teacher's place (Eq. 7), with itself as the reference: how far that raises its
likelihood tells whether the teacher uses what it is shown. Knows nothing about Ray, or about models but their function.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raft_ray.errors import DataError

if TYPE_CHECKING:
    from raft_ray.models.head import Pair
    from raft_ray.models.prompts import PromptEncoder

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

RESAMPLES = 1000


def measure_rows(
    rows: Sequence[dict[str, Any]], encoder: PromptEncoder, score: Callable[[list[Pair]], list[float]]
) -> list[dict[str, Any]]:
    """Rows with `COLUMNS` to rows of `VALUES_SCHEMA`, in order. A text that a row repeats is read once. `encoder`: the
    model's chat template and context; with a teacher template, fused answers are read in the teacher's place too.
    `score`: the mean log-likelihood per token of answers after their prompts, both as ids."""
    wanted: dict[tuple[int, str | None], Pair] = {}
    for number, row in enumerate(rows):
        prompt = encoder.prompt(row["messages"])
        for text in filter(None, (row["answer"], row["rewrite"], row["fused"])):
            answer = encoder.answer(row["messages"], text)
            if len(prompt) + len(answer) <= encoder.context:
                wanted[number, text] = prompt, answer
        if pair := _conditioned(row, encoder):
            wanted[number, None] = pair
    found = dict(zip(wanted, score(list(wanted.values())), strict=True))
    return [
        {
            "row": row["row"],
            "accepted": row["accepted"],
            "gold": found.get((number, row["answer"])),
            "rewrite": found.get((number, row["rewrite"] or "")),
            "fused": found.get((number, row["fused"])),
            CONDITIONED: found.get((number, None)),
        }
        for number, row in enumerate(rows)
    ]


def _conditioned(row: dict[str, Any], encoder: PromptEncoder) -> Pair | None:
    """The teacher's prompt and the fused answer; none without a template, or where they do not fit."""
    if encoder.teacher_template is None or not row["fused"]:
        return None
    answer = encoder.answer(row["messages"], row["fused"])
    try:
        return replace(encoder, max_new_tokens=len(answer)).teacher_prompt(row["messages"], row["fused"]), answer
    except DataError:
        return None


class Interval(TypedDict):
    """A mean over `n` rows with its 95% interval; all null over no rows, no interval over fewer than two."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class Means:
    """Means with 95% intervals of some columns over the same rows, by Poisson bootstrap: a resample counts each row
    Poisson(1) times, which needs only the running sums of each resample, never the rows. The same rows in the same
    order and the same seed give the same intervals, however they were cut into `add`s. `names`: of the columns. `seed`:
    of the resamples."""

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


class Gap:
    """What rows of `VALUES_SCHEMA` come to, taken in one after the other. `seed`: of the bootstrap."""

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
    amount = f"{rise['mean']:+.3f} nats per token (95% interval {rise['low']:+.3f} to {rise['high']:+.3f})"
    change = f"fused answers against gold ones over the same {rise['n']:,} rows: {amount}"
    if rise["low"] > 0:
        return f"The compatibility gap shrank; {change}."
    if rise["high"] < 0:
        return f"The compatibility gap grew; {change}. The refined answers are further from the model than gold."
    return f"It is not shown that the compatibility gap shrank; {change}."


def describe_reference(gap: dict[str, Any]) -> str | None:
    """Whether the teacher uses the reference, in one sentence; none where it was not measured. Likelihoods are said as
    probabilities a token (geometric means), which need no logarithms to be understood."""
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
