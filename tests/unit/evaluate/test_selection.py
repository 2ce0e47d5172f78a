"""Which evaluation of a training is its best, and when no better one is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from raft_ray.config import EvalConfig
from raft_ray.evaluate.selection import best, kept_steps, reason, stops


def lines(*found: tuple[float, float]) -> list[dict[str, Any]]:
    """Accuracy and drift of steps 0, 10, 20, ..."""
    return [{"step": 10 * i, "accuracy": accuracy, "drift": drift} for i, (accuracy, drift) in enumerate(found)]


LINES = lines((0.9, 0.0), (0.4, 0.02), (0.6, 0.05), (0.6, 0.04), (0.8, 0.3))


@pytest.mark.parametrize(
    ("max_drift", "step", "why"),
    [
        (None, 40, "the most accurate: validation accuracy 80.0%, drift 0.3"),
        (0.1, 20, "the most accurate within eval.max_drift=0.1: validation accuracy 60.0%"),
        (0.03, 10, "the most accurate within eval.max_drift=0.03"),
        (0.01, 10, "the least drift, since no evaluation lies within eval.max_drift=0.01"),
    ],
)
def test_the_best_is_the_most_accurate_within_the_drift_and_never_the_original(
    max_drift: float | None, step: int, why: str
) -> None:
    chosen = best(LINES, max_drift)
    assert chosen is not None
    assert chosen["step"] == step
    assert reason(chosen, max_drift).startswith(why)
    assert best(LINES[:1], max_drift) is None


def test_training_stops_after_so_many_evaluations_without_a_better_one() -> None:
    asked = EvalConfig(every=10, max_drift=0.1, patience=2)
    assert [stops(LINES[:n], asked) for n in range(1, 6)] == [False, False, False, False, True]
    asked.max_drift = None
    assert not stops(LINES, asked)
    asked.patience = None
    assert not stops(lines((0.1, 0), (0.9, 0.1), (0.1, 0.2), (0.1, 0.3)), asked)


def test_the_best_models_of_all_checkpoints_that_a_run_may_go_on_from_are_kept() -> None:
    asked = EvalConfig(every=10, max_drift=0.1)
    assert kept_steps(LINES, asked, [10, 20, 40]) == {10, 20}
    asked.max_drift = None
    assert kept_steps(LINES, asked, [20, 40]) == {20, 40}
