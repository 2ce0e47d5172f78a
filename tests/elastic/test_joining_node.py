"""A node that joins the cluster takes the rollout actors that found no place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elastic_runs import every_row_once, raft_ray, running, wait_for
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
    full_cluster: Any, tmp_path: Path, make_config: MakeConfig
) -> None:
    """With `max_staleness=4`, for which the learner never waits long."""
    folder = tmp_path / "run"
    config = make_config(folder, "learner.max_steps=600", "learner.epochs=600", "sync.max_staleness=4")
    trace = folder / "trace.jsonl"
    with running(config) as thread:
        wait_for(lambda: trace.exists() and len(trace.read_text().splitlines()) >= 1, thread)
        assert raft_ray("scale", str(folder), "--rollouts", "2").returncode == 0
        status = json.loads(raft_ray("status", str(folder), "--json").stdout)
        assert {actor["name"]: actor["state"] for actor in status["actors"]}["rollout-1"].startswith("start")
        assert not any(line["rollout"] == "rollout-1" for line in lines(trace))
        full_cluster.add_node(num_cpus=1)
        wait_for(lambda: '"rollout-1"' in trace.read_text(), thread)
    every_row_once(folder, 600)
    ages = [line["staleness_max"] for line in lines(folder / "metrics.jsonl")]
    assert 1 < max(ages) <= 4
