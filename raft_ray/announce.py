"""Announces what a process is about to do, to whoever listens: how the chaos tests kill it at a chosen state.

Does nothing unless `RAFT_RAY_ANNOUNCE` names a Unix socket. Then every announcement is one JSON line on a connection
of its own, and the process goes on when the listener closes it: a listener that wants to stop it here kills it first.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

VARIABLE = "RAFT_RAY_ANNOUNCE"


def announce(who: str, state: str, step: int | None = None, **more: Any) -> None:
    """Say that `who` (an actor's name) is about to do `state`, and wait for the listener's leave. `more` goes into the
    line as it is. Raises `OSError` when the socket is named but nobody listens."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        line = {"who": who, "state": state, "step": step, "pid": os.getpid(), **more}
        connection.sendall((json.dumps(line) + "\n").encode())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(64):
            pass
