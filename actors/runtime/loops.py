"""Background loops of an asyncio actor, of which the first failure is everybody's.

Knows nothing about what the loops do. Whoever waits here is woken by `notify` and by a failure, which they then raise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from raft_ray.errors import RaftError


class Loops:
    """Tasks, those who wait for what the tasks do, and the error that ended them. `timeout`: `learner.timeout`, seconds
    that a wait may take."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.error: RaftError | None = None
        """The first one; what fails later is mostly its consequence."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        """Set once, by the next change; then another takes its place."""
        self._restarts = 0

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a loop; its failure wakes everybody who waits."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                logging.exception("the pipeline stops")
                self.fail(error if isinstance(error, RaftError) else RaftError(f"pipeline: {error!r}"))

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def fail(self, error: RaftError) -> RaftError:
        """Everything ends with this error, unless it has ended with one before. Returns the one it ends with."""
        self.error = self.error or error
        self.notify()
        return self.error

    def cancel(self) -> None:
        """Ask all loops to end."""
        for task in self._tasks:
            task.cancel()

    async def restart(self) -> None:
        """End all loops, and the waits of callers that are gone; forget the error."""
        self.cancel()
        self._restarts += 1
        self.notify()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.error = None

    def notify(self) -> None:
        """Something has changed that somebody may wait for: they look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait until `condition` holds. Raises `RaftError`: that of a loop, or of `learner.timeout`. `what`: says for
        what it was, for the message."""
        restarts = self._restarts
        try:
            async with asyncio.timeout(self.timeout):
                while self.error is None and not condition():
                    await self._changed.wait()
                    if restarts != self._restarts:
                        raise RaftError("the learners have begun anew")
        except TimeoutError:
            late = RaftError(f"pipeline: {what()} did not come within learner.timeout={self.timeout:g} s")
            raise self.fail(late) from None
        if self.error is not None:
            raise self.error
