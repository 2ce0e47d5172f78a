"""What is done about a process that does not answer; Ray is a fake whose calls are answered or not."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from actors.refine import cache as refine_cache
from actors.refine.engines import EnginePool, plan_pool
from actors.runtime import watch
from actors.runtime.progress import Bars
from actors.runtime.watch import Watch
from raft_ray.config import Config
from raft_ray.errors import RaftError


class FakeRay:
    """Calls are their own values; `hung` ones are never answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hung: set[str] = set()
        self.killed: list[tuple[Any, bool]] = []
        self.changed = threading.Event()
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "get", lambda call, timeout: call)
        monkeypatch.setattr(ray, "kill", self._kill)

    def _wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        name = str(calls[0]["who"])
        return ([], calls) if name in self.hung else (calls, [])

    def _kill(self, actor: Any, *, no_restart: bool) -> None:
        self.killed.append((actor.who, no_restart))
        self.hung.discard(actor.who)
        self.changed.set()


def actor(who: str, **answer: Any) -> Any:
    call = SimpleNamespace(remote=lambda *_: {"who": who, **answer})
    return SimpleNamespace(who=who, progress=call, get_state=call, __ray_ready__=call)


@pytest.mark.parametrize(
    ("who", "no_restart", "words"),
    [
        (
            "pipeline",
            False,
            "the pipeline actor on here has not answered since .*: killed, so that Ray starts it",
        ),
        ("controller", True, "Ray Train's controller on here has not answered since .*: killed$"),
    ],
)
def test_what_the_driver_looks_after_is_killed_and_named_when_it_hangs(
    who: str, no_restart: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRay(monkeypatch)
    monkeypatch.setattr(watch, "CONTROLLER_SILENCE", 0.2)
    console = Console(file=StringIO(), width=300)
    looked = Watch(actor("pipeline", step=1, steps=3, last=None, notices=[]), Bars(console), "Stage 2", 0.2, "here")
    looked.controlled_by(actor("controller"))
    fake.hung.add(who)
    with looked.going_on():
        assert fake.changed.wait(30)
    assert fake.killed == [(who, no_restart)]
    (line,) = looked.trouble
    assert line in console.file.getvalue()  # type: ignore[attr-defined]
    assert re.match(words, line)


def test_a_silent_worker_of_stage_1_is_killed_if_it_is_still_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeRay(monkeypatch)
    monkeypatch.setattr(refine_cache, "SILENCE", 0.2)
    silent = {name: (70.0, [actor(name)]) for name in ("hangs", "ended")}
    fake.hung.add("hangs")
    cache = SimpleNamespace(silent=SimpleNamespace(remote=lambda limit: silent if "hangs" in fake.hung else {}))
    with caplog.at_level(logging.WARNING), refine_cache.hung_workers_killed(cache):
        assert fake.changed.wait(30)
    assert fake.killed == [("hangs", False)]
    assert "hangs has been silent for 70 s: killed, Ray Data starts it again" in caplog.text


@pytest.mark.parametrize("hangs", [1, 9])
def test_an_engine_of_stage_1_that_hangs_is_started_again_before_another_call_gets_it(
    hangs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRay(monkeypatch)
    config = Config()
    config.rollout.timeout = 0.05
    config.rollout.max_failures = 2
    asked = 0

    async def generate() -> list[str]:
        nonlocal asked
        asked += 1
        while len(fake.killed) < hangs:
            await asyncio.sleep(0.01)
        return ["text"]

    call = SimpleNamespace(remote=lambda *_, **__: asyncio.ensure_future(generate()))
    engine = SimpleNamespace(who="engine", generate=call)

    async def work() -> Any:
        pool = EnginePool(plan_pool(config, "self"), {}, "run")
        named = SimpleNamespace(who="RefineEngine refine-self-0 on a", handle=engine)
        return await pool._generated(named, ["ask"], {})  # type: ignore[arg-type]

    if hangs == 1:
        assert asyncio.run(work()) == ["text"]
        assert fake.killed == [("engine", False)]
    else:
        with pytest.raises(RaftError, match=r"self-0 on a: still generating .* killed and started again 2 times"):
            asyncio.run(work())
    assert asked == 1, "Ray repeats the call by itself"
