"""Ctrl-C and SIGTERM at the command line, in one stage after the other: the run goes on to what it had been without."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from interrupting import begun, interrupted
from listener import once
from run_files import outcome

from raft_ray.config import Config, settings

MakeConfig = Callable[..., Config]
KEYS = ("learner.max_steps=4", "learner.checkpoint_every=2")
"""Those of `undisturbed_run`."""
STAGES: list[tuple[str, str, int | None, int]] = [
    ("rollout-0", "loading", 0, signal.SIGINT),
    ("learner-0", "backward", 3, signal.SIGTERM),
    ("export", "writing", None, signal.SIGINT),
    ("evaluate", "answering", None, signal.SIGINT),
]


@pytest.mark.timeout(1800)
def test_a_signal_in_any_stage_leaves_nothing_behind_and_the_run_goes_on_exactly(
    forks: None, undisturbed_run: Path, make_config: MakeConfig, tmp_path: Path, socket_path: Path
) -> None:
    """The process that trains the first steps starts as users start it, the others with forks."""
    folder = tmp_path / "run"
    config = make_config(
        folder, *KEYS, "eval.enabled=true", "data.test=domain:chemistry", "eval.domain_rows=2", "eval.ifeval_rows=0"
    )
    settings.save(config, tmp_path / "config.yaml")
    arguments = ["run", str(tmp_path / "config.yaml")]
    for who, state, step, number in STAGES:
        forked = who != "learner-0"
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
    assert outcome(folder) == outcome(undisturbed_run)
