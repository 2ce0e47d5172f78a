"""The books of stage 2 under random schedules: deaths, losses, poisoned rows, resumes and changes of scale."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.distill.ledger import Ledger
from raft_ray.distill.order import RowOrder, SampleId
from raft_ray.distill.trajectory import RolloutBatch, SampleInfo
from raft_ray.errors import RaftError


def info(sample_id: SampleId, version: int, length: int = 3) -> SampleInfo:
    return SampleInfo(
        sample_id=sample_id,
        version=version,
        length=length,
        truncated=False,
        rollout="rollout-0",
        target_bytes=60,
        teacher_mass=1.0,
    )


def score(ledger: Ledger, rollout_batch: RolloutBatch, version: int = 0, length: int = 3) -> None:
    ledger.generated(rollout_batch, [length] * len(rollout_batch.sample_ids))
    ledger.scored(
        rollout_batch,
        [(info(sample_id, version, length), f"ref-{sample_id.row}") for sample_id in rollout_batch.sample_ids],
    )


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
    """Invariants 1 and 2. Engines die on every rollout batch with a poisoned row, and now and then on others."""
    random = Random(seed)
    order = RowOrder(rows=13, batch=batch, epochs=2, seed=0)
    ledger = Ledger(order, staleness, max_failures=tries)
    published = 0
    flying: list[tuple[RolloutBatch, int]] = []
    generated: list[tuple[RolloutBatch, int]] = []
    trained: list[SampleId] = []
    deaths = 0
    while published < order.steps:
        moves = ["take", "take"]
        moves += ["generate", "return"] if flying else []
        moves += ["score", "unlucky"] if generated else []
        moves += ["lose", "resume"]
        try:
            shards = [ledger.shard(published, rank, ranks) for rank in range(ranks)]
        except RaftError:
            # Every row of the step is poisoned: the run stops, and says so.
            assert {sample_id.row for sample_id in order.batch_of(published)} <= poison
            return
        if all(shard is not None for shard in shards):
            moves += ["publish"] * 4
        move = random.choice(moves)
        if move == "take":
            rollout_batch = ledger.take(random.randint(1, 4))
            if rollout_batch is not None:
                assert not {sample_id.row for sample_id in rollout_batch.sample_ids} & ledger.quarantined
                flying.append((rollout_batch, published))
        elif move == "generate":
            rollout_batch, version = flying.pop(random.randrange(len(flying)))
            if poison & {sample_id.row for sample_id in rollout_batch.sample_ids}:
                ledger.failed(rollout_batch)
            else:
                ledger.generated(rollout_batch, [random.randint(1, 9) for _ in rollout_batch.sample_ids])
                generated.append((rollout_batch, version))
        elif move == "return":
            rollout_batch, _ = flying.pop(random.randrange(len(flying)))
            ledger.returned(rollout_batch)
        elif move == "score":
            rollout_batch, version = generated.pop(random.randrange(len(generated)))
            ledger.scored(rollout_batch, [(info(sample_id, version), None) for sample_id in rollout_batch.sample_ids])
        elif move == "unlucky" and deaths < 3 and tries > 1:
            # A teacher died by chance; often enough on one row, that would set it aside, as it says it does.
            rollout_batch, _ = generated.pop(random.randrange(len(generated)))
            if rollout_batch.failures == 0:
                deaths += 1
                ledger.failed(rollout_batch)
            else:
                ledger.returned(rollout_batch)
        elif move == "lose":
            sample_ids = order.batch_of(published)
            if any(shard for shard in shards):
                ledger.regenerate(published, {random.choice(sample_ids).row for _ in range(random.randint(1, 3))})
        elif move == "resume" and random.random() < 0.1:
            # Everything on the way dies with the pipeline; what was quarantined stays so.
            ledger = Ledger(order, staleness, step=published, max_failures=tries, quarantined=ledger.quarantined)
            flying, generated = [], []
        elif move == "publish":
            for shard in shards:
                for sample, _ in shard or []:
                    assert 0 <= published - sample.version <= staleness
                    trained.append(sample.sample_id)
            ledger.done(published)
            published += 1
        capacity = ledger.capacity
        assert 0 <= capacity.in_flight + capacity.ready <= (staleness + 1) * batch
    assert ledger.quarantined <= poison
    expected = Counter(SampleId(epoch, row) for epoch in range(2) for row in range(13) if row not in poison)
    assert Counter(trained) == expected


def test_a_chunk_that_kills_engines_is_tried_whole_then_row_by_row_and_the_row_at_fault_quarantined() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0, max_failures=2)
    rollout_batch = ledger.take(1)
    assert rollout_batch is not None
    assert ledger.failed(rollout_batch) == []
    again = ledger.take(1)
    assert again is not None
    assert again.sample_ids == rollout_batch.sample_ids
    assert ledger.failed(again) == []
    bad = again.sample_ids[2]
    seeds = set()
    for sample_id in again.sample_ids:
        single = ledger.take(1)
        assert single is not None
        assert single.sample_ids == (sample_id,)
        seeds.add(single.seed(0))
        if sample_id == bad:
            assert ledger.failed(single) == [bad.row]
        else:
            score(ledger, single)
    assert len(seeds) == 4
    assert ledger.take(1) is None
    assert ledger.quarantined == {bad.row}
    assert ledger.quarantined_of(0) == [bad]
    shard = ledger.shard(0, 0, 1)
    assert shard is not None
    assert [sample.sample_id for sample, _ in shard] == [
        sample_id for sample_id in again.sample_ids if sample_id != bad
    ]
    assert len(ledger.done(0)) == 3
    assert ledger.capacity.in_flight == ledger.capacity.ready == 0


def test_a_row_that_was_quarantined_is_not_dispatched_in_a_later_epoch() -> None:
    ledger = Ledger(RowOrder(rows=2, batch=2, epochs=1, seed=0), 0, quarantined=[1])
    rollout_batch = ledger.take(1)
    assert rollout_batch is not None
    assert [sample_id.row for sample_id in rollout_batch.sample_ids] == [0]
    assert ledger.take(1) is None


def test_a_step_whose_rows_are_all_quarantined_stops_the_run() -> None:
    ledger = Ledger(RowOrder(rows=2, batch=2, epochs=1, seed=0), 0, quarantined=[0, 1])
    assert ledger.take(1) is None
    with pytest.raises(RaftError, match="engines died on each of its 2 rows"):
        ledger.shard(0, 0, 1)


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
    assert ledger.shard(0, 0, 2) is None
    ledger.generated(second, [9, 1])
    ledger.scored(first, [(info(sample_id, 0), None) for sample_id in first.sample_ids])
    # By length, the first rank has the first rollout batch's rows.
    assert [sample.sample_id for sample, _ in ledger.shard(0, 0, 2) or []] == list(first.sample_ids)
    assert ledger.shard(0, 1, 2) is None
    ledger.scored(second, [(info(sample_id, 0), None) for sample_id in second.sample_ids])
    assert [sample.sample_id for sample, _ in ledger.shard(0, 1, 2) or []] == list(second.sample_ids)


def test_lost_samples_are_made_again_and_stay_with_their_rank() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0)
    rollout_batch = ledger.take(1)
    assert rollout_batch is not None
    score(ledger, rollout_batch)
    before = [ledger.shard(0, rank, 2) for rank in range(2)]
    gone = before[1][0][0].sample_id  # type: ignore[index]
    ledger.regenerate(0, [gone.row])
    assert ledger.shard(0, 0, 2) == before[0]
    assert ledger.shard(0, 1, 2) is None
    again = ledger.take(1)
    assert again is not None
    score(ledger, again, length=7)
    after = ledger.shard(0, 1, 2)
    assert after is not None
    assert [sample.sample_id for sample, _ in after] == [sample.sample_id for sample, _ in before[1] or []]
    # What was not lost stays as it was: the learner may have it already.
    assert [sample.length for sample, _ in after] == [7 if sample.sample_id == gone else 3 for sample, _ in after]
    assert ledger.shard(0, 0, 2) == before[0]


@pytest.mark.parametrize("alone", [False, True])
def test_a_lost_sample_is_made_again_with_the_seed_and_the_rows_that_made_it(alone: bool) -> None:
    """A row's tokens depend on the seed of its rollout batch and on all rows in it."""
    ledger = Ledger(RowOrder(rows=8, batch=8, epochs=1, seed=0), 0, max_failures=1)
    made: list[RolloutBatch] = []
    while (rollout_batch := ledger.take(2)) is not None:
        if alone and len(rollout_batch.sample_ids) > 1:
            ledger.failed(rollout_batch)
            continue
        made.append(rollout_batch)
        score(ledger, rollout_batch)
    for lost in made:
        for sample_ids in [lost.sample_ids[:1], lost.sample_ids]:
            # Two ranks may each have lost rows of one rollout batch, also while it is on its way.
            ledger.regenerate(0, [sample_ids[0].row])
            early = ledger.take(2) if len(sample_ids) > 1 else None
            ledger.regenerate(0, [sample_id.row for sample_id in sample_ids[1:]])
            again = early or ledger.take(2)
            assert again is not None
            assert (again.sample_ids, again.seed(5)) == (lost.sample_ids, lost.seed(5))
            assert ledger.capacity.in_flight == len(sample_ids)
            assert ledger.take(2) is None
            score(ledger, again)
            assert (ledger.capacity.in_flight, ledger.capacity.ready) == (0, 8)
    assert ledger.shard(0, 0, 1) is not None
    ledger.done(0)
    assert ledger.capacity.free == 8


def test_a_lost_sample_of_a_row_that_was_quarantined_elsewhere_is_not_waited_for() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0)
    rollout_batch = ledger.take(1)
    assert rollout_batch is not None
    score(ledger, rollout_batch)
    bad, lost = rollout_batch.sample_ids[0], rollout_batch.sample_ids[1]
    ledger.quarantined.add(bad.row)
    ledger.regenerate(0, [lost.row])
    again = ledger.take(1)
    assert again is not None
    assert bad not in again.sample_ids
    ledger.regenerate(0, [bad.row])
    score(ledger, again)
    assert [sample.sample_id for sample, _ in ledger.shard(0, 0, 1) or []] == list(rollout_batch.sample_ids[1:])
    assert ledger.capacity.in_flight == 0


def test_a_chunk_that_comes_back_after_its_step_is_done_changes_nothing() -> None:
    ledger = Ledger(RowOrder(rows=4, batch=4, epochs=1, seed=0), 0, max_failures=1)
    rollout_batch = ledger.take(1)
    assert rollout_batch is not None
    score(ledger, rollout_batch)
    ledger.done(0)
    free = ledger.capacity.free
    score(ledger, rollout_batch)
    assert ledger.failed(rollout_batch) == []
    ledger.returned(rollout_batch)
    assert ledger.take(1) is None
    assert (ledger.capacity.free, ledger.capacity.in_flight, ledger.waiting) == (free, 0, 0)
