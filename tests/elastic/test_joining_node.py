"""A node that joins the cluster takes the rollout actors that found no place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from elastic_runs import every_row_once, raft_ray, running, wait_for
from nodes import running_nodes
from run_files import lines

from raft_ray.config import Config

MakeConfig = Callable[..., Config]
ON_THE_WAY = 5 * 4
"""Most rows that were scored before: `(max_staleness + 1) · batch`."""


@pytest.fixture
def full_cluster() -> Iterator[Any]:
    """As many CPUs as one rollout actor, a teacher, a learner and the pipeline actor take."""
    with running_nodes(4) as (cluster, _):
        yield cluster


def kill(actor: str) -> None:
    """End the one process of an actor class, which Ray names so."""
    processes = psutil.Process().children(recursive=True)
    (process,) = [one for one in processes if " ".join(one.cmdline()).startswith(f"ray::{actor}")]
    process.kill()


def test_an_actor_without_a_place_waits_and_works_on_the_node_that_joins(
    full_cluster: Any, tmp_path: Path, make_config: MakeConfig
) -> None:
    """With `max_staleness=4`, for which the learner never waits long."""
    folder = tmp_path / "run"
    config = make_config(folder, "learner.max_steps=600", "learner.epochs=600", "sync.max_staleness=4")
    trace, events = folder / "trace.jsonl", folder / "events.jsonl"
    with running(config) as thread:
        wait_for(lambda: trace.exists() and len(trace.read_text().splitlines()) >= 1, thread)
        room = "1 of 2 wait for room, each takes 1 CPUs"
        answer = raft_ray("scale", str(folder), "--rollouts", "2")
        assert answer.stdout == f"rollout actors: 1 -> 2 (1 now; {room})\n", answer.stderr
        # The teacher's CPU is free for a moment, and stays the teacher's.
        kill("TeacherActor")
        wait_for(lambda: "teacher-0" in events.read_text(), thread)
        done = len(trace.read_text().splitlines())
        wait_for(lambda: len(trace.read_text().splitlines()) > done + ON_THE_WAY, thread)
        status = json.loads(raft_ray("status", str(folder), "--json").stdout)
        assert {actor["name"] for actor in status["actors"]} == {"rollout-0", "teacher-0"}
        assert status["waits_for_room"] == room
        full_cluster.add_node(num_cpus=1)
        wait_for(lambda: '"rollout-1"' in trace.read_text(), thread)
    every_row_once(folder, 600)
    ages = [line["staleness_max"] for line in lines(folder / "metrics.jsonl")]
    assert 1 < max(ages) <= 4
