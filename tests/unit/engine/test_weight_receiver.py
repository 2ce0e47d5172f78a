"""An engine serves nothing but a verified version: which updates are refused, and what it holds then. No vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import weight_sync
from actors.engine.weight_sync import WeightReceiver, WeightVersion
from raft_ray.config import SyncConfig
from raft_ray.distill.trajectory import Probe
from raft_ray.errors import RaftError

PROBE = Probe([1, 2], [3, 4], [-1.0, -2.0], allowed=0.02)
WEIGHTS = WeightVersion(7, SimpleNamespace(version=7), checksum=0xABC)
BASE = WeightVersion(0, SimpleNamespace(version=0), checksum=0xABC)
ADAPTER = WeightVersion(7, SimpleNamespace(version=7), checksum=0xDEF, base=BASE)


class FakeEngine:
    """Notes what is asked of it; `checksum` and `missing` are what its workers report, `found` its probabilities."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.checksum, self.missing, self.found = 0xABC, list[str](), [-1.0, -2.01]
        self.fails = False
        self.adapter_checksum, self.unused = 0xDEF, list[str]()
        self.llm: Any = self

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)

    def collective_rpc(self, method: str) -> list[tuple[int, list[str]]]:
        return [(0xABC, []), (self.checksum, self.missing)]

    def update_weights(self, info: Any) -> None:
        self.calls.append("update_weights")
        if self.fails:
            raise ValueError("no such parameter")

    def swap_adapter(self, packed: Any) -> list[tuple[int, list[str]]]:
        self.calls.append("swap_adapter")
        return [(0xDEF, []), (self.adapter_checksum, self.unused)]

    def logprobs(self, prompt: list[int], response: list[int]) -> list[float]:
        assert (prompt, response) == (PROBE.prompt, PROBE.answer)
        return self.found

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.calls.append("pause")
        yield
        self.calls.append("resume")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setattr(weight_sync, "here", lambda: "node-1")
    monkeypatch.setattr(weight_sync.ray, "get", lambda packed, timeout: packed)
    return FakeEngine()


def receiver(engine: FakeEngine, **sync: Any) -> WeightReceiver:
    return WeightReceiver("rollout-0", engine, SyncConfig(**sync))  # type: ignore[arg-type]


def test_an_engine_without_a_version_serves_nothing_and_one_with_a_verified_version_does(engine: FakeEngine) -> None:
    made = receiver(engine)
    with pytest.raises(RaftError, match="rollout-0 on node-1: asked to generate before it was given a weight version"):
        made.held()
    assert made.load_weights(replace(WEIGHTS, probe=PROBE)) >= 0
    assert made.held() == 7
    steps = ["weights_change", "start_weight_update", "update_weights", "finish_weight_update", "weights_changed"]
    assert engine.calls == ["pause", *steps, "resume"]


@pytest.mark.parametrize(
    ("reported", "message"),
    [
        ({"checksum": 0xABD}, r"version 7 \(checksum 00000abd\) arrived, checksum 00000abc was sent"),
        ({"missing": ["a.weight"]}, "version 7 lacks weights for a.weight"),
        ({"found": [-1.0, -2.1]}, "gives other log-probabilities than the learner, by 0.05 nats"),
        ({"found": [-1.0, float("nan")]}, "gives other log-probabilities than the learner, by nan nats"),
    ],
)
def test_other_weights_than_the_learners_are_refused_and_nothing_is_held(
    engine: FakeEngine, reported: dict[str, Any], message: str
) -> None:
    made = receiver(engine)
    made.load_weights(WEIGHTS)
    vars(engine).update(reported)
    with pytest.raises(RaftError, match=f"rollout-0 on node-1: .*{message}"):
        made.load_weights(replace(WEIGHTS, probe=PROBE))
    with pytest.raises(RaftError, match="before it was given a weight version"):
        made.held()


def test_an_engine_takes_up_the_base_once_and_every_adapter(engine: FakeEngine) -> None:
    made = receiver(engine)
    whole = ["weights_change", "start_weight_update", "update_weights", "finish_weight_update", "weights_changed"]
    made.load_weights(ADAPTER)
    assert made.held() == 7
    assert engine.calls == ["pause", *whole, "swap_adapter", "resume"]
    engine.calls.clear()
    # The learners have begun anew: another object with the same weights.
    again = replace(BASE, packed=None)
    made.load_weights(WeightVersion(8, SimpleNamespace(version=8), checksum=0xDEF, base=again, probe=PROBE))
    assert made.held() == 8
    assert engine.calls == ["pause", "swap_adapter", "resume", "forget_prefixes"]
    with pytest.raises(RaftError, match="checksum 00000abe was sent"):
        made.load_weights(replace(ADAPTER, base=replace(BASE, checksum=0xABE)))
    # What it holds is nobody's base.
    engine.calls.clear()
    made.load_weights(ADAPTER)
    assert engine.calls == ["pause", *whole, "swap_adapter", "resume"]


@pytest.mark.parametrize(
    ("reported", "message"),
    [
        ({"adapter_checksum": 0xDEE}, r"version 7 \(checksum 00000dee\) arrived, checksum 00000def was sent"),
        ({"unused": ["a.gate"]}, "vLLM's model has no layer a.gate for the adapter; set sync.adapter=merged"),
        ({"found": [-1.0, -2.1]}, r"by 0.05 nats .*sync.adapter=merged"),
    ],
)
def test_an_adapter_that_is_not_the_learners_or_is_left_out_is_refused(
    engine: FakeEngine, reported: dict[str, Any], message: str
) -> None:
    made = receiver(engine)
    made.load_weights(ADAPTER)
    vars(engine).update(reported)
    with pytest.raises(RaftError, match=f"rollout-0 on node-1: .*{message}"):
        made.load_weights(replace(ADAPTER, probe=PROBE))
    with pytest.raises(RaftError, match="before it was given a weight version"):
        made.held()


def test_without_checksums_nothing_is_compared_but_the_probe(engine: FakeEngine) -> None:
    made = receiver(engine, checksum=False)
    engine.checksum = 0
    made.load_weights(WEIGHTS)
    assert made.held() == 7
    engine.found = [0.0, 0.0]
    with pytest.raises(RaftError, match="log-probabilities"):
        made.load_weights(replace(WEIGHTS, probe=PROBE))


def test_packed_weights_of_another_version_are_refused_before_anything_stops(engine: FakeEngine) -> None:
    made = receiver(engine)
    with pytest.raises(RaftError, match="weights of version 7 arrived, version 8 was announced"):
        made.load_weights(replace(WEIGHTS, version=8))
    assert engine.calls == []


def test_a_push_to_another_group_is_refused_and_one_that_broke_off_leaves_no_version(engine: FakeEngine) -> None:
    made = receiver(engine)
    with pytest.raises(RaftError, match="version 7 is sent to weight-sync group 2, this actor is in none"):
        made.start_update(7, 2)
    made.join(2, {})
    made.start_update(7, 2)
    made.receive({})
    made.finish_update(7, 0xABC)
    assert made.held() == 7
    with pytest.raises(RaftError, match="group 3, this actor is in group 2"):
        made.start_update(8, 3)
    engine.fails = True
    made.start_update(8, 2)
    with pytest.raises(ValueError, match="no such parameter"):
        made.receive({})
    with pytest.raises(RaftError, match="before it was given a weight version"):
        made.held()


def test_an_update_that_was_left_open_is_ended_before_the_next(engine: FakeEngine) -> None:
    made = receiver(engine)
    made.join(1, {})
    made.start_update(7, 1)
    engine.calls.clear()
    made.start_update(8, 1)
    assert engine.calls == ["finish_weight_update", "weights_change", "start_weight_update"]
