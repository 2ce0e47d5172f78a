"""The real pipeline actor among rollout and teacher actors of the test's own that do no work: order, holding, loss."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.distill.pipeline import PipelineActor
from actors.engine.weight_sync import WeightVersion
from raft_ray.config import Config
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import RolloutBatch, Sample, SampleInfo, Trajectory
from raft_ray.models.prompts import EncodedRow

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]
LIMIT = 300
TABLE = {row: EncodedRow(row, [1], [2], [3]) for row in range(12)}


@pytest.fixture(scope="module", autouse=True)
def workers_get_this_module_by_value() -> Iterator[None]:
    """They cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class IdleRollout:
    """Says one token to everything, and keeps a diary."""

    def __init__(self, name: str) -> None:
        self._name, self._version = name, -1
        self.diary: list[str] = []

    def ready(self) -> str:
        return "here"

    def load_weights(self, weights: WeightVersion) -> float:
        self.diary.append(f"load {weights.version}")
        self._version = weights.version
        return 0.0

    def pushed(self, version: int) -> None:
        """What a back end that pushes does to a held actor."""
        self.diary.append(f"pushed {version}")
        self._version = version

    def generate(self, batch: RolloutBatch) -> tuple[list[SampleInfo], list[Trajectory]]:
        self.diary.append(f"generate {batch.step}")
        ids = np.zeros(1, dtype=np.int32)
        made = [Trajectory(place, self._version, ids, False, self._name) for place in batch.sample_ids]
        return [each.info for each in made], made

    def read(self) -> list[str]:
        return self.diary


class PatientRollout(IdleRollout):
    """Is not done with a rollout batch of step 1 before it has been given version 1."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._came = threading.Event()

    def load_weights(self, weights: WeightVersion) -> float:
        seconds = super().load_weights(weights)
        if weights.version == 1:
            self._came.set()
        return seconds

    def generate(self, batch: RolloutBatch) -> tuple[list[SampleInfo], list[Trajectory]]:
        if batch.step == 1:
            assert self._came.wait(LIMIT)
        return super().generate(batch)


class IdleTeacher:
    def ready(self) -> str:
        return "here"

    def score(self, trajectories: list[Trajectory]) -> list[object]:
        ids, values = np.zeros((1, 1), dtype=np.int32), np.zeros((1, 1), dtype=np.float16)
        samples = [Sample(t, ids, values) for t in trajectories]
        infos = [SampleInfo(t.sample_id, t.version, 1, False, t.rollout, 6, 1.0) for t in trajectories]
        return [(infos, 0.0), *samples]


def rollout(table: list[Any], name: str) -> Any:
    del table
    return ray.remote(IdleRollout).options(num_cpus=0).remote(name)


def patient(table: list[Any], name: str) -> Any:
    del table
    return ray.remote(PatientRollout).options(num_cpus=0, max_concurrency=2).remote(name)


def teacher(table: list[Any], name: str) -> Any:
    del table, name
    return ray.remote(IdleTeacher).options(num_cpus=0).remote()


@pytest.fixture
def start(tmp_path: Path, make_config: MakeConfig) -> Iterator[Callable[..., Any]]:
    """`start(*overrides)`: a pipeline actor that has begun at step 0; four rows per step, three steps."""
    started = []

    def start(*overrides: str, make: Callable[..., Any] = rollout) -> Any:
        config = make_config(tmp_path / "run", *overrides)
        order = RowOrder(rows=12, batch=4, epochs=1, seed=0)
        pipeline: Any = (
            ray.remote(PipelineActor).options(num_cpus=0).remote(config, order, str(tmp_path / "run"), make, teacher)
        )
        started.append(pipeline)
        ray.get(pipeline.begin.remote(WeightVersion(0, ray.put("weights")), [ray.put(TABLE)]), timeout=LIMIT)
        return pipeline

    yield start
    for pipeline in started:
        ray.kill(pipeline)


def take(pipeline: Any, step: int) -> list[SampleInfo]:
    batch = ray.get(pipeline.next_batch.remote(step, 0, 1), timeout=LIMIT)
    return [info for info, _, _ in batch]


def states(pipeline: Any) -> dict[str, str]:
    """Of the rollout actors."""
    actors = ray.get(pipeline.status.remote(), timeout=LIMIT)["actors"]
    return {actor["name"]: actor["state"] for actor in actors if actor["name"].startswith("rollout")}


def publish(pipeline: Any, version: int, packed: Any) -> None:
    record = {"tokens": 1, "seconds": {"total": 1.0}}
    ray.get(pipeline.publish.remote(WeightVersion(version, packed, nbytes=10**6), record), timeout=LIMIT)


def test_held_actors_rest_until_the_pushed_version_is_published_and_then_serve_it(start: Callable[..., Any]) -> None:
    pipeline = start("rollout.actors=2", "sync.max_staleness=1")
    assert len(take(pipeline, 0)) == 4
    # One that still starts is left out of a push.
    give_up = time.monotonic() + LIMIT
    while set(states(pipeline).values()) != {"waits for slots"} and time.monotonic() < give_up:
        time.sleep(0.1)
    handles = ray.get(pipeline.hold.remote(1), timeout=LIMIT)
    assert set(handles) == {"rollout-0", "rollout-1"}
    before = {name: ray.get(handle.read.remote(), timeout=LIMIT) for name, handle in handles.items()}
    assert states(pipeline) == {"rollout-0": "waits for slots", "rollout-1": "waits for slots"}
    for name, handle in handles.items():
        ray.get(handle.pushed.remote(1), timeout=LIMIT)
        # Nobody has called it since it was held.
        assert ray.get(handle.read.remote(), timeout=LIMIT) == [*before[name], "pushed 1"]
    publish(pipeline, 1, None)
    # Two versions of the weights count, also where they were pushed.
    assert ray.get(pipeline.progress.remote(), timeout=LIMIT)["last"]["object_store_peak"] >= 2 * 10**6
    assert len(take(pipeline, 1)) == 4
    assert {info.version for info in take(pipeline, 1)} <= {0, 1}
    ray.get(pipeline.hold.remote(2), timeout=LIMIT)
    publish(pipeline, 2, None)
    versions = {info.version for info in take(pipeline, 2)}
    assert versions <= {1, 2}
    for handle in handles.values():
        # An actor that got no rollout batch of step 0 was pushed version 1 before it had loaded any.
        diary = ray.get(handle.read.remote(), timeout=LIMIT)
        assert {line for line in diary if line.startswith("load")} <= {"load 0"}


def test_an_actor_that_is_busy_is_offered_new_weights_where_they_may_come_in_flight(start: Callable[..., Any]) -> None:
    pipeline = start("sync.max_staleness=1", "sync.in_flight=true", make=patient)
    assert {info.version for info in take(pipeline, 0)} == {0}
    publish(pipeline, 1, ray.put("weights"))
    # Without the offer its rollout batch would never end.
    assert {info.version for info in take(pipeline, 1)} == {1}
    publish(pipeline, 2, ray.put("weights"))
    assert {info.version for info in take(pipeline, 2)} <= {1, 2}


def test_samples_that_a_learner_cannot_fetch_are_made_again(start: Callable[..., Any]) -> None:
    pipeline = start()
    before = take(pipeline, 0)
    ray.get(pipeline.lost.remote(0, [before[1].sample_id.row]), timeout=LIMIT)
    after = take(pipeline, 0)
    assert [info.sample_id for info in after] == [info.sample_id for info in before]
    status = ray.get(pipeline.status.remote(), timeout=LIMIT)
    assert status["queue"] == {"in_flight": 0, "ready": 4, "limit": 4, "came_back": 0, "quarantined": 0}
    (rows,) = [actor["rows"] for actor in status["actors"] if actor["name"] == "rollout-0"]
    # With all of its rollout batch, since they depend on each other.
    assert rows == 8


def test_a_row_quarantined_before_does_not_keep_its_step_waiting(start: Callable[..., Any], tmp_path: Path) -> None:
    order = RowOrder(rows=12, batch=4, epochs=1, seed=0)
    last = order.batch_of(0)[-1]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "quarantined.jsonl").write_text(
        json.dumps({"row": last.row, "step": 0, "cause": "test"}) + "\n"
    )
    pipeline = start("rollout.batch_rows=1", "learner.timeout=30")
    assert [info.sample_id for info in take(pipeline, 0)] == order.batch_of(0)[:-1]


def test_after_a_new_beginning_an_actor_takes_up_the_version_that_it_held_before(start: Callable[..., Any]) -> None:
    """The steps that made the old one are undone."""
    pipeline = start("sync.max_staleness=1")
    take(pipeline, 0)
    (handle,) = ray.get(pipeline.hold.remote(1), timeout=LIMIT).values()
    ray.get(pipeline.begin.remote(WeightVersion(0, ray.put("weights")), [ray.put(TABLE)]), timeout=LIMIT)
    take(pipeline, 0)
    diary = ray.get(handle.read.remote(), timeout=LIMIT)
    assert [line for line in diary if line.startswith("load")] == ["load 0", "load 0"]


def test_scaling_by_less_than_one_is_refused(start: Callable[..., Any]) -> None:
    pipeline = start()
    with pytest.raises(ray.exceptions.RayTaskError, match="at least one rollout actor must stay"):
        ray.get(pipeline.scale.remote(0), timeout=LIMIT)
