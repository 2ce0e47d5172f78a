"""Loops of an asyncio actor: whose error is raised, and who waits no more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from actors.runtime.loops import Loops
from raft_ray.errors import RaftError


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_the_first_error_of_loops_is_the_one_that_is_raised() -> None:
    async def fails(text: str) -> None:
        raise RaftError(text)

    async def work() -> None:
        loops = Loops(5)
        loops.spawn(fails("the cause"))
        loops.spawn(fails("a consequence"))
        await asyncio.sleep(0)
        loops.fail(RaftError("another"))
        for _ in range(2):
            with pytest.raises(RaftError, match="the cause"):
                await loops.wait_for(lambda: False, lambda: "nothing")
        await loops.restart()
        loops.timeout = 0.01
        with pytest.raises(RaftError, match=r"nothing did not come within learner\.timeout=0\.01 s"):
            await loops.wait_for(lambda: False, lambda: "nothing")

    run(work())


def test_who_waited_before_a_new_beginning_neither_goes_on_nor_ends_it() -> None:
    """The call of a learner that is gone, whose time would run out later."""

    async def work() -> None:
        loops = Loops(5)
        wait = asyncio.create_task(loops.wait_for(lambda: False, lambda: "nothing"))
        await asyncio.sleep(0)
        await loops.restart()
        with pytest.raises(RaftError, match="begun anew"):
            await wait
        assert loops.error is None

    run(work())
