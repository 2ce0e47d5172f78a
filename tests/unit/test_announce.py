"""Announcements: nothing without a listener, and with one the process waits for its leave."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from raft_ray.announce import VARIABLE, announce


def test_nothing_happens_unless_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    announce("rollout-0", "generating", 3)


def test_the_process_waits_until_the_listener_has_read_and_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setenv(VARIABLE, str(path))
    going_on = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: (announce("rollout-0", "generating", 3), going_on.set()))
        thread.start()
        connection, _ = listener.accept()
        with connection, connection.makefile() as lines:
            line = json.loads(lines.readline())
            assert not going_on.is_set()
        thread.join(timeout=30)
    assert going_on.is_set()
    assert line == {"who": "rollout-0", "state": "generating", "step": 3, "pid": os.getpid()}


def test_a_socket_without_a_listener_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nobody"))
    with pytest.raises(OSError, match="No such file"):
        announce("rollout-0", "generating")
