"""How far the judges agree: Krippendorff's alpha over candidates that several of them scored.

1 is full agreement, 0 what chance would give, below 0 they contradict each other. Knows nothing about rows or about
what judges are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE = 2000
"""Candidates that a caller should pass at most: the package needs memory for each of them times `STEPS` squared."""
STEPS = 50
"""Scores are compared in steps of 1 / STEPS, which moves alpha by less than its own sampling error."""


@dataclass(frozen=True)
class Agreement:
    """Alpha, or why there is none."""

    alpha: float | None
    """Krippendorff's alpha of scores on an interval scale."""
    reason: str
    """Why `alpha` is none; empty otherwise."""
    candidates: int
    """Candidates that at least two judges scored: those alpha rests on."""
    judges: int


def agreement(scores: Sequence[Mapping[str, float | None]]) -> Agreement:
    """The agreement over candidates: for each, the score in [0, 1] of every judge; missing or None where it gave none.
    Meant for `SAMPLE` candidates at most."""
    found = [{judge: value for judge, value in candidate.items() if value is not None} for candidate in scores]
    judges = sorted({judge for candidate in found for judge in candidate})
    shared = [candidate for candidate in found if len(candidate) > 1]
    if len(judges) < 2:
        return Agreement(None, "needs two judges", 0, len(judges))
    if not shared:
        return Agreement(None, "no candidate was scored by two judges", 0, len(judges))
    table_JN = np.array([[candidate.get(judge, np.nan) for candidate in shared] for judge in judges])
    table_JN = np.round(table_JN * STEPS) / STEPS
    if len(np.unique(table_JN[~np.isnan(table_JN)])) < 2:
        return Agreement(None, "all scores are the same", len(shared), len(judges))
    import krippendorff

    alpha = float(krippendorff.alpha(reliability_data=table_JN, level_of_measurement="interval"))
    return Agreement(alpha, "", len(shared), len(judges))
