"""SIGKILL at chosen states. Each run must end as the one that nothing disturbed, bit for bit, and say what happened.

`max_staleness=0` throughout: there the bar is equality of metrics, trace and weights, which also shows that every
row of an epoch was consumed exactly once.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from listener import Listener, Rule, Said, first_of, once
from ray_head import running_head
from run_files import lines, outcome

from raft_ray.announce import VARIABLE
from raft_ray.config import Config
from raft_ray.errors import RaftError

MakeConfig = Callable[..., Config]
KEYS = ("learner.max_steps=4", "learner.checkpoint_every=2")
pytestmark = pytest.mark.timeout(1200)


def train(config: Config) -> Path:
    from actors.run import train as train_model

    return train_model(config).parent


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, undisturbed_run: Path) -> dict[str, Any]:
    return outcome(undisturbed_run)


CASES: dict[str, list[Rule]] = {
    "rollout idle, generating and loading weights, teacher scoring": [
        once("learner-0", "forward", 0, victim="rollout-0"),
        once("rollout-0", "generating", 1),
        once("rollout-0", "loading", 2),
        once("teacher-0", "scoring", count=4),
    ],
    "learner in forward, in backward and during a checkpoint": [
        once("learner-0", "backward", 1),
        once("learner-0", "checkpoint", 2),
        once("learner-0", "forward", 3),
    ],
    "pipeline": [once("pipeline", "publish", 3)],
}


@pytest.mark.parametrize("case", CASES)
def test_killed_processes_change_nothing_in_the_result(
    case: str,
    undisturbed: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = CASES[case]
    with Listener(socket_path, first_of(rules)) as listener:
        folder = train(make_config(tmp_path / "run", *KEYS, "learner.max_restarts=3"))
    assert len(listener.killed) == len(rules)
    found = outcome(folder)
    assert found["metrics"] == undisturbed["metrics"]
    assert found["trace"] == undisturbed["trace"]
    assert found["weights"] == undisturbed["weights"]
    victims = [said["victim"] for said in listener.killed if said["victim"].startswith(("rollout", "teacher"))]
    events = lines(folder / "events.jsonl") if victims else []
    assert [event["who"] for event in events if event["what"] == "lost"] == victims
    for previous, said in pairwise([said for said in listener.heard if said["who"] == "rollout-0"]):
        if said["pid"] != previous["pid"]:
            assert said["state"] == "loading", "a new engine asks for weights before it generates"


def test_a_learner_and_a_pipeline_that_hang_are_noticed_replaced_and_change_nothing(
    undisturbed: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
    socket_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(said: Said) -> None:
        os.kill(said["pid"], signal.SIGSTOP)

    rules = first_of([once("learner-0", "backward", 1), once("pipeline", "publish", 3)])
    with Listener(socket_path, rules, act=stop) as listener:
        folder = train(make_config(tmp_path / "run", *KEYS, "learner.max_restarts=3", "learner.timeout=45"))
    assert len(listener.killed) == 2
    assert outcome(folder) == undisturbed
    said = capsys.readouterr().out.replace("\n", " ")
    assert re.search(r"the pipeline actor on \S+ has not answered since .*: killed, so that Ray starts it again", said)


def test_a_row_that_kills_every_engine_is_quarantined_and_the_run_goes_on(
    undisturbed: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisoned = undisturbed["trace"][5]["row"]

    def rule(said: Said) -> str | None:
        return said["who"] if said["state"] == "generating" and poisoned in said["rows"] else None

    with Listener(socket_path, rule) as listener:
        folder = train(make_config(tmp_path / "run", *KEYS))
    # Twice with its rollout batch, once alone.
    assert [len(said["rows"]) for said in listener.killed] == [4, 4, 1]
    (aside,) = lines(folder / "quarantined.jsonl")
    assert aside["row"] == poisoned
    assert "rollout-0" in aside["cause"]
    assert len(lines(folder / "metrics.jsonl")) == 4
    trained = Counter((line["epoch"], line["row"]) for line in lines(folder / "trace.jsonl"))
    expected = Counter((line["epoch"], line["row"]) for line in undisturbed["trace"] if line["row"] != poisoned)
    assert trained == expected


def test_an_actor_that_dies_again_and_again_stops_the_run_by_name_node_and_cause(
    ray_cluster: None, make_config: MakeConfig, tmp_path: Path, socket_path: Path
) -> None:
    def rule(said: Said) -> str | None:
        return said["who"] if said["state"] == "loading" else None

    with Listener(socket_path, rule) as listener, pytest.raises(RaftError) as caught:
        train(make_config(tmp_path / "run", *KEYS, "rollout.max_restarts=1"))
    assert len(listener.killed) == 2
    message = str(caught.value)
    assert "rollout-0 on " in message
    assert "died while loading weights of version 0" in message
    assert "rollout.max_restarts=1" in message


def test_a_submitted_job_whose_driver_is_killed_is_submitted_again_and_goes_on(
    undisturbed: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
    socket_path: Path,
) -> None:
    """On a cluster that outlives both jobs, with the same run folder."""
    from raft_ray.config import settings

    settings.save(make_config(tmp_path / "run", *KEYS), tmp_path / "config.yaml")
    arguments = ("train", str(tmp_path / "config.yaml"))
    with running_head(tmp_path) as head:

        def kill(_: Said) -> None:
            os.kill(head.driver_pid(), signal.SIGKILL)

        with Listener(socket_path, once("learner-0", "forward", 3), act=kill) as listener:
            first = head.submit(*arguments, timeout=500, env_vars={VARIABLE: str(socket_path)})
        assert len(listener.killed) == 1
        assert first.returncode != 0
        assert "failed" in first.stdout + first.stderr
        assert not (tmp_path / "run" / "model").exists()
        second = head.submit(*arguments, "--resume", timeout=500)
    assert second.returncode == 0, (second.stdout + second.stderr)[-3000:]
    assert outcome(tmp_path / "run") == undisturbed
