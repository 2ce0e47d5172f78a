"""The command line in a process of its own, which a test sends a signal when the run comes to a chosen state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from listener import Listener, Rule, Said

from raft_ray.announce import VARIABLE

SERVER = Path(__file__).parent / "forked" / "server.py"


def begun(*arguments: str, socket: Path | None, forked: bool = False) -> subprocess.Popen[str]:
    """The command in a process group of its own, which a terminal would send its Ctrl-C to.

    Args:
        forked: Ray's workers are forks, which start sooner (`forked.server`); else they start as users start them.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, *([str(SERVER), "raft_ray"] if forked else ["-m", "raft_ray"]), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment | ({VARIABLE: str(socket)} if socket else {}),
    )


def interrupted(
    arguments: list[str], socket: Path, rule: Rule, number: int, *, forked: bool = False
) -> tuple[subprocess.Popen[str], list[psutil.Process], str]:
    """Send the command a signal at the state of the rule; returns it when it has ended, the processes that it had
    started, and what it wrote to stderr."""
    drivers: list[subprocess.Popen[str]] = []
    started: list[psutil.Process] = []

    def send(_: Said) -> None:
        pid = drivers[0].pid
        started.extend(psutil.Process(pid).children(recursive=True))
        forks = [process.name().removeprefix("fork-") for process in started if process.name().startswith("fork-")]
        assert bool(forks) == forked
        started.extend(psutil.Process(int(fork)) for fork in forks)
        # A terminal sends its Ctrl-C to the whole group, a supervisor its SIGTERM to the one process.
        (os.killpg if number == signal.SIGINT else os.kill)(pid, number)

    with Listener(socket, rule, act=send) as listener:
        drivers.append(begun(*arguments, socket=socket, forked=forked))
        try:
            _, errors = drivers[0].communicate(timeout=500)
        finally:
            drivers[0].kill()
    assert len(listener.killed) == 1, errors
    return drivers[0], started, errors
