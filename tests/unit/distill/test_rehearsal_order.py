"""Rehearsal rows: their order, their way through the ledger, and their records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.distill.ledger import Ledger
from raft_ray.distill.order import RowOrder, SampleId
from raft_ray.distill.trajectory import SampleInfo
from raft_ray.errors import RaftError
from raft_ray.runs.records import RunRecords


def info(sample_id: SampleId, version: int = 0, length: int = 3) -> SampleInfo:
    return SampleInfo(sample_id, version, length, length > 5, "rollout-0", 60, 0.5)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 20),
    batch=st.integers(1, 8),
    prompts=st.integers(1, 9),
    part=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_each_step_takes_its_rows_from_both_orders_and_every_prompt_once_in_an_epoch_of_its_own(
    rows: int, batch: int, prompts: int, part: int, seed: int
) -> None:
    plain = RowOrder(rows, batch, 3, seed)
    order = plain.with_rehearsal(prompts, part)
    assert order.steps == plain.steps
    assert order.rows_per_step == batch + part
    rehearsed: list[SampleId] = []
    for step in range(order.steps):
        both = order.batch_of(step)
        own = [each for each in both if order.owns(each)]
        assert own == plain.batch_of(step)
        assert both[: len(own)] == own
        assert len(both) - len(own) == part
        rehearsed += both[len(own) :]
    assert {each.row for each in rehearsed} <= set(range(rows, rows + prompts))
    assert len(set(rehearsed)) == len(rehearsed)
    for epoch in range(len(rehearsed) // prompts):
        assert {each.row for each in rehearsed if each.epoch == epoch} == set(range(rows, rows + prompts))


def test_a_longer_run_begins_as_a_shorter_one_does() -> None:
    short, long = (RowOrder(10, 4, epochs, 3).with_rehearsal(5, 3) for epochs in (1, 4))
    assert [short.batch_of(step) for step in range(2)] == [long.batch_of(step) for step in range(2)]
    assert (
        short.done(2)
        == long.done(2)
        == {
            **RowOrder(10, 4, 1, 3).done(2),
            "rehearsal_rows": 5,
            "rehearsal_batch": 3,
        }
    )


def test_the_prompts_order_is_none_of_the_rows_orders() -> None:
    order = RowOrder(50, 10, 1, 0).with_rehearsal(50, 10)
    own = [each.row for step in range(5) for each in order.batch_of(step)[:10]]
    rehearsed = [each.row - 50 for step in range(5) for each in order.batch_of(step)[10:]]
    assert sorted(own) == sorted(rehearsed)
    assert own != rehearsed


def test_without_rehearsal_an_order_is_what_it_was() -> None:
    order = RowOrder(10, 4, 2, 3)
    assert order.with_rehearsal(5, 0) is order
    assert order.done(1) == {"rows": 10, "batch": 4, "seed": 3, "position": 4}
    expected = np.random.default_rng([3, 0]).permutation(10)[:4]
    assert [each.row for each in order.batch_of(0)] == expected.tolist()


def test_both_kinds_go_through_one_ledger_within_one_bound_and_are_shared_over_ranks() -> None:
    order = RowOrder(rows=6, batch=2, epochs=2, seed=0).with_rehearsal(4, 2)
    ledger = Ledger(order, max_staleness=1)
    assert ledger.capacity.limit == 8
    trained: Counter[SampleId] = Counter()
    for step in range(order.steps):
        while (taken := ledger.take(3)) is not None:
            assert taken.step - step <= 1
            ledger.generated(taken, [3] * len(taken.sample_ids))
            ledger.scored(taken, [(info(each, step), None) for each in taken.sample_ids])
        for rank in range(2):
            shard = ledger.shard(step, rank, 2)
            assert shard is not None
            assert len(shard) == 2
            trained.update(each.sample_id for each, _ in shard)
        ledger.done(step)
    assert set(trained.values()) == {1}
    assert sum(order.owns(each) for each in trained) == 12
    assert sum(not order.owns(each) for each in trained) == 12


def test_a_step_goes_on_without_prompts_that_are_quarantined_but_not_without_rows_of_the_training_set() -> None:
    order = RowOrder(rows=2, batch=2, epochs=1, seed=0).with_rehearsal(2, 2)
    ledger = Ledger(order, 0, quarantined=[2, 3])
    taken = ledger.take(1)
    assert taken is not None
    assert {each.row for each in taken.sample_ids} == {0, 1}
    ledger.generated(taken, [3, 3])
    ledger.scored(taken, [(info(each), None) for each in taken.sample_ids])
    shard = ledger.shard(0, 0, 1)
    assert shard is not None
    assert len(shard) == 2

    ledger = Ledger(order, 0, quarantined=[0, 1])
    taken = ledger.take(1)
    assert taken is not None
    ledger.generated(taken, [3, 3])
    with pytest.raises(RaftError, match="engines died on each of its 2 rows"):
        ledger.shard(0, 0, 1)


def test_metrics_and_trace_tell_both_kinds_apart(tmp_path: Path) -> None:
    order = RowOrder(rows=4, batch=2, epochs=1, seed=0).with_rehearsal(3, 3)
    records = RunRecords(tmp_path, order)
    ids = order.batch_of(0)
    infos = [info(each, length=2 if order.owns(each) else 8) for each in ids]
    record: dict[str, Any] = {"seconds": {}, "rehearsal_kl": 0.25}
    records.add(0, infos, record)
    line = records.last
    assert line is not None
    assert (line["rows"], line["response_length"], line["truncated"]) == (2, 2, 0)
    assert (line["rehearsal_rows"], line["rehearsal_length"], line["rehearsal_truncated"]) == (3, 8, 1)
    assert line["rehearsal_kl"] == 0.25

    # Of a method whose own rows nobody samples.
    records.add(1, [info(each) for each in order.batch_of(1)[2:]], record)
    line = records.last
    assert (line["rows"], line["response_length"], line["rehearsal_length"]) == (2, None, 3)
    records.close()
    assert (tmp_path / "trace.jsonl").read_text().count('"version": null') == 2
