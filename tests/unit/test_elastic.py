"""The policy that adds and removes rollout actors, on a model of a run whose best number is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_ray.elastic import Elastic


def steps(elastic: Elastic, actors: int, *, work: float, learner: float, count: int) -> list[int]:
    """Actors after each of `count` steps in which rollouts (`work` actor-seconds) and learners overlap fully."""
    found = []
    for _ in range(count):
        rollout = work / actors
        total = max(rollout, learner)
        actors = elastic.target(actors, learner_wait=(total - learner) / total, rollout_busy=rollout / total)
        found.append(actors)
    return found


@given(
    work=st.floats(0.5, 30),
    learner=st.floats(0.5, 4),
    first=st.integers(1, 16),
    least=st.integers(1, 4),
    most=st.integers(4, 16),
)
def test_it_settles_where_learners_no_longer_starve_and_stays_there(
    work: float, learner: float, first: int, least: int, most: int
) -> None:
    elastic = Elastic(least, most)
    found = steps(elastic, first, work=work, learner=learner, count=90)
    assert all(least <= actors <= most for actors in found)
    assert all(abs(b - a) <= 1 for a, b in pairwise(found))
    assert len(set(found[-20:])) == 1, "it swings"
    enough = math.ceil(0.8 * work / learner)
    assert found[-1] >= min(enough, most)


def test_it_grows_while_learners_wait_and_shrinks_while_rollouts_wait() -> None:
    assert steps(Elastic(1, 8, patience=1), 1, work=4, learner=1, count=6)[-1] == 4
    # At four each works half of the time: no longer too many.
    assert steps(Elastic(1, 8, patience=1), 8, work=2, learner=1, count=8)[-1] == 4


def test_it_watches_some_steps_between_two_changes() -> None:
    assert steps(Elastic(1, 8, patience=3), 1, work=8, learner=1, count=7) == [1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("first", [1, 9])
def test_bounds_hold_at_once(first: int) -> None:
    assert Elastic(2, 4).target(first, learner_wait=0.0, rollout_busy=1.0) == (2 if first == 1 else 4)


def test_equal_bounds_never_change_the_number() -> None:
    assert steps(Elastic(2, 2, patience=1), 2, work=40, learner=1, count=5) == [2] * 5
