"""The turns of an engine's threads: one at a time, whoever waits comes first when the holder gives way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from actors.engine.vllm_engine import FairLock

LIMIT = 30


def waits(lock: FairLock) -> bool:
    """Whether a thread waits for a lock that is held."""
    return lock._asked - lock._served > 1


def test_without_a_holder_one_enters_at_once_and_giving_way_to_nobody_goes_on() -> None:
    lock = FairLock()
    with lock:
        lock.give_way()
        assert not waits(lock)
    with lock:
        assert not waits(lock)


def test_whoever_waits_comes_in_when_the_holder_gives_way_and_only_then() -> None:
    lock, log = FairLock(), []

    def visitor() -> None:
        with lock:
            log.append("visit")

    with ThreadPoolExecutor() as pool:
        with lock:
            visit = pool.submit(visitor)
            while not waits(lock):
                pass
            log.append("turn 0")
            lock.give_way()
            log.append("turn 1")
        visit.result(LIMIT)
    assert log == ["turn 0", "visit", "turn 1"]


def test_a_holder_begins_only_when_the_one_before_has_left_and_errors_leave_too() -> None:
    lock = FairLock()
    log: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def visitor() -> None:
        with lock:
            entered.set()
            assert leave.wait(LIMIT)
            log.append("visitor leaves")
            raise ValueError

    def loop() -> None:
        with lock:
            log.append("loop")
            raise KeyError

    with ThreadPoolExecutor() as pool:
        visit = pool.submit(visitor)
        assert entered.wait(LIMIT)
        looping = pool.submit(loop)
        while not waits(lock):
            pass
        leave.set()
        assert isinstance(visit.exception(LIMIT), ValueError)
        assert isinstance(looping.exception(LIMIT), KeyError)
    with lock:
        log.append("still open")
    assert log == ["visitor leaves", "loop", "still open"]
