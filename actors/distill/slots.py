"""Slots in the Ray cluster for rollout actors, beside what the other roles need, and the growth into them.

An actor that Ray cannot place waits in Ray's queue, and takes the CPU that a dying teacher or learner sets free before
its successor asks for it. So only actors that fit are started; what is missing is said to the autoscaler, if there is
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping

import ray

from actors.distill.actor_group import ActorGroup, ActorState
from actors.runtime.loops import Loops
from raft_ray.config import Config

PLENTY = 10**6
"""Slots for actors that ask for nothing."""
RETRY = 2.0
"""Seconds between two looks for free slots."""


def free_slots(
    total: Mapping[str, float],
    available: Mapping[str, float],
    others: Mapping[str, float],
    each: Mapping[str, float],
    have: int,
) -> int:
    """How many rollout actors can be added.

    Args:
        total, available: of the cluster, by resource.
        others: what all other roles take together, whether they run at the moment or not.
        each: what a rollout actor takes.
        have: rollout actors that are there.
    """
    slots = PLENTY
    for unit, need in each.items():
        if need > 0:
            most = math.floor((total.get(unit, 0.0) - others.get(unit, 0.0)) / need + 1e-9) - have
            now = math.floor(available.get(unit, 0.0) / need + 1e-9)
            slots = min(slots, most, now)
    return max(0, slots)


class Slots:
    """The cluster's, for the rollout actors of `config`."""

    def __init__(self, config: Config) -> None:
        rollout, teacher, learner = config.rollout, config.teacher, config.learner
        self._each = {"CPU": rollout.num_cpus, "GPU": rollout.num_gpus}
        teachers = teacher.actors if config.uses_teachers else 0
        self._others = {
            "CPU": teachers * teacher.num_cpus + learner.num_workers * learner.num_cpus + 1,
            "GPU": teachers * teacher.num_gpus + learner.num_workers * learner.num_gpus,
        }

    @property
    def each(self) -> str:
        """What a rollout actor takes, in words."""
        return " and ".join(f"{need:g} {unit}s" for unit, need in self._each.items() if need > 0) or "nothing"

    def free(self, have: int) -> int:
        """How many rollout actors can be added to `have`; none while Ray does not say. Blocks for a moment."""
        try:
            total, available = ray.cluster_resources(), ray.available_resources()
        except ray.exceptions.RayError:
            return 0
        return free_slots(total, available, self._others, self._each, have)

    def ask(self, wanted: int) -> None:
        """Let the autoscaler make slots for `wanted` rollout actors in all; for 0 it forgets what was asked."""
        from ray.autoscaler.sdk import request_resources

        each = {unit: need for unit, need in self._each.items() if need > 0}
        others = [{unit: 1} for unit, need in self._others.items() for _ in range(math.ceil(need))]
        # A cluster that cannot be asked is one that does not grow; the run goes on without.
        with contextlib.suppress(Exception):
            request_resources(bundles=[*others, *([each] * wanted)] if wanted and each else [])


class Growth:
    """The start of rollout actors that are wanted, as there are slots for them; `loops` run the wait. `begin`: sets a
    new one to work."""

    def __init__(self, slots: Slots, loops: Loops, rollouts: ActorGroup, begin: Callable[[ActorState], None]) -> None:
        self._slots, self._loops, self._rollouts, self._begin = slots, loops, rollouts, begin
        self._waiting = False
        self._looking = asyncio.Lock()

    @property
    def waits(self) -> str | None:
        """What rollout actors that are wanted and not there wait for; none if all are there."""
        wanted, missing = self._rollouts.wanted, self._rollouts.wanted - len(self._rollouts)
        return f"{missing} of {wanted} wait for room, each takes {self._slots.each}" if missing > 0 else None

    async def to(self, wanted: int) -> None:
        """Have so many from now on; returns when those that fit now are starting."""
        self._rollouts.wanted = wanted
        await self._start_what_fits()
        self.go_on()

    def go_on(self) -> None:
        """Wait for slots for those that are missing, also after a new beginning."""
        if self.waits and not self._waiting:
            self._waiting = True
            self._loops.spawn(self._wait())

    async def _wait(self) -> None:
        try:
            while self.waits:
                await asyncio.to_thread(self._slots.ask, self._rollouts.wanted)
                await asyncio.sleep(RETRY)
                await self._start_what_fits()
        finally:
            self._waiting = False
        await asyncio.to_thread(self._slots.ask, 0)

    async def _start_what_fits(self) -> None:
        async with self._looking:
            have = len(self._rollouts)
            if have < self._rollouts.wanted:
                free = await asyncio.to_thread(self._slots.free, have)
                # Looked at anew: the number that is wanted may have changed meanwhile.
                for _ in range(min(free, self._rollouts.wanted - len(self._rollouts))):
                    self._begin(self._rollouts.add(placed=False))
