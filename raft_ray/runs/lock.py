"""One run folder, one driver: `run.lock`, a file that its driver keeps alive, also on storage that hosts share.

The lock says who holds it. A holder of this machine is asked for by its process; one elsewhere is alive as long as the
file's time moves, which the file server's own clock tells. A lock whose holder has died is taken over with a line; a
driver that finds its lock taken over, after its machine slept for instance, stops.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from raft_ray.errors import RaftError
from raft_ray.files import writing

LOCK = "run.lock"
BEAT = 10.0
"""Seconds between two signs of life."""
LEASE = 90.0
"""Seconds without a sign of life after which a holder on another machine counts as dead."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    machine: str
    """Of the boot and the process namespace: where it is ours, the process can be looked up."""
    pid: int
    started: float
    """Of the process, seconds since 1970."""
    since: str
    token: str
    """Of this lock and no other."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def locked(run_dir: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of a run folder for the block; the folder is made, and removed again if nothing is left in it.
    `say`: told when a dead driver's lock is taken over. Raises `RaftError` when another driver lives in the folder, or
    it cannot be written."""
    new = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    with writing(f"run.dir={run_dir}"):
        run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK
    mine = _me()
    try:
        _acquire(path, mine, say)
        over = threading.Event()
        keeper = threading.Thread(target=_keep, args=(path, mine, over), name="lock", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            # It waits for the file server alone, and dies with this process.
            keeper.join(timeout=10)
            if _holder(path) == mine:
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # Not empty, as it should be after a run.
            for folder in new:
                folder.rmdir()


def _acquire(path: Path, mine: Holder, say: Callable[[str], object]) -> None:
    with writing(path):
        while True:
            try:
                with path.open("x") as file:
                    file.write(json.dumps(asdict(mine)))
                return
            except FileExistsError:
                _take_away(path, mine, say)


def _take_away(path: Path, mine: Holder, say: Callable[[str], object]) -> None:
    """Remove a dead driver's lock. Raises `RaftError` where its driver lives."""
    holder = _holder(path)
    if not _is_dead(path, holder, mine, say):
        raise RaftError(
            f"run.dir={path.parent}: {holder or 'another driver'} is at work there; end it, or choose another folder "
            "with --run-dir"
        )
    # Renaming succeeds for one of several who come at the same time.
    taken = path.with_name(f"{path.name}.{mine.token}")
    with suppress(FileNotFoundError):
        path.rename(taken)
        if _holder(taken) != holder:
            taken.rename(path)  # Another was faster, and this lock is its new one.
            return
        taken.unlink()
        say(f"{path}: its driver has died ({holder or 'unknown'}); taken over")


def _is_dead(path: Path, holder: Holder | None, mine: Holder, say: Callable[[str], object]) -> bool:
    if holder is not None and holder.machine == mine.machine:
        try:
            process = psutil.Process(holder.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - holder.started) > 1
        except psutil.NoSuchProcess:
            return True
    before = None
    while True:
        try:
            with path.open() as file:  # Opened, since network file systems remember the times of what is not.
                last = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return True
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime  # by the clock that gives files their times
        if now - last > LEASE:
            return True
        if before is None:
            say(f"{path}: {holder or 'another driver'}; waits for a sign of life, at most {LEASE:g} s")
        elif before != last:
            return False
        before = last
        time.sleep(BEAT / 2)


def _keep(path: Path, mine: Holder, over: threading.Event) -> None:
    """Give signs of life until `over`; stop the driver if the lock is another's."""
    while not over.wait(BEAT):
        try:
            if _holder(path) == mine:
                os.utime(path)
                continue
        except OSError:
            continue  # A storage that does not answer now may answer next time.
        print(f"error: {path}: another driver has taken the run over", file=sys.stderr)
        # To the main thread, which may be waiting in C; not SIGINT, which shells let programs in the background ignore.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return


def _holder(path: Path) -> Holder | None:
    """Who holds a lock; none without one, or where it is not written whole."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _me() -> Holder:
    host = machine = socket.gethostname()
    with suppress(OSError):
        machine += f" {Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(host, machine, os.getpid(), psutil.Process().create_time(), since, uuid.uuid4().hex)
