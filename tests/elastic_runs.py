"""A training in a thread of the test, so that the test can change it while it goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from run_files import lines

from raft_ray.config import Config


@contextmanager
def running(config: Config) -> Iterator[threading.Thread]:
    """Trains `config` in the thread; at the end waits for the training, and raises what went wrong in it."""
    from actors.run import train

    failures: list[BaseException] = []

    def run() -> None:
        try:
            train(config)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(timeout=240)
        for failure in failures:
            raise failure
    assert not thread.is_alive()


def every_row_once(folder: Path, steps: int) -> None:
    trace = lines(folder / "trace.jsonl")
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(steps))
    assert all(count == 1 for count in Counter((line["epoch"], line["row"]) for line in trace).values())


def raft_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raft_ray", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def wait_for(condition: Callable[[], bool], thread: threading.Thread) -> None:
    """Poll a run's files; the run's end, or a minute, ends the wait."""
    for _ in range(600):
        if condition():
            return
        thread.join(timeout=0.1)
        assert thread.is_alive(), "the run ended early"
    raise AssertionError("it did not happen within a minute")
