"""What is known of the processes of a local Ray; no Ray started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.runtime import cluster
from actors.runtime.cluster import socket_folders
from raft_ray.config import settings
from raft_ray.errors import RaftError

LISTENS = """
import sys, time
from multiprocessing.connection import Listener
listener = Listener(family="AF_UNIX")
print(listener.address, flush=True)
time.sleep(600)
"""


def test_the_folders_in_which_a_child_listens_are_found_and_nobody_elses() -> None:
    before = socket_folders()
    child = subprocess.Popen([sys.executable, "-c", LISTENS], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        address = Path(child.stdout.readline().strip())
        assert socket_folders() - before == {address.parent}
    finally:
        child.kill()
        child.wait()
    address.unlink()
    address.parent.rmdir()


def test_a_ray_that_does_not_come_up_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def late(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "private_token", lambda: None)
    with pytest.raises(RaftError, match=r"^no local Ray has started \(The current node timed out .*\); try again"):
        cluster.start(settings.load("smoke", ["data.train=train.jsonl"]))
