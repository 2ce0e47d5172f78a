"""Hears what every process of a run announces, and kills the one that a rule names at the state that it names."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raft_ray.announce import VARIABLE

Said = dict[str, Any]
Rule = Callable[[Said], str | None]
"""Of an announcement: the name of the process to kill now, or none."""


class Listener:
    """Listens on a socket while the block runs, and has what this process starts meanwhile announce itself there.

    Processes wait for it, so states are exact and nothing sleeps.

    Args:
        rule: decides after each announcement; a process that it names must have announced something before.
        act: called with the announcement in the place of a kill.
        side_by_side: while `act` goes on, only the announcer waits for it, and others are heard meanwhile.
    """

    def __init__(
        self, path: Path, rule: Rule, act: Callable[[Said], None] | None = None, *, side_by_side: bool = False
    ) -> None:
        self._path = path
        self._rule = rule
        self._act = act
        self._side_by_side = side_by_side
        self._deciding = threading.Lock()
        self.heard: list[Said] = []
        self.killed: list[Said] = []
        self.pids: dict[str, int] = {}
        self.error: Exception | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)

    def __enter__(self) -> Listener:
        os.environ[VARIABLE] = str(self._path)
        self._socket.bind(str(self._path))
        self._socket.listen(64)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ[VARIABLE]
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=30)
        self._path.unlink()
        if self.error is not None:
            raise self.error

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._side_by_side:
                threading.Thread(target=self._hear, args=(connection,), name="hearing", daemon=True).start()
            else:
                self._hear(connection)

    def _hear(self, connection: socket.socket) -> None:
        with connection:
            data = b""
            while part := connection.recv(65536):
                data += part
            if not data:
                return
            try:
                self._answer(json.loads(data))
            except Exception as error:
                self.error = self.error or error

    def _answer(self, said: Said) -> None:
        with self._deciding:
            self.pids[said["who"]] = said["pid"]
            self.heard.append(said)
            victim = self._rule(said)
            if victim is None:
                return
            self.killed.append({**said, "victim": victim})
        if self._act is not None:
            self._act(said)
        else:
            os.kill(self.pids[victim], signal.SIGKILL)


def once(who: str, state: str, step: int | None = None, victim: str | None = None, count: int = 1) -> Rule:
    """Kill `victim` (or the announcer itself) the `count`th time that `who` announces `state` at `step`."""
    seen = 0

    def rule(said: Said) -> str | None:
        nonlocal seen
        if said["who"] != who or said["state"] != state or (step is not None and said["step"] != step):
            return None
        seen += 1
        return (victim or who) if seen == count else None

    return rule


def first_of(rules: list[Rule]) -> Rule:
    """The first rule that names a victim; all of them hear everything."""

    def rule(said: Said) -> str | None:
        return next((victim for victim in [rule(said) for rule in rules] if victim), None)

    return rule
