"""A run changes its number of rollout actors while it goes on, as its user or its policy wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from elastic_runs import every_row_once, raft_ray, running, state_of, wait_for
from listening import open_to_others
from run_files import lines

from raft_ray.config import Config

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]


def test_the_command_line_scales_a_run_up_and_down_and_shows_its_status(
    tmp_path: Path, socket_path: Path, make_config: MakeConfig
) -> None:
    folder = tmp_path / "run"
    keys = ("learner.max_steps=14", "learner.epochs=6", "sync.max_staleness=1", "sync.in_flight=true")
    # The test's ten CPUs have room for two actors beside the other roles.
    config = make_config(folder, *keys, "rollout.num_cpus=3")
    metrics = folder / "metrics.jsonl"
    with running(config, socket_path, 1, 9) as (thread, at):
        wait_for(at[1].came.is_set, thread)
        up = raft_ray("scale", str(folder), "--rollouts", "2")
        assert up.returncode == 0, up.stderr
        assert up.stdout == "rollout actors: 1 -> 2\n"
        wait_for(lambda: state_of(folder, "rollout-1").startswith(("waits", "load", "generate")), thread)
        at[1].left.set()
        wait_for(at[9].came.is_set, thread)
        assert '"rollout-1"' in (folder / "trace.jsonl").read_text()
        shown = raft_ray("status", str(folder), "--json")
        assert shown.returncode == 0, shown.stderr
        status = json.loads(shown.stdout)
        assert {actor["name"] for actor in status["actors"]} == {"rollout-0", "rollout-1", "teacher-0"}
        assert status["steps"] == 14
        assert status["queue"]["limit"] == 8
        assert "rollout-1" in raft_ray("status", str(folder)).stdout
        assert open_to_others(psutil.Process()) == []
        too_many = raft_ray("scale", str(folder), "--rollouts", "50")
        room = "2 now; 48 of 50 wait for room, each takes 3 CPUs"
        assert too_many.stdout == f"rollout actors: 2 -> 50 ({room})\n", too_many.stderr
        assert "48 of 50 wait for room" in raft_ray("status", str(folder)).stdout
        down = raft_ray("scale", str(folder), "--rollouts", "1")
        assert down.stdout == "rollout actors: 50 -> 1\n"
    every_row_once(folder, 14)
    trace = lines(folder / "trace.jsonl")
    assert {line["rollout"] for line in trace} == {"rollout-0", "rollout-1"}
    assert trace[-1]["rollout"] == "rollout-0"
    assert max(line["staleness_max"] for line in lines(metrics)) <= 1
    assert [line["text"] for line in lines(folder / "events.jsonl")] == [
        "1 -> 2 rollout actors",
        "2 -> 50 rollout actors",
        "50 -> 1 rollout actors",
    ]
    ended = raft_ray("status", str(folder))
    assert ended.returncode == 1
    assert "nothing trains in this run folder at the moment" in ended.stderr


def test_samples_do_not_depend_on_the_number_of_actors_when_chunks_are_fixed(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """So a run resumed on another number of rollout actors is the same run, bit for bit."""
    from actors.run import train

    weights = []
    for actors in (1, 2):
        folder = tmp_path / f"run-{actors}"
        train(make_config(folder, "learner.max_steps=2", "rollout.batch_rows=2", f"rollout.actors={actors}"))
        weights.append((folder / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
