"""Background loops of an asyncio actor that share one condition, and of which the first failure is everybody's.

Knows nothing about what the loops do. Whoever waits here is woken by `notify` and by a failure, which they then raise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from raft_ray.errors import RaftError


class Loops:
    """Tasks, the condition on which they and their callers wait, and the error that ended them."""

    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.error: RaftError | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a loop; its failure wakes everybody who waits."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logging.exception("the pipeline stops")
                self.error = error if isinstance(error, RaftError) else RaftError(f"pipeline: {error!r}")
                await self.notify()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Ask all loops to end."""
        for task in self._tasks:
            task.cancel()

    async def restart(self) -> None:
        """End all loops, and forget the error."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.error = None

    async def notify(self) -> None:
        """Something has changed: let everybody who waits look again."""
        async with self.changed:
            self.changed.notify_all()

    async def wait_for(self, condition: Callable[[], bool], what: str, timeout: float, key: str) -> None:
        """Wait until `condition` holds. Raises `RaftError`: that of a loop, or after `timeout` seconds, of `key`."""

        async def wait() -> None:
            async with self.changed:
                while self.error is None and not condition():
                    await self.changed.wait()

        try:
            await asyncio.wait_for(wait(), timeout)
        except TimeoutError:
            self.error = RaftError(f"pipeline: {what} did not come within {key}={timeout:g} s")
        if self.error is not None:
            raise self.error
