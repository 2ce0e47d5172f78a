"""One run folder, one driver: who holds the lock, who may take it over, and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from raft_ray.errors import RaftError
from raft_ray.runs import lock
from raft_ray.runs.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from raft_ray.runs.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_driver_is_refused_and_told_who_is_there(tmp_path: Path, other_driver: subprocess.Popen[str]) -> None:
    with pytest.raises(RaftError, match=rf"run: process {other_driver.pid} on .*, since .* is at work there; end it"):
        locked(tmp_path / "run", print).__enter__()

    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == other_driver.pid


@pytest.mark.parametrize("reaped", [False, True])
def test_the_lock_of_a_driver_that_was_killed_is_taken_over_with_a_line(
    tmp_path: Path, other_driver: subprocess.Popen[str], reaped: bool
) -> None:
    other_driver.kill()
    if reaped:
        other_driver.wait()
    else:
        while psutil.Process(other_driver.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    said: list[str] = []

    with locked(tmp_path / "run", said.append):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()

    (line,) = said
    assert f"run.lock: its driver has died (process {other_driver.pid} on " in line
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_process_that_has_got_a_dead_drivers_number_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(lock._me(), started=1.0))))
    said: list[str] = []

    with locked(tmp_path, said.append):
        pass

    assert len(said) == 1


@pytest.mark.parametrize("text", ["whole", "torn"])
def test_a_driver_on_another_machine_lives_as_long_as_its_file_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.1)
    elsewhere = json.dumps(asdict(replace(lock._me(), host="node-7", machine="node-7 4c1f", pid=1)))
    path = tmp_path / LOCK
    path.write_text(elsewhere if text == "whole" else elsewhere[:30])
    over = threading.Event()

    def lives() -> None:
        while not over.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=lives)
    thread.start()
    said: list[str] = []
    try:
        with pytest.raises(RaftError, match="is at work there"):
            locked(tmp_path, said.append).__enter__()
    finally:
        over.set()
        thread.join()
    os.utime(path, (1.0, 1.0))
    with locked(tmp_path, said.append):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "waits for a sign of life" in said[0]
    assert "taken over" in said[-1]


def test_the_holder_keeps_its_lock_alive_and_stops_when_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    path = tmp_path / LOCK

    def work() -> None:
        with locked(tmp_path, print):
            os.utime(path, (1.0, 1.0))
            while path.stat().st_mtime == 1.0:
                time.sleep(0.01)
            path.write_text(json.dumps(asdict(replace(lock._me(), token="another"))))
            threading.Event().wait(60)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A program in the background may have to ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])

    assert json.loads(path.read_text())["token"] == "another"


def test_a_refusal_leaves_no_folder_behind_and_a_run_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "run"
    with pytest.raises(RaftError, match="too few CPUs"), locked(folder, print):
        raise RaftError("too few CPUs")
    assert list(tmp_path.iterdir()) == []

    with locked(folder, print):
        (folder / "config.yaml").touch()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
