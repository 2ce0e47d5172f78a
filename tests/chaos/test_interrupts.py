"""Ctrl-C and SIGTERM at the command line, in one stage after the other: nothing stays behind, and the run can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from listener import Listener, Rule, Said, once

from raft_ray import settings
from raft_ray.announce import VARIABLE
from raft_ray.config import Config

MakeConfig = Callable[..., Config]
KEYS = ("learner.max_steps=3", "learner.checkpoint_every=1", "rollout.chunk_rows=2")
STAGES: list[tuple[str, str, int | None, int]] = [
    ("rollout-0", "loading", 0, signal.SIGINT),
    ("learner-0", "backward", 2, signal.SIGTERM),
]


def begun(*arguments: str, socket: Path | None) -> subprocess.Popen[str]:
    """The command in a process group of its own, which a terminal would send its Ctrl-C to."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "raft_ray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment | ({VARIABLE: str(socket)} if socket else {}),
    )


def interrupted(
    arguments: list[str], socket: Path, rule: Rule, number: int
) -> tuple[subprocess.Popen[str], list[psutil.Process], str]:
    """Send the command a signal at the state of the rule; returns it when it has ended, the processes that it had
    started, and what it wrote to stderr."""
    drivers: list[subprocess.Popen[str]] = []
    started: list[psutil.Process] = []

    def send(_: Said) -> None:
        pid = drivers[0].pid
        started.extend(psutil.Process(pid).children(recursive=True))
        # A terminal sends its Ctrl-C to the whole group, a supervisor its SIGTERM to the one process.
        (os.killpg if number == signal.SIGINT else os.kill)(pid, number)

    with Listener(socket, rule, act=send) as listener:
        drivers.append(begun(*arguments, socket=socket))
        try:
            _, errors = drivers[0].communicate(timeout=500)
        finally:
            drivers[0].kill()
    assert len(listener.killed) == 1, errors
    return drivers[0], started, errors


@pytest.mark.timeout(1800)
def test_a_signal_in_any_stage_leaves_nothing_behind_and_the_run_can_go_on(
    make_config: MakeConfig, tmp_path: Path, socket_path: Path
) -> None:
    folder = tmp_path / "run"
    config = make_config(
        folder, *KEYS, "eval.enabled=true", "data.test=domain:chemistry", "eval.domain_rows=2", "eval.ifeval_rows=0"
    )
    settings.save(config, tmp_path / "config.yaml")
    arguments = ["run", str(tmp_path / "config.yaml")]
    for who, state, step, number in STAGES:
        driver, left, errors = interrupted(arguments, socket_path, once(who, state, step), number)
        assert driver.returncode == 128 + number, (who, errors)
        # A resumed run says first which checkpoint it deletes as unfinished.
        *before, line = errors.splitlines()
        assert line == "interrupted; go on with --resume"
        assert all(said.endswith("not a registered checkpoint, deleted") for said in before), errors
        assert left
        _, alive = psutil.wait_procs(left, timeout=60)
        assert not alive, (who, alive)
        assert not (folder / "model").exists()
        assert not (folder / "eval.json").exists()
        assert not (folder / "report.html").exists()
        assert not (folder / "cluster.json").exists()
        arguments = ["run", str(tmp_path / "config.yaml"), "--resume"]
