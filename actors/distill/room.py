"""Room in the Ray cluster for more rollout actors, beside what the other roles need when they start again.

An actor that Ray cannot place waits in Ray's queue, and takes the CPU that a dying teacher or learner sets free before
its successor asks for it. So only actors that fit are started; what is missing is said to the autoscaler, if there is
one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import ray

from raft_ray.config import Config

PLENTY = 10**6
"""Room for actors that ask for nothing."""


def fitting(
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
    room = PLENTY
    for unit, need in each.items():
        if need > 0:
            most = math.floor((total.get(unit, 0.0) - others.get(unit, 0.0)) / need + 1e-9) - have
            now = math.floor(available.get(unit, 0.0) / need + 1e-9)
            room = min(room, most, now)
    return max(0, room)


class Room:
    """The cluster's, for the rollout actors of `config`."""

    def __init__(self, config: Config) -> None:
        rollout, teacher, learner = config.rollout, config.teacher, config.learner
        self._each = {"CPU": rollout.num_cpus, "GPU": rollout.num_gpus}
        self._others = {
            "CPU": teacher.actors * teacher.num_cpus + learner.num_workers * learner.num_cpus + 1,
            "GPU": teacher.actors * teacher.num_gpus + learner.num_workers * learner.num_gpus,
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
        return fitting(total, available, self._others, self._each, have)

    def ask(self, wanted: int) -> None:
        """Let the autoscaler make room for `wanted` rollout actors in all; for 0 it forgets what was asked."""
        from ray.autoscaler.sdk import request_resources

        each = {unit: need for unit, need in self._each.items() if need > 0}
        others = [{unit: 1} for unit, need in self._others.items() for _ in range(math.ceil(need))]
        # A cluster that cannot be asked is one that does not grow; the run goes on without.
        with contextlib.suppress(Exception):
            request_resources(bundles=[*others, *([each] * wanted)] if wanted and each else [])
