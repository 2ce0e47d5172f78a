"""A node that joins the cluster takes the rollout actors that found no place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elastic_runs import every_row_once, raft_ray, running, state_of, wait_for
from nodes import running_nodes
from run_files import lines

from raft_ray.config import Config

MakeConfig = Callable[..., Config]


@pytest.fixture
def full_cluster() -> Iterator[Any]:
    """As many CPUs as one rollout actor, a teacher, a learner and the pipeline actor take."""
    with running_nodes(4) as (cluster, _):
        yield cluster


def test_an_actor_without_a_place_waits_and_works_on_the_node_that_joins(
    full_cluster: Any, tmp_path: Path, socket_path: Path, make_config: MakeConfig
) -> None:
    """With `max_staleness=4`: while the learner waits at step 1, the only rollout actor goes on to step 5."""
    folder = tmp_path / "run"
    config = make_config(folder, "learner.max_steps=14", "learner.epochs=6", "sync.max_staleness=4")
    trace = folder / "trace.jsonl"
    with running(config, socket_path, 1) as (thread, at):
        wait_for(at[1].came.is_set, thread)
        assert raft_ray("scale", str(folder), "--rollouts", "2").returncode == 0
        status = json.loads(raft_ray("status", str(folder), "--json").stdout)
        assert {actor["name"]: actor["state"] for actor in status["actors"]}["rollout-1"].startswith("start")
        assert not any(line["rollout"] == "rollout-1" for line in lines(trace))
        full_cluster.add_node(num_cpus=1)
        wait_for(lambda: state_of(folder, "rollout-1").startswith(("waits", "load", "generate")), thread)
    assert '"rollout-1"' in trace.read_text()
    every_row_once(folder, 14)
    ages = [line["staleness_max"] for line in lines(folder / "metrics.jsonl")]
    assert 1 < max(ages) <= 4
