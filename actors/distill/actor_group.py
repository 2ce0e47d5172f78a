"""The actors of one role, rollouts or teachers, and the state of each.

```
 STARTING ──> WAITING ──> LOADING ──> GENERATING ──> WAITING            a teacher: STARTING ──> IDLE <──> SCORING
                               └────> EVALUATING ──> WAITING
    ▲            │ └── its version is lost ──> WEIGHTLESS ── a newer one is published ──> STARTING
    └── LOST <───┴── from any state: it died, hung or failed           any state ──> STOPPED: the run ends
```

A lost actor is killed and another takes its name. Ray's own `max_restarts` would not do: it sees no hung process, and
while it restarts one, a failed call does not tell whether the old process, with its weights, or the new one is next.

Knows nothing about what they work on; `actors.distill.flow` drives each actor in a loop of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray

from actors.distill.validation import Part
from actors.runtime.remote import ActorLost, within
from raft_ray.distill.trajectory import RolloutBatch
from raft_ray.errors import RaftError

MAX_FAILED_STARTS = 3
"""An actor that dies so often in a row before it was ever ready will not get better."""


class State(StrEnum):
    """What an actor does, in the words of `raft-ray status` and, of work, of `spans.jsonl`."""

    STARTING = "start"
    WAITING = "waits for slots"
    LOADING = "load"
    GENERATING = "generate"
    EVALUATING = "evaluate"
    WEIGHTLESS = "waits for newer weights"
    IDLE = "idle"
    SCORING = "score"
    LOST = "lost"
    STOPPED = "stopped"


@dataclass
class ActorState:
    """One actor and what is known of it."""

    name: str
    handle: Any
    node: str = "?"
    """Its host, once it is ready."""
    state: State = State.STARTING
    since: float = field(default_factory=time.monotonic)
    """When it came into that state."""
    ready: bool = False
    """Its process serves."""
    version: int | None = None
    """Weights that it holds, for rollout actors."""
    batch: RolloutBatch | Part | None = None
    """What it works on."""
    engaged: bool = False
    """Its engine has begun with the rollout batch: if it dies now, the batch's rows may be why."""
    restarts: int = 0
    failed_starts: int = 0
    """Deaths in a row before it was ready."""
    first_death: str = ""
    """What the first of these was."""
    leaving: bool = False
    """Ends after the rollout batch that it is on."""
    rows: int = 0
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it takes up weights, so that no older version comes after a newer one."""
    _calls: dict[tuple[str, int], Any] = field(default_factory=dict)

    def now(self, state: State) -> None:
        """It does something else from now on."""
        self.state, self.since = state, time.monotonic()

    def call(self, method: str, returns: int) -> Any:
        """A method of the actor with so many return values; kept, since Ray takes as long to make it as to call it."""
        key = method, returns
        if key not in self._calls:
            self._calls[key] = getattr(self.handle, method).options(num_returns=returns)
        return self._calls[key]

    def restarted(self, handle: Any) -> None:
        """Another process has taken its place."""
        self.handle, self.version, self.ready = handle, None, False
        self.restarts += 1
        self._calls.clear()
        self.now(State.STARTING)

    @property
    def who(self) -> str:
        """Name and node, for messages."""
        return f"{self.name} on {self.node}"

    async def ping(self, timeout: float) -> None:
        """While it waits for work it answers; raises `ActorLost` if it does not."""
        await within(self.handle.ready.remote(), timeout, self.who, "waiting for work")

    def status(self) -> dict[str, Any]:
        """What `raft-ray status` shows of it."""
        return {
            "name": self.name,
            "node": self.node,
            "state": self.state + (", leaving" if self.leaving else ""),
            "seconds": round(time.monotonic() - self.since, 1),
            "version": self.version,
            "rows": self.rows,
            "restarts": self.restarts,
        }


class ActorGroup:
    """The actors of a role, which is the prefix of their names and the section of the config that has their
    `max_restarts`. `make` makes the actor of a name and returns its handle at once; `timeout` is the seconds in which
    one that is ready or starts must answer."""

    def __init__(self, role: str, make: Callable[[str], Any], timeout: float, max_restarts: int) -> None:
        self.role, self.timeout = role, timeout
        self._make, self._max_restarts = make, max_restarts
        self.wanted = 0
        """Actors, with those for which there is no slot yet."""
        self._actors: dict[str, ActorState] = {}
        self._placed: set[str] = set()

    def __iter__(self) -> Iterator[ActorState]:
        return iter(list(self._actors.values()))

    def __len__(self) -> int:
        """Actors that stay."""
        return sum(not actor.leaving for actor in self._actors.values())

    @property
    def placed(self) -> int:
        """Actors that stay and have, or had, a place in the cluster: among them work is shared out."""
        return len(self._placed)

    def fill(self, count: int) -> None:
        """Make the first actors; the cluster is known to have room for so many."""
        self.wanted = count
        for _ in range(count):
            self.add(placed=True)

    def add(self, *, placed: bool) -> ActorState:
        """A new actor under the lowest free name. `placed`: the cluster is known to have room for it; otherwise it
        counts from when it is ready."""
        number = next(n for n in range(len(self._actors) + 1) if f"{self.role}-{n}" not in self._actors)
        name = f"{self.role}-{number}"
        actor = self._actors[name] = ActorState(name, self._make(name))
        if placed:
            self._placed.add(name)
        return actor

    def serves(self, actor: ActorState, node: str) -> None:
        """An actor's process is ready, on this host."""
        actor.node, actor.ready, actor.failed_starts = node, True, 0
        if not actor.leaving:
            self._placed.add(actor.name)

    def restart(self, actor: ActorState, error: ActorLost) -> None:
        """A new process in the place of one that was lost. Raises `RaftError` when its restarts are used up."""
        kill(actor)
        if not actor.ready:
            actor.first_death = actor.first_death if actor.failed_starts else str(error)
            actor.failed_starts += 1
        if actor.failed_starts >= MAX_FAILED_STARTS:
            raise RaftError(
                f"{actor.first_death} (so it began; it died {actor.failed_starts} times in a row while it started)"
            )
        if actor.restarts >= self._max_restarts:
            key = f"{self.role}.max_restarts={self._max_restarts}"
            raise RaftError(f"{error} (restarted {actor.restarts} times, {key})")
        actor.restarted(self._make(actor.name))

    def replace(self, actor: ActorState, error: ActorLost) -> RaftError | None:
        """Restart an actor that was lost. Returns why it is given up instead, if it is; raises that where it was the
        last of its group."""
        try:
            self.restart(actor, error)
        except RaftError as final:
            self.remove(actor)
            if not len(self):
                raise
            self.wanted -= not actor.leaving
            return final
        return None

    def remove(self, actor: ActorState) -> None:
        """End an actor for good."""
        kill(actor)
        self._actors.pop(actor.name, None)
        self._placed.discard(actor.name)

    def dismiss(self, count: int) -> None:
        """Ask `count` actors to leave after their rollout batch, the youngest first."""
        staying = [actor for actor in self._actors.values() if not actor.leaving]
        staying.sort(key=lambda actor: int(actor.name.rsplit("-", 1)[1]), reverse=True)
        for actor in staying[: max(0, count)]:
            actor.leaving = True
            self._placed.discard(actor.name)


def kill(actor: ActorState) -> None:
    """End the process, also one that hangs."""
    ray.kill(actor.handle, no_restart=True)
