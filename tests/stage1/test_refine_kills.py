"""SIGKILL in stage 1: the rows are those of an undisturbed run, and nothing that was finished is done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from listener import Listener, Rule, Said, first_of, once
from refine_runs import TINY_REFINE, make_config, refine, refined_folder, summary, tiny_rows

from raft_ray import settings
from raft_ray.announce import VARIABLE
from raft_ray.config import Config
from raft_ray.refine import read_refined
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
def test_a_killed_driver_is_started_again_and_asks_only_for_what_is_missing(
    undisturbed: tuple[list[RefinedRow], int], tmp_path: Path, socket_path: Path
) -> None:
    mine = config(tmp_path / "run", batch=3)
    mine.eval.enabled = False
    mine.rollout.max_new_tokens = 40
    settings.save(mine, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "raft_ray", "refine", str(tmp_path / "config.yaml")]
    # A Ray of its own: RAY_ADDRESS of this test's cluster must not reach it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    driver: list[subprocess.Popen[bytes]] = []

    def kill(_: Said) -> None:
        driver[0].kill()

    with Listener(socket_path, once("refine-fuse", "working", 9), act=kill) as listener:
        driver.append(
            subprocess.Popen(command, env={**environment, VARIABLE: str(socket_path)}, stdout=subprocess.DEVNULL)
        )
        assert driver[0].wait(timeout=500) == -signal.SIGKILL
    assert len(listener.killed) == 1
    finished = {file.name: file.stat().st_mtime_ns for file in part_files(refined_folder(mine))}
    done = subprocess.run(
        [*command, "--resume"], env=environment, timeout=500, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_refined(refined_folder(mine)) == undisturbed[0]
    found = summary(mine)
    # Both runs together asked for what the undisturbed one asked for.
    assert found["models"]["self"]["asks"] == undisturbed[1]
    assert 0 < found["cache"]["misses"] + found["cache"]["hits"] <= undisturbed[1]
    after = {file.name: file.stat().st_mtime_ns for file in part_files(refined_folder(mine))}
    assert {name: after[name] for name in finished} == finished
