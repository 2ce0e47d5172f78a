"""Ctrl-C and SIGTERM at the command line, in one stage after the other: the run goes on to what it had been without."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from interrupting import begun, interrupted
from listener import once
from run_files import outcome

from raft_ray.config import Config, settings

MakeConfig = Callable[..., Config]
KEYS = ("learner.max_steps=3", "learner.checkpoint_every=1", "rollout.batch_rows=2")
STAGES: list[tuple[str, str, int | None, int]] = [
    ("rollout-0", "loading", 0, signal.SIGINT),
    ("learner-0", "backward", 2, signal.SIGTERM),
    ("export", "writing", None, signal.SIGINT),
    ("evaluate", "answering", None, signal.SIGINT),
]


@pytest.mark.timeout(1800)
def test_a_signal_in_any_stage_leaves_nothing_behind_and_the_run_goes_on_exactly(
    forks: None, make_config: MakeConfig, tmp_path: Path, socket_path: Path
) -> None:
    """The first process and the whole run start as users start them, the others with forks."""
    folder = tmp_path / "run"
    config = make_config(
        folder, *KEYS, "eval.enabled=true", "data.test=domain:chemistry", "eval.domain_rows=2", "eval.ifeval_rows=0"
    )
    settings.save(config, tmp_path / "config.yaml")
    arguments = ["run", str(tmp_path / "config.yaml")]
    for who, state, step, number in STAGES:
        forked = "--resume" in arguments
        driver, left, errors = interrupted(arguments, socket_path, once(who, state, step), number, forked=forked)
        assert driver.returncode == 128 + number, (who, errors)
        # A resumed run says first which checkpoint it deletes as unfinished.
        *before, line = errors.splitlines()
        assert line == "interrupted; go on with --resume"
        assert all(said.endswith("not a registered checkpoint, deleted") for said in before), errors
        assert left
        _, alive = psutil.wait_procs(left, timeout=60)
        assert not alive, (who, alive)
        # Where the signal comes while the model is written it may be there, but then whole.
        if who != "export" or (folder / "model").exists():
            assert (folder / "model" / "raft_ray.json").exists() == (who in ("export", "evaluate"))
        assert not (folder / "eval.json").exists()
        assert not (folder / "report.html").exists()
        assert not (folder / "cluster.json").exists()
        arguments = ["run", str(tmp_path / "config.yaml"), "--resume"]
    driver = begun(*arguments, socket=None, forked=True)
    _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors
    assert (folder / "report.html").exists()
    assert outcome(folder) == whole(make_config, tmp_path)


def whole(make_config: MakeConfig, tmp_path: Path) -> dict[str, Any]:
    """The run that nobody disturbs."""
    settings.save(make_config(tmp_path / "whole", *KEYS), tmp_path / "whole.yaml")
    driver = begun("train", str(tmp_path / "whole.yaml"), socket=None)
    _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors
    return outcome(tmp_path / "whole")
