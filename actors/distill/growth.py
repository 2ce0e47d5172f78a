"""The number of rollout actors: those that are wanted, and the start of those for which the cluster has room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.distill.crew import Crew, Member
from actors.distill.room import Room
from actors.runtime.loops import Loops

RETRY = 2.0
"""Seconds between two looks for room."""


class Growth:
    """Starts rollout actors as there is room for them.

    Args:
        loops: run the wait for room.
        rollouts: get the new actors.
        begin: sets a new one to work.
    """

    def __init__(self, room: Room, loops: Loops, rollouts: Crew, begin: Callable[[Member], None]) -> None:
        self.wanted = len(rollouts)
        """Rollout actors, with those for which there is no room yet."""
        self._room, self._loops, self._rollouts, self._begin = room, loops, rollouts, begin
        self._waiting = False
        self._looking = asyncio.Lock()

    @property
    def waits(self) -> str | None:
        """What rollout actors that are wanted and not there wait for; none if all are there."""
        missing = self.wanted - len(self._rollouts)
        return f"{missing} of {self.wanted} wait for room, each takes {self._room.each}" if missing > 0 else None

    async def to(self, wanted: int) -> None:
        """Have so many from now on; returns when those that fit now are starting."""
        self.wanted = wanted
        await self._start_what_fits()
        self.go_on(wanted)

    def go_on(self, wanted: int) -> None:
        """Wait for room for those that are missing, also after a new beginning."""
        self.wanted = max(wanted, len(self._rollouts))
        if self.waits and not self._waiting:
            self._waiting = True
            self._loops.spawn(self._wait())

    def forget(self) -> None:
        """Nobody waits any more: the autoscaler need not either."""
        if self._waiting:
            self._room.ask(0)

    async def _wait(self) -> None:
        try:
            while self.waits:
                await asyncio.to_thread(self._room.ask, self.wanted)
                await asyncio.sleep(RETRY)
                await self._start_what_fits()
        finally:
            self._waiting = False
        await asyncio.to_thread(self._room.ask, 0)

    async def _start_what_fits(self) -> None:
        async with self._looking:
            have = len(self._rollouts)
            if have < self.wanted:
                free = await asyncio.to_thread(self._room.free, have)
                # Looked at anew: the number that is wanted may have changed meanwhile.
                for _ in range(min(free, self.wanted - len(self._rollouts))):
                    self._begin(self._rollouts.add(placed=False))
