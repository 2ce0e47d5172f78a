"""The policy that adds and removes rollout actors, on a model of a run whose best number is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_ray.distill.elastic import SCARCE, ElasticPolicy, Load, bottleneck


def roles(actors: int, learner_wait: float, rollout_busy: float, teacher_busy: float = 0.1) -> dict[str, Load]:
    """The roles' loads, as shares of their time."""
    return {
        "rollout": Load(actors, rollout_busy, 0.0),
        "teacher": Load(1, teacher_busy, 0.0),
        "learner": Load(1, 1 - learner_wait, learner_wait),
    }


def steps(elastic: ElasticPolicy, actors: int, *, work: float, learner: float, count: int) -> list[int]:
    """Actors after each of `count` steps in which rollouts (`work` actor-seconds) and learners overlap fully."""
    found = []
    for _ in range(count):
        rollout = work / actors
        total = max(rollout, learner)
        actors = elastic.target(actors, roles(actors, (total - learner) / total, rollout / total))
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
    elastic = ElasticPolicy(least, most)
    found = steps(elastic, first, work=work, learner=learner, count=90)
    assert all(least <= actors <= most for actors in found)
    assert all(abs(b - a) <= 1 for a, b in pairwise(found))
    assert len(set(found[-20:])) == 1, "it swings"
    enough = math.ceil((1 - SCARCE) * work / learner)
    assert found[-1] >= min(enough, most)


def test_it_grows_while_learners_wait_and_shrinks_while_rollouts_wait() -> None:
    assert steps(ElasticPolicy(1, 8, patience=1), 1, work=4, learner=1, count=6)[-1] == 4
    # At three each works two thirds of the time: two would be full.
    assert steps(ElasticPolicy(1, 8, patience=1), 8, work=2, learner=1, count=8)[-1] == 3


def test_it_watches_some_steps_between_two_changes() -> None:
    assert steps(ElasticPolicy(1, 8, patience=3), 1, work=8, learner=1, count=7) == [1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("first", [1, 9])
def test_bounds_hold_at_once(first: int) -> None:
    assert ElasticPolicy(2, 4).target(first, roles(first, 0.0, 1.0)) == (2 if first == 1 else 4)


def test_equal_bounds_never_change_the_number() -> None:
    assert steps(ElasticPolicy(2, 2, patience=1), 2, work=40, learner=1, count=5) == [2] * 5


@given(
    actors=st.integers(2, 9),
    learner_wait=st.floats(0, 1),
    rollout_busy=st.floats(0, 1),
    teacher_busy=st.floats(0, 1),
)
def test_it_does_what_the_advice_says(
    actors: int, learner_wait: float, rollout_busy: float, teacher_busy: float
) -> None:
    loads = roles(actors, learner_wait, rollout_busy, teacher_busy)
    found = bottleneck(loads)
    assert found is not None
    change = ElasticPolicy(1, 10, patience=1).target(actors, loads) - actors
    assert (change > 0) == (found.role == "rollout")
    assert (change < 0) == (found.role == "learner" and "rollouts wait" in found.advice)


def test_learners_that_limit_the_run_as_its_teacher_too_are_told_that_this_can_be_given_to_others() -> None:
    loads = {"rollout": Load(1, 0.4, 0.0), "learner": Load(1, 0.97, 0.02, scoring=0.3)}
    found = bottleneck(loads)
    assert found is not None
    assert found.role == "learner"
    assert "(busy 97%, 30% as the teacher, they wait 2% of the time)" in found.advice
    assert found.advice.endswith("add learner.num_workers or set teacher.place=own.")
    loads["rollout"] = Load(1, 0.95, 0.0)
    loads["learner"] = Load(1, 0.5, 0.5, scoring=0.3)
    found = bottleneck(loads)
    assert found is not None
    assert found.role == "rollout"
    assert "teacher" not in found.advice
