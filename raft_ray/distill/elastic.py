"""Which role the others wait for, and so when to add a rollout actor and when to take one away. No Ray.

`bottleneck` gives the advice of `raft-ray status` and the report, and `ElasticPolicy` follows it: one more where
rollouts are the bottleneck, one less where learners are and fewer rollout actors would do. After a change the policy
watches `patience` steps before the next, since a new engine takes a while to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SCARCE = 0.1
"""The learners lack data if they wait for more than this share of their time."""
FULL = 0.8
"""A role that works for this share of its time or more has no room for more."""


@dataclass(frozen=True)
class Load:
    """How much a role worked, as the mean over its members, of the time that each was there."""

    members: int
    """Those that have not left."""
    busy: float
    waiting: float
    """The share that was recorded as `wait`; only learners record it."""
    scoring: float = 0.0
    """The share that was recorded as `score`: of learners, what they are busy with as their own teacher."""

    @property
    def enough(self) -> int:
        """Members that would do the same work without being full."""
        return max(1, math.ceil(self.members * self.busy / FULL))


@dataclass(frozen=True)
class Bottleneck:
    """`role` is the one that limits the run, None if none does alone. `advice` is a sentence for the user."""

    role: str | None
    advice: str


def bottleneck(loads: Mapping[str, Load]) -> Bottleneck | None:
    """Which role the others wait for, from `loads`; None as long as no learner is among them. Learners that do not wait
    limit the run, unless the rollouts or teachers are full too (balanced). For learners that wait, it is the busier of
    the other two roles, unless that one has room as well: then they wait in turns."""
    learner = loads.get("learner")
    if learner is None:
        return None
    feeding = {role: load for role, load in loads.items() if role != "learner"}
    busiest = max(feeding, key=lambda role: feeding[role].busy, default=None)
    full = busiest is not None and feeding[busiest].busy >= FULL
    waits = f"learners wait {learner.waiting:.0%} of the time"
    if learner.waiting <= SCARCE:
        if full:
            return Bottleneck(None, f"Balanced: {_listed(loads)}; {waits}.")
        spare = "".join(_spare(role, load) for role, load in feeding.items())
        teach, own = "", ""
        if learner.scoring > SCARCE:
            teach, own = f", {learner.scoring:.0%} as the teacher", " or set teacher.place=own"
        return Bottleneck(
            "learner",
            f"Learners are the bottleneck (busy {learner.busy:.0%}{teach}, they wait {learner.waiting:.0%} of the "
            f"time): add learner.num_workers{own}{spare}.",
        )
    if busiest is None or not full:
        return Bottleneck(
            None, f"The roles wait for each other ({_listed(loads)}): raise sync.max_staleness so that they overlap."
        )
    load = feeding[busiest]
    start = f"{busiest.capitalize()}s are the bottleneck (busy {load.busy:.0%}, {waits})"
    # So many would feed learners that never wait, but more than twice as many is too far to guess.
    wanted = max(load.members + 1, math.ceil(load.members * load.busy / max(0.5, 1 - learner.waiting)))
    if busiest == "rollout":
        return Bottleneck(busiest, f"{start}: `raft-ray scale RUN --rollouts {wanted}` or raise rollout.actors.")
    return Bottleneck(busiest, f"{start}: raise teacher.actors to {wanted}.")


def _listed(loads: Mapping[str, Load]) -> str:
    return ", ".join(f"{role}s busy {load.busy:.0%}" for role, load in loads.items())


def _spare(role: str, load: Load) -> str:
    """`; rollouts wait, 2 of 3 would do`, nothing if all are needed."""
    return f"; {role}s wait, {load.enough} of {load.members} would do" if load.enough < load.members else ""


@dataclass
class ElasticPolicy:
    """Keeps the number of rollout actors between two bounds. `least`, `most`: actors. Equal bounds never change
    anything. `patience`: steps between two changes."""

    least: int
    most: int
    patience: int = 3
    _watched: int = 0

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.least == self.most

    def target(self, actors: int, loads: Mapping[str, Load]) -> int:
        """Actors wanted after a step; at most one more or less than `actors`, and within the bounds at once. `loads`:
        of the roles, since the last change."""
        inside = min(max(actors, self.least), self.most)
        if inside != actors:
            self._watched = 0
            return inside
        self._watched += 1
        found = bottleneck(loads)
        if self._watched < self.patience or found is None:
            return actors
        wanted = actors
        if found.role == "rollout":
            wanted = min(actors + 1, self.most)
        elif found.role == "learner" and "rollout" in loads and loads["rollout"].enough < actors:
            wanted = max(actors - 1, self.least)
        if wanted != actors:
            self._watched = 0
        return wanted
