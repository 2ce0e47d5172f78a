"""The books of stage 2 under random schedules: deaths, losses, poisoned rows, resumes and changes of scale."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.distill.ledger import Ledger
from raft_ray.distill.order import Place, RowOrder
from raft_ray.distill.trajectory import Chunk, SampleInfo
from raft_ray.errors import RaftError


def info(place: Place, version: int, length: int = 3) -> SampleInfo:
    return SampleInfo(
        place=place,
        version=version,
        length=length,
        truncated=False,
        rollout="rollout-0",
        target_bytes=60,
        teacher_mass=1.0,
    )


def score(ledger: Ledger, chunk: Chunk, version: int = 0, length: int = 3) -> None:
    ledger.generated(chunk, [length] * len(chunk.places))
    ledger.scored(chunk, [(info(place, version, length), f"ref-{place.row}") for place in chunk.places])


@settings(max_examples=300, deadline=None)
@given(
    batch=st.integers(1, 8),
    staleness=st.sampled_from([0, 1, 4]),
    ranks=st.integers(1, 3),
    tries=st.integers(1, 3),
    poison=st.sets(st.integers(0, 12), max_size=2),
    seed=st.integers(0, 10**6),
)
def test_no_schedule_loses_or_repeats_a_row_or_makes_one_too_stale(
    batch: int, staleness: int, ranks: int, tries: int, poison: set[int], seed: int
) -> None:
    """Invariants 1 and 2. Engines die on every chunk with a poisoned row, and now and then on others."""
    random = Random(seed)
    order = RowOrder(rows=13, batch=batch, epochs=2, seed=0)
    ledger = Ledger(order, staleness, tries=tries)
    published = 0
    flying: list[tuple[Chunk, int]] = []
    generated: list[tuple[Chunk, int]] = []
    trained: list[Place] = []
    deaths = 0
    while published < order.steps:
        moves = ["take", "take"]
        moves += ["generate", "return"] if flying else []
        moves += ["score", "unlucky"] if generated else []
        moves += ["lose", "resume"]
        try:
            shares = [ledger.share(published, rank, ranks) for rank in range(ranks)]
        except RaftError:
            # Every row of the step is poisoned: the run stops, and says so.
            assert {place.row for place in order.batch_of(published)} <= poison
            return
        if all(share is not None for share in shares):
            moves += ["publish"] * 4
        move = random.choice(moves)
        if move == "take":
            chunk = ledger.take(random.randint(1, 4))
            if chunk is not None:
                assert not {place.row for place in chunk.places} & ledger.aside
                flying.append((chunk, published))
        elif move == "generate":
            chunk, version = flying.pop(random.randrange(len(flying)))
            if poison & {place.row for place in chunk.places}:
                ledger.failed(chunk)
            else:
                ledger.generated(chunk, [random.randint(1, 9) for _ in chunk.places])
                generated.append((chunk, version))
        elif move == "return":
            chunk, _ = flying.pop(random.randrange(len(flying)))
            ledger.returned(chunk)
        elif move == "score":
            chunk, version = generated.pop(random.randrange(len(generated)))
            ledger.scored(chunk, [(info(place, version), None) for place in chunk.places])
        elif move == "unlucky" and deaths < 3 and tries > 1:
            # A teacher died by chance; often enough on one row, that would set it aside, as it says it does.
            chunk, _ = generated.pop(random.randrange(len(generated)))
            if chunk.failures == 0:
                deaths += 1
                ledger.failed(chunk)
            else:
                ledger.returned(chunk)
        elif move == "lose":
            places = order.batch_of(published)
            if any(share for share in shares):
                ledger.regenerate(published, {random.choice(places).row for _ in range(random.randint(1, 3))})
        elif move == "resume" and random.random() < 0.1:
            # Everything on the way dies with the pipeline; what was set aside stays so.
            ledger = Ledger(order, staleness, step=published, tries=tries, aside=ledger.aside)
            flying, generated = [], []
        elif move == "publish":
            for share in shares:
                for sample, _ in share or []:
                    assert 0 <= published - sample.version <= staleness
                    trained.append(sample.place)
            ledger.done(published)
            published += 1
        capacity = ledger.capacity
        assert 0 <= capacity.in_flight + capacity.ready <= (staleness + 1) * batch
    assert ledger.aside <= poison
    expected = Counter(Place(epoch, row) for epoch in range(2) for row in range(13) if row not in poison)
    assert Counter(trained) == expected


def test_a_chunk_that_kills_engines_is_tried_whole_then_row_by_row_and_the_row_at_fault_set_aside() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0, tries=2)
    chunk = ledger.take(1)
    assert chunk is not None
    assert ledger.failed(chunk) == []
    again = ledger.take(1)
    assert again is not None
    assert again.places == chunk.places
    assert ledger.failed(again) == []
    bad = again.places[2]
    seeds = set()
    for place in again.places:
        single = ledger.take(1)
        assert single is not None
        assert single.places == (place,)
        seeds.add(single.seed(0))
        if place == bad:
            assert ledger.failed(single) == [bad.row]
        else:
            score(ledger, single)
    assert len(seeds) == 4
    assert ledger.take(1) is None
    assert ledger.aside == {bad.row}
    assert ledger.aside_of(0) == [bad]
    share = ledger.share(0, 0, 1)
    assert share is not None
    assert [sample.place for sample, _ in share] == [place for place in again.places if place != bad]
    assert len(ledger.done(0)) == 3
    assert ledger.capacity.in_flight == ledger.capacity.ready == 0


def test_a_row_that_was_set_aside_is_not_dispatched_in_a_later_epoch() -> None:
    ledger = Ledger(RowOrder(rows=2, batch=2, epochs=1, seed=0), 0, aside=[1])
    chunk = ledger.take(1)
    assert chunk is not None
    assert [place.row for place in chunk.places] == [0]
    assert ledger.take(1) is None


def test_a_step_whose_rows_are_all_set_aside_stops_the_run() -> None:
    ledger = Ledger(RowOrder(rows=2, batch=2, epochs=1, seed=0), 0, aside=[0, 1])
    assert ledger.take(1) is None
    with pytest.raises(RaftError, match="engines died on each of its 2 rows"):
        ledger.share(0, 0, 1)


def test_a_chunk_that_comes_back_goes_first_and_keeps_its_places() -> None:
    ledger = Ledger(RowOrder(rows=8, batch=2, epochs=1, seed=0), 1)
    first, second = ledger.take(1), ledger.take(1)
    assert first is not None
    assert second is not None
    assert ledger.capacity.free == 0
    ledger.returned(first)
    assert ledger.waiting == 2
    assert ledger.capacity.free == 0
    assert ledger.take(1) == first


def test_a_rank_gets_its_share_before_the_others_are_scored() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0)
    first, second = ledger.take(2), ledger.take(2)
    assert first is not None
    assert second is not None
    ledger.generated(first, [9, 1])
    assert ledger.share(0, 0, 2) is None
    ledger.generated(second, [9, 1])
    ledger.scored(first, [(info(place, 0), None) for place in first.places])
    # By length, the first rank has the first chunk's rows.
    assert [sample.place for sample, _ in ledger.share(0, 0, 2) or []] == list(first.places)
    assert ledger.share(0, 1, 2) is None
    ledger.scored(second, [(info(place, 0), None) for place in second.places])
    assert [sample.place for sample, _ in ledger.share(0, 1, 2) or []] == list(second.places)


def test_lost_samples_are_made_again_and_stay_with_their_rank() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0)
    chunk = ledger.take(1)
    assert chunk is not None
    score(ledger, chunk)
    before = [ledger.share(0, rank, 2) for rank in range(2)]
    gone = before[1][0][0].place  # type: ignore[index]
    ledger.regenerate(0, [gone.row])
    assert ledger.share(0, 0, 2) == before[0]
    assert ledger.share(0, 1, 2) is None
    again = ledger.take(1)
    assert again is not None
    score(ledger, again, length=7)
    after = ledger.share(0, 1, 2)
    assert after is not None
    assert [sample.place for sample, _ in after] == [sample.place for sample, _ in before[1] or []]
    # What was not lost stays as it was: the learner may have it already.
    assert [sample.length for sample, _ in after] == [7 if sample.place == gone else 3 for sample, _ in after]
    assert ledger.share(0, 0, 2) == before[0]


@pytest.mark.parametrize("alone", [False, True])
def test_a_lost_sample_is_made_again_with_the_seed_and_the_rows_that_made_it(alone: bool) -> None:
    """A row's tokens depend on the seed of its chunk and on all rows in it."""
    ledger = Ledger(RowOrder(rows=8, batch=8, epochs=1, seed=0), 0, tries=1)
    made: list[Chunk] = []
    while (chunk := ledger.take(2)) is not None:
        if alone and len(chunk.places) > 1:
            ledger.failed(chunk)
            continue
        made.append(chunk)
        score(ledger, chunk)
    for lost in made:
        for places in [lost.places[:1], lost.places]:
            # Two ranks may each have lost rows of one chunk, also while it is on its way.
            ledger.regenerate(0, [places[0].row])
            early = ledger.take(2) if len(places) > 1 else None
            ledger.regenerate(0, [place.row for place in places[1:]])
            again = early or ledger.take(2)
            assert again is not None
            assert (again.places, again.seed(5)) == (lost.places, lost.seed(5))
            assert ledger.capacity.in_flight == len(places)
            assert ledger.take(2) is None
            score(ledger, again)
            assert (ledger.capacity.in_flight, ledger.capacity.ready) == (0, 8)
    assert ledger.share(0, 0, 1) is not None
    ledger.done(0)
    assert ledger.capacity.free == 8


def test_a_lost_sample_of_a_row_that_was_set_aside_elsewhere_is_not_waited_for() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0)
    chunk = ledger.take(1)
    assert chunk is not None
    score(ledger, chunk)
    bad, lost = chunk.places[0], chunk.places[1]
    ledger.aside.add(bad.row)
    ledger.regenerate(0, [lost.row])
    again = ledger.take(1)
    assert again is not None
    assert bad not in again.places
    ledger.regenerate(0, [bad.row])
    score(ledger, again)
    assert [sample.place for sample, _ in ledger.share(0, 0, 1) or []] == list(chunk.places[1:])
    assert ledger.capacity.in_flight == 0


def test_a_chunk_that_comes_back_after_its_step_is_done_changes_nothing() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0, tries=1)
    chunk = ledger.take(1)
    assert chunk is not None
    score(ledger, chunk)
    ledger.done(0)
    free = ledger.capacity.free
    score(ledger, chunk)
    assert ledger.failed(chunk) == []
    ledger.returned(chunk)
    assert ledger.take(1) is None
    assert (ledger.capacity.free, ledger.capacity.in_flight, ledger.waiting) == (free, 0, 0)
