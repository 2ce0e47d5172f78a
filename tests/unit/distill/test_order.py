"""The capacity rule and the order of rows, as properties over random schedules."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.distill.order import Capacity, RowOrder, SampleId, balanced_shards


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_no_schedule_makes_a_row_staler_than_allowed_or_trains_it_twice(
    batch: int, staleness: int, rollout_batches: int, random: object
) -> None:
    """Dispatch, scoring, death and publishing in any order; every step's rows are then within the bound."""
    order = RowOrder(rows=13, batch=batch, epochs=2, seed=0)
    capacity = Capacity(batch, staleness)
    size = -(-batch // rollout_batches)
    waiting = [
        (step, tuple(order.batch_of(step)[start : start + size]))
        for step in range(order.steps)
        for start in range(0, len(order.batch_of(step)), size)
    ]
    flying: list[tuple[int, tuple[SampleId, ...], int]] = []
    ready: dict[int, list[tuple[SampleId, int]]] = {}
    published = 0
    trained: list[SampleId] = []
    while published < order.steps:
        moves = []
        if waiting and len(waiting[0][1]) <= capacity.free:
            moves.append("dispatch")
        if flying:
            moves += ["score", "die"]
        if len(ready.get(published, [])) == len(order.batch_of(published)):
            moves.append("publish")
        assert moves, "the schedule is stuck"
        move = random.choice(moves)  # type: ignore[attr-defined]
        if move == "dispatch":
            step, places = waiting.pop(0)
            assert capacity.admit(len(places))
            flying.append((step, places, published))
        elif move == "score":
            step, places, version = flying.pop(random.randrange(len(flying)))  # type: ignore[attr-defined]
            capacity.scored(len(places))
            ready.setdefault(step, []).extend((place, version) for place in places)
        elif move == "die":
            # Made again with the newest weights, in the place that it keeps.
            step, places, _ = flying.pop(random.randrange(len(flying)))  # type: ignore[attr-defined]
            flying.append((step, places, published))
        else:
            for place, version in ready.pop(published):
                assert capacity.oldest_version(published) <= version <= published
                trained.append(place)
            capacity.release(len(order.batch_of(published)))
            published += 1
        assert capacity.in_flight + capacity.ready <= (staleness + 1) * batch
    assert Counter(trained) == Counter(SampleId(epoch, row) for epoch in range(2) for row in range(13))


def test_strictly_on_policy_admits_nothing_before_the_last_step_is_published() -> None:
    capacity = Capacity(batch=4, max_staleness=0)
    assert capacity.admit(4)
    capacity.scored(4)
    assert not capacity.admit(1)
    capacity.release(4)
    assert capacity.admit(1)


def test_rows_are_admitted_all_or_none() -> None:
    capacity = Capacity(batch=4, max_staleness=0)
    assert capacity.admit(3)
    assert not capacity.admit(2)
    assert capacity.in_flight == 3


@pytest.mark.parametrize("call", ["scored", "unready", "release"])
def test_more_rows_than_there_are_cannot_leave(call: str) -> None:
    with pytest.raises(ValueError, match="rows leave"):
        getattr(Capacity(batch=4, max_staleness=0), call)(1)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_every_row_comes_once_an_epoch_and_in_the_seeds_order(rows: int, batch: int, epochs: int, seed: int) -> None:
    order = RowOrder(rows, batch, epochs, seed)
    places = [place for step in range(order.steps) for place in order.batch_of(step)]
    assert Counter(places) == Counter(SampleId(epoch, row) for epoch in range(epochs) for row in range(rows))
    assert places == [p for s in range(order.steps) for p in RowOrder(rows, batch, epochs, seed).batch_of(s)]


def test_max_steps_ends_the_run_early() -> None:
    order = RowOrder(rows=10, batch=4, epochs=3, seed=0, max_steps=2)
    assert order.steps == 2
    with pytest.raises(IndexError):
        order.batch_of(2)


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 5))
def test_shares_hold_every_row_once_and_differ_by_one_row_at_most(tokens: list[int], ranks: int) -> None:
    shards = balanced_shards(tokens, ranks)
    assert sorted(i for shard in shards for i in shard) == list(range(len(tokens)))
    assert max(map(len, shards)) <= -(-len(tokens) // ranks)


def test_shares_balance_tokens() -> None:
    shards = balanced_shards([100, 1, 1, 100], 2)
    assert sorted(sum([100, 1, 1, 100][i] for i in shard) for shard in shards) == [101, 101]
