"""A training in a thread of the test, so that the test can change it while it goes on, at the steps that it chooses."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from listener import Listener, Said
from run_files import lines

from raft_ray.config import Config


@dataclass
class Stop:
    """A step before which the learner waits, while the actors go on."""

    came: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)


@contextmanager
def running(config: Config, socket_path: Path, *steps: int) -> Iterator[tuple[threading.Thread, dict[int, Stop]]]:
    """Trains `config` in a thread, with stops before `steps`.

    At the end no stop holds it any more; waits for the training, and raises what went wrong in it.
    """
    from actors.run import train

    stops = {step: Stop() for step in steps}
    failures: list[BaseException] = []

    def rule(said: Said) -> str | None:
        held = said["who"] == "learner-0" and said["state"] == "forward" and said["step"] in stops
        return "learner-0" if held else None

    def hold(said: Said) -> None:
        stop = stops[said["step"]]
        stop.came.set()
        stop.left.wait()

    def run() -> None:
        try:
            train(config)
        except BaseException as error:
            failures.append(error)

    with Listener(socket_path, rule, hold, side_by_side=True):
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield thread, stops
        finally:
            for stop in stops.values():
                stop.left.set()
            thread.join(timeout=400)
            for failure in failures:
                raise failure
    assert not thread.is_alive()


def every_row_once(folder: Path, steps: int) -> None:
    trace = lines(folder / "trace.jsonl")
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(steps))
    assert all(count == 1 for count in Counter((line["epoch"], line["row"]) for line in trace).values())


def state_of(folder: Path, name: str) -> str:
    """What an actor of the run is doing, as `raft-ray status` says it; nothing where there is none of this name."""
    from actors.runtime.attach import status

    return next((str(actor["state"]) for actor in status(folder)["actors"] if actor["name"] == name), "")


def raft_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raft_ray", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def wait_for(condition: Callable[[], bool], thread: threading.Thread) -> None:
    """Poll the condition; the run's end, or four minutes, end the wait."""
    for _ in range(1200):
        if condition():
            return
        thread.join(timeout=0.2)
        assert thread.is_alive(), "the run ended early"
    raise AssertionError("it did not happen within four minutes")
