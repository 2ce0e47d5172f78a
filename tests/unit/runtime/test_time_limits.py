"""No call waits without end: the source is read for calls that would."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from actors.runtime import remote
from actors.runtime.limits import FACTOR, FLOOR, Limits

ROOT = Path(__file__).parents[3]
SOURCES = sorted(path for folder in ("actors", "raft_ray") for path in (ROOT / folder).rglob("*.py"))
NO_WAIT = {
    # Methods of our own and of asyncio's finished tasks, under a name that waits elsewhere.
    "summary.result()",
    "gap.result()",
    "task.result()",
    "call.result()",
    # A daemon thread without work, for whose end nobody waits without a limit.
    "self._queue.get()",
}


def endless(call: ast.Call) -> bool:
    """Whether a call may wait without a limit: Ray's `get` and `wait`, and the waiting methods of threads, locks,
    queues, processes and futures without an argument."""
    named = {keyword.arg for keyword in call.keywords}
    name = ast.unparse(call.func)
    if name in ("ray.get", "ray.wait", "wait", "as_completed"):
        return "timeout" not in named
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method in ("get", "join", "wait", "result", "acquire", "communicate") and not call.args and not named:
        return ast.unparse(call) not in NO_WAIT
    return False


def waiting(source: str) -> list[str]:
    tree = ast.parse(source)
    # What asyncio waits for is another matter: its callers wait with a limit (`Loops.wait_for`, `within`).
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if endless(call) and id(call) not in awaited]


def test_no_call_waits_without_a_limit() -> None:
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := waiting(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "source", ["ray.get(ref)", "x = ray.wait([ref], num_returns=1)", "future.result()", "thread.join()", "done.wait()"]
)
def test_a_call_that_waits_without_a_limit_is_found(source: str) -> None:
    assert len(waiting(source)) == 1


def test_the_first_call_has_the_configured_limit_and_later_ones_a_multiple_of_the_longest() -> None:
    limits = Limits()
    assert limits.of("generate", 600) == 600
    limits.took("generate", 20)
    limits.took("generate", 3)
    assert limits.of("generate", 600) == 20 * FACTOR
    assert limits.of("generate", 50) == 50
    assert limits.of("score", 600) == 600


def test_a_limit_grows_with_the_rows_never_shrinks_with_them_and_has_a_floor() -> None:
    limits = Limits()
    limits.took("generate", 20, rows=4)
    assert limits.of("generate", 6000, rows=12) == 3 * 20 * FACTOR
    assert limits.of("generate", 6000, rows=1) == 20 * FACTOR
    limits.took("score", 0.01, rows=4)
    assert limits.of("score", 6000, rows=4) == FLOOR


def test_calls_that_come_back_set_the_limit_of_those_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def answer(ref: object, timeout: float) -> object:
        asked.append(timeout)
        return ref

    monkeypatch.setattr(remote.ray, "get", answer)
    limits = Limits()
    assert [remote.paced(limits, "answer", ref, 600, "EvalActor") for ref in (1, 2)] == [1, 2]
    assert asked == [600, FLOOR]
