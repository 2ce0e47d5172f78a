"""A node that joins the cluster takes the rollout actors that found no place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from elastic_runs import every_row_once, raft_ray, running, state_of, wait_for
from nodes import running_nodes
from run_files import lines

from raft_ray.config import Config

MakeConfig = Callable[..., Config]


@pytest.fixture
def full_cluster(forks: None) -> Iterator[Any]:
    """As many CPUs as one rollout actor, a teacher, a learner and the pipeline actor take."""
    with running_nodes(4) as (cluster, _):
        yield cluster


def kill(actor: str) -> None:
    """End the one process of an actor class, which Ray names so."""
    processes = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    (process,) = [one for one in processes if one.name().startswith(f"ray::{actor}")]
    process.kill()


def test_an_actor_without_a_place_waits_and_works_on_the_node_that_joins(
    full_cluster: Any, tmp_path: Path, socket_path: Path, make_config: MakeConfig
) -> None:
    """With `max_staleness=4`: while the learner waits at step 1 and at step 9, the actors are 4 steps ahead at most."""
    folder = tmp_path / "run"
    config = make_config(folder, "learner.max_steps=24", "learner.epochs=10", "sync.max_staleness=4")
    trace, events = folder / "trace.jsonl", folder / "events.jsonl"
    with running(config, socket_path, 1, 9) as (thread, at):
        wait_for(at[1].came.is_set, thread)
        room = "1 of 2 wait for room, each takes 1 CPUs"
        answer = raft_ray("scale", str(folder), "--rollouts", "2")
        assert answer.stdout == f"rollout actors: 1 -> 2 (1 now; {room})\n", answer.stderr
        # The teacher's CPU is free for a moment, and stays the teacher's.
        kill("TeacherActor")
        wait_for(lambda: "teacher-0" in events.read_text(), thread)
        at[1].left.set()
        # More rows than had been scored before: the new teacher works.
        wait_for(at[9].came.is_set, thread)
        status = json.loads(raft_ray("status", str(folder), "--json").stdout)
        assert {actor["name"] for actor in status["actors"]} == {"rollout-0", "teacher-0"}
        assert status["waits_for_room"] == room
        full_cluster.add_node(num_cpus=1)
        wait_for(lambda: state_of(folder, "rollout-1").startswith(("waits", "load", "generate")), thread)
    assert '"rollout-1"' in trace.read_text()
    every_row_once(folder, 24)
    ages = [line["staleness_max"] for line in lines(folder / "metrics.jsonl")]
    assert 1 < max(ages) <= 4
