"""The gate: one side at a time, whoever knocks is let in at the next turn, and nobody waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from actors.engine.gate import Gate

LIMIT = 30


def test_without_a_loop_one_enters_at_once() -> None:
    gate = Gate()
    with gate.enter():
        assert gate.knocked
    assert not gate.knocked


def test_whoever_knocks_comes_in_at_the_loops_next_turn_and_only_then() -> None:
    gate = Gate()
    inside, log = threading.Event(), []

    def visitor() -> None:
        inside.set()
        with gate.enter():
            log.append("visit")

    with ThreadPoolExecutor() as pool:
        with gate.loop():
            assert not gate.knocked
            visit = pool.submit(visitor)
            assert inside.wait(LIMIT)
            while not gate.knocked:
                pass
            log.append("turn 0")
            gate.let_in()
            log.append("turn 1")
        visit.result(LIMIT)
    assert log == ["turn 0", "visit", "turn 1"]


def test_a_loop_begins_only_when_the_visitor_has_left_and_errors_leave_too() -> None:
    gate = Gate()
    log: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def visitor() -> None:
        with gate.enter():
            entered.set()
            assert leave.wait(LIMIT)
            log.append("visitor leaves")
            raise ValueError

    def loop() -> None:
        with gate.loop():
            log.append("loop")
            raise KeyError

    with ThreadPoolExecutor() as pool:
        visit = pool.submit(visitor)
        assert entered.wait(LIMIT)
        looping = pool.submit(loop)
        leave.set()
        assert isinstance(visit.exception(LIMIT), ValueError)
        assert isinstance(looping.exception(LIMIT), KeyError)
    with gate.enter():
        log.append("still open")
    assert log == ["visitor leaves", "loop", "still open"]
