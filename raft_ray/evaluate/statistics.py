"""Intervals and paired tests over the same questions, with one or several seeds per method.

A method's answers are a list of verdicts (0 or 1, or any score) for each seed, on the same questions in the same order.
Where a question was answered several times, its score is the mean over these samples: the question is what is drawn.
The bootstrap draws questions, and, where there are several, seeds: questions differ in difficulty and training runs in
luck, and an interval that ignores either is too narrow. (Of two or three seeds little can be drawn: their part of the
interval is a lower bound.) Everything is seeded: the same numbers give the same interval. scipy draws one way only, so
the bootstrap over both is our own; stage 1's over a stream of rows is `raft_ray.refine.interval`, which lies below.

Shapes: S seeds, Q questions, R bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

DRAWS = 4_000
CONFIDENCE = 0.95

Verdicts = Sequence[Sequence[float]]
"""[S][Q]: for each seed, the score of each question."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    mean: float
    low: float | None
    high: float | None
    """Ends of the interval; none where there is nothing to tell its width from."""


@dataclass(frozen=True)
class Paired:
    """The difference of two methods over the same questions."""

    difference: Estimate
    """Mean of a - b with its bootstrap interval."""
    p: float
    """Two-sided: McNemar's exact test for one seed each of right and wrong answers, else from the bootstrap."""
    only_a: int
    """Questions that a alone got right in more than half of its seeds or samples; `only_b` likewise."""
    only_b: int


def estimate(verdicts: Verdicts, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean over seeds and questions, and its percentile bootstrap interval. Raises `ValueError` where seeds have
    different numbers of questions or there is nothing."""
    table_SQ = _table(verdicts)
    return _estimate(float(table_SQ.mean()), _means(table_SQ, draws, seed))


def estimate_of(values: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean of one number per seed, such as a drift, with its interval over seeds; one seed has no interval."""
    if len(values) == 1:
        return Estimate(float(values[0]), None, None)
    drawn = bootstrap(
        (values,), np.mean, n_resamples=draws, confidence_level=CONFIDENCE, method="percentile", rng=seed
    ).confidence_interval
    return Estimate(fmean(values), float(drawn.low), float(drawn.high))


def average(estimates: Sequence[Estimate], *, independent: bool = True) -> Estimate:
    """The mean of several estimates, such as one per domain, with its interval; none where one of them has none.
    `independent`: each side's width is `sqrt(Σ wᵢ²) / n`. Estimates over the same questions are not: their errors may
    be all the same, and the widths are averaged. Raises `ValueError` for nothing."""
    if not estimates:
        raise ValueError("nothing to average")
    mean, n = fmean(one.mean for one in estimates), len(estimates)
    below = [one.mean - one.low for one in estimates if one.low is not None]
    above = [one.high - one.mean for one in estimates if one.high is not None]
    if len(below) < n or len(above) < n:
        return Estimate(mean, None, None)
    low, high = (hypot(*widths) / n if independent else fmean(widths) for widths in (below, above))
    return Estimate(mean, mean - low, mean + high)


def paired(a: Verdicts, b: Verdicts, *, draws: int = DRAWS, seed: int = 0) -> Paired:
    """Whether a is better than b on the same questions. Seeds are matched in their order where both have the same
    number; otherwise each side's are averaged first, and chance between its seeds does not enter. Raises `ValueError`
    where the questions differ in number."""
    first_SQ, second_SQ = _tables(a, b)
    wins = first_SQ.mean(0) > 0.5, second_SQ.mean(0) > 0.5
    only_a, only_b = int((wins[0] & ~wins[1]).sum()), int((wins[1] & ~wins[0]).sum())
    if len(first_SQ) == len(second_SQ):
        difference_SQ = first_SQ - second_SQ
    else:
        difference_SQ = first_SQ.mean(0, keepdims=True) - second_SQ.mean(0, keepdims=True)
    means_R = _means(difference_SQ, draws, seed)
    single = len(first_SQ) == len(second_SQ) == 1
    binary = all(np.isin(table, (0.0, 1.0)).all() for table in (first_SQ, second_SQ))
    p = mcnemar(only_a, only_b) if single and binary else _bootstrap_p(means_R)
    return Paired(_estimate(float(difference_SQ.mean()), means_R), p, only_a, only_b)


def ratio(a: Verdicts, b: Verdicts, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean of a over the mean of b, with its percentile bootstrap interval: a draw has the same questions in both.
    Seeds are matched as in `paired`; where their numbers differ, b's are averaged first. There is no interval where b
    is 0 in so many draws that it has no upper end. Raises `ValueError` where b's mean is 0, or the questions differ in
    number."""
    first_SQ, second_SQ = _tables(a, b)
    if not second_SQ.any():
        raise ValueError("a ratio to a mean of 0")
    if len(first_SQ) != len(second_SQ):
        second_SQ = np.broadcast_to(second_SQ.mean(0), first_SQ.shape)
    above_R, below_R = _means(np.stack([first_SQ, second_SQ]), draws, seed).T
    ratio_R = np.divide(above_R, below_R, out=np.full(draws, np.inf), where=below_R > 0)
    with np.errstate(invalid="ignore"):  # between two infinities
        found = _estimate(float(first_SQ.mean() / second_SQ.mean()), ratio_R)
    return found if found.high is not None and np.isfinite(found.high) else Estimate(found.mean, None, None)


def on_base(own: Verdicts, base: Verdicts, *, seed: int = 0) -> dict[str, Any]:
    """What is left of the base's score, as `eval.json` and `compare.json` have it (`docs/design.md`). `base`: nothing
    where it was not measured, or `own` are the base's. Returns `retention`, `retention_low` and `retention_high`, the
    ratio to the base's mean with its interval, and `on_base`, the paired difference; each is none where it cannot be
    told."""
    kept = ratio(own, base, seed=seed) if base and np.any(base) else None
    return {
        "retention": kept and kept.mean,
        "retention_low": kept and kept.low,
        "retention_high": kept and kept.high,
        "on_base": asdict(paired(own, base, seed=seed)) if base else None,
    }


def describe_retention(score: Mapping[str, Any]) -> str:
    """`97% [90% to 104%]` of what `on_base` returns; without an interval that is not there or has no width."""
    mean, *ends = (score[f"retention{end}"] for end in ("", "_low", "_high"))
    low, high = ("" if end is None else f"{end:.0%}" for end in ends)
    return f"{mean:.0%}" + (f" [{low} to {high}]" if low != high else "")


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided p: could a fair coin have decided the questions that only one side got right?"""
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share that was found among `n`; of no width where that is nothing."""
    if n <= 0:
        return share, share
    low, high = binomtest(round(share * n), n).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def _table(verdicts: Verdicts) -> np.ndarray:
    """[S, Q] float64."""
    lengths = {len(one) for one in verdicts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"seeds over {sorted(lengths)} questions: each must have the same ones, and at least one")
    return np.asarray(verdicts, dtype=np.float64)


def _tables(a: Verdicts, b: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """[S, Q] float64 each, over the same questions."""
    first_SQ, second_SQ = _table(a), _table(b)
    if first_SQ.shape[1] != second_SQ.shape[1]:
        raise ValueError(f"{first_SQ.shape[1]} and {second_SQ.shape[1]} questions: a paired test needs the same ones")
    return first_SQ, second_SQ


def _means(table_SQ: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """[R] means of seeds and questions drawn with replacement; of several tables, [N, S, Q], the same draws: [R, N]."""
    random = np.random.default_rng(seed)
    *tables, seeds, questions = table_SQ.shape
    means = np.empty((draws, *tables))
    # As many draws at a time as keep what is drawn at some 8 MB per table.
    size = max(1, 2**20 // (seeds * questions))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        # Means over drawn questions of every seed, weighted by how often the seed was drawn.
        by_seed_SR = table_SQ[..., random.integers(questions, size=(count, questions))].mean(-1)
        drawn_RS = random.integers(seeds, size=(count, seeds))
        weight_RS = (drawn_RS[:, :, None] == np.arange(seeds)).mean(1)
        means[start : start + count] = np.einsum("...sr,rs->r...", by_seed_SR, weight_RS)
    return means


def _estimate(mean: float, means_R: np.ndarray) -> Estimate:
    low, high = np.quantile(means_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high))


def _bootstrap_p(means_R: np.ndarray) -> float:
    """Twice the share of draws on the rarer side of 0; draws at 0 count on both, and one more on each (never 0)."""
    draws = len(means_R)
    sides = ((means_R <= 0).sum() + 1) / (draws + 1), ((means_R >= 0).sum() + 1) / (draws + 1)
    return float(min(1.0, 2 * min(sides)))
