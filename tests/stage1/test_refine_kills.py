"""SIGKILL in stage 1: the rows are those of an undisturbed run, and nothing that was finished is done again."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from interrupting import begun, interrupted
from listener import Listener, Rule, first_of, once
from refine_fixture import read_refined
from refine_runs import TINY_REFINE, make_config, refine, refined_folder, summary, tiny_rows

from raft_ray.config import Config, settings
from raft_ray.refine.schema import RefinedRow, part_files

ROWS = tiny_rows(14)


def config(folder: Path, **changes: Any) -> Config:
    return make_config(folder, ROWS, **(TINY_REFINE | {"workers": 1} | changes))


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RefinedRow], int]:
    """The rows, and the asks that a model had to answer for them."""
    whole = config(tmp_path_factory.mktemp("whole") / "run")
    rows = refine(whole)
    assert any(row["rounds"] for row in rows)
    return rows, summary(whole)["cache"]["misses"]


CASES: dict[str, list[Rule]] = {
    "engine": [once("refine-self-0", "generating"), once("refine-self-0", "generating", count=5)],
    "workers": [once("refine-rewrite", "working", 3), once("refine-fuse", "working", 6)],
    "cache and writer": [once("refine-cache", "writing", count=4), once("refine-write", "writing", 6)],
}


@pytest.mark.parametrize("case", CASES)
def test_killed_processes_change_nothing_in_the_rows(
    case: str, undisturbed: tuple[list[RefinedRow], int], tmp_path: Path, socket_path: Path
) -> None:
    rules = CASES[case]
    disturbed = config(tmp_path / "run")
    with Listener(socket_path, first_of(rules)) as listener:
        rows = refine(disturbed)
    assert len(listener.killed) == len(rules)
    assert rows == undisturbed[0]
    if case == "workers":
        # What a dead worker had been answered is in the cache: no model is asked again.
        assert summary(disturbed)["cache"]["misses"] == undisturbed[1]


@pytest.mark.timeout(1200)
def test_an_interrupted_and_a_killed_driver_are_started_again_and_ask_only_for_what_is_missing(
    undisturbed: tuple[list[RefinedRow], int], tmp_path: Path, socket_path: Path
) -> None:
    mine = config(tmp_path / "run", batch=3)
    mine.eval.enabled = False
    mine.rollout.max_new_tokens = 40
    settings.save(mine, tmp_path / "config.yaml")
    arguments = ["refine", str(tmp_path / "config.yaml")]

    driver, left, errors = interrupted(
        arguments, socket_path, once("refine-rewrite", "working", 3), signal.SIGINT, forked=True
    )
    # Before it Ray's core may have said something about its workers.
    assert (driver.returncode, errors.splitlines()[-1]) == (128 + signal.SIGINT, "interrupted; go on with --resume")
    assert "Traceback" not in errors
    assert left
    assert not psutil.wait_procs(left, timeout=60)[1]

    drivers: list[subprocess.Popen[str]] = []
    with Listener(socket_path, once("refine-fuse", "working", 9), act=lambda _: drivers[0].kill()) as listener:
        drivers.append(begun(*arguments, "--resume", socket=socket_path, forked=True))
        drivers[0].communicate(timeout=500)
        assert drivers[0].returncode == -signal.SIGKILL
    assert len(listener.killed) == 1
    finished = {file.name: file.stat().st_mtime_ns for file in part_files(refined_folder(mine))}

    done = begun(*arguments, "--resume", socket=None, forked=True)
    _, errors = done.communicate(timeout=500)
    assert done.returncode == 0, errors[-3000:]
    assert read_refined(refined_folder(mine)) == undisturbed[0]
    found = summary(mine)
    # All runs together asked for what the undisturbed one asked for.
    assert found["models"]["self"]["asks"] == undisturbed[1]
    assert 0 < found["cache"]["misses"] + found["cache"]["hits"] <= undisturbed[1]
    after = {file.name: file.stat().st_mtime_ns for file in part_files(refined_folder(mine))}
    assert {name: after[name] for name in finished} == finished
