"""The judges' agreement is Krippendorff's alpha, with missing scores, and says when there is none."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from raft_ray.refine.agreement import SAMPLE, agreement


def by_definition(units: list[list[float]]) -> float:
    """1 - D_o / D_e on an interval scale: mean squared differences within units, and over all pairable values."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    expected = sum((a - b) ** 2 for a, b in permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


def test_it_is_alpha_by_its_definition_with_missing_scores() -> None:
    draw = random.Random(0)
    units = []
    for _ in range(40):
        true = draw.random()
        near = [min(1.0, max(0.0, true + draw.gauss(0, 0.1))) for _ in range(3)]
        units.append(
            {name: round(50 * v) / 50 if draw.random() > 0.2 else None for name, v in zip("abc", near, strict=True)}
        )
    found = agreement(units)
    assert found.alpha == pytest.approx(by_definition([[v for v in u.values() if v is not None] for u in units]))
    assert 0.5 < found.alpha < 0.95
    assert found.candidates == sum(sum(v is not None for v in unit.values()) > 1 for unit in units)
    assert found.judges == 3


def test_agreeing_judges_have_one_and_contrary_judges_less_than_zero() -> None:
    values = [0.0, 0.2, 0.5, 0.9]
    assert agreement([{"a": v, "b": v} for v in values]).alpha == pytest.approx(1.0)
    contrary = agreement([{"a": v, "b": 1 - v} for v in values]).alpha
    assert contrary is not None
    assert contrary < 0


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([], "needs two judges"),
        ([{"a": 0.5}, {"a": 0.7}], "needs two judges"),
        ([{"a": 0.5, "b": None}, {"a": 0.7}], "needs two judges"),
        ([{"a": 0.5}, {"b": 0.7}], "no candidate was scored by two judges"),
        ([{"a": 1.0, "b": 1.0}] * 3, "all scores are the same"),
    ],
)
def test_it_says_why_there_is_none(scores: list[dict[str, float | None]], reason: str) -> None:
    found = agreement(scores)
    assert (found.alpha, found.reason) == (None, reason)


def test_a_full_sample_of_any_scores_is_little_work() -> None:
    draw = random.Random(1)
    found = agreement([{"a": draw.random(), "b": draw.random()} for _ in range(SAMPLE)])
    assert found.alpha is not None
    assert abs(found.alpha) < 0.1
