"""A crew: the actors of one role, by name. Makes them, makes them again after a death, lets them go.

Knows nothing about what they work on; `actors.distill.pipeline` drives each member in a loop of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.runtime.remote import ActorLost
from raft_ray.config import Config
from raft_ray.errors import RaftError

START_TRIES = 3
"""An actor that dies so often in a row before it was ever ready will not get better."""


@dataclass
class Member:
    """One actor and what is known of it."""

    name: str
    handle: Any
    node: str = "?"
    """Its host, once it is ready."""
    state: str = "starting"
    since: float = field(default_factory=time.monotonic)
    """When it came into that state."""
    ready: bool = False
    """Its process serves."""
    version: int | None = None
    """Weights that it holds, for rollout actors."""
    restarts: int = 0
    stillborn: int = 0
    """Deaths in a row before it was ready."""
    first_death: str = ""
    """What the first of these was."""
    leaving: bool = False
    """Ends after the chunk that it is on."""
    rows: int = 0
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it takes up weights, so that no older version comes after a newer one."""
    _calls: dict[tuple[str, int], Any] = field(default_factory=dict)

    def now(self, state: str) -> None:
        """It does something else from now on."""
        self.state, self.since = state, time.monotonic()

    def call(self, method: str, returns: int) -> Any:
        """A method of the actor with so many return values; kept, since Ray takes as long to make it as to call it."""
        key = method, returns
        if key not in self._calls:
            self._calls[key] = getattr(self.handle, method).options(num_returns=returns)
        return self._calls[key]

    def started_anew(self, handle: Any) -> None:
        """Another process has taken its place."""
        self.handle, self.version, self.ready = handle, None, False
        self._calls.clear()
        self.now("starting")

    @property
    def who(self) -> str:
        """Name and node, for messages."""
        return f"{self.name} on {self.node}"

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


class Crew:
    """The actors of a role.

    Args:
        role: prefix of their names.
        make: makes the actor of a name; returns its handle at once.
        max_restarts: of each actor.
        key: config key of that number, for messages.
    """

    def __init__(self, role: str, make: Callable[[str], Any], max_restarts: int, key: str) -> None:
        self._role = role
        self._make = make
        self._max_restarts = max_restarts
        self._key = key
        self._members: dict[str, Member] = {}
        self._placed: set[str] = set()

    def __iter__(self) -> Any:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        """Members that stay."""
        return sum(not member.leaving for member in self._members.values())

    @property
    def placed(self) -> int:
        """Members that stay and have, or had, a place in the cluster: among them work is shared out."""
        return len(self._placed)

    def add(self, *, placed: bool) -> Member:
        """A new actor under the lowest free name.

        Args:
            placed: the cluster is known to have room for it; otherwise it counts from when it is ready.
        """
        number = next(n for n in range(len(self._members) + 1) if f"{self._role}-{n}" not in self._members)
        name = f"{self._role}-{number}"
        member = self._members[name] = Member(name, self._make(name))
        if placed:
            self._placed.add(name)
        return member

    def serves(self, member: Member, node: str) -> None:
        """A member's process is ready, on this host."""
        member.node, member.ready, member.stillborn = node, True, 0
        if not member.leaving:
            self._placed.add(member.name)

    def restart(self, member: Member, error: ActorLost) -> None:
        """A new actor in the place of one that was lost. Raises `RaftError` when its restarts are used up."""
        if not member.ready:
            member.first_death = member.first_death if member.stillborn else str(error)
            member.stillborn += 1
        kill(member)
        if member.stillborn >= START_TRIES:
            raise RaftError(
                f"{member.first_death} (so it began; it died {member.stillborn} times in a row while it started)"
            )
        if member.restarts >= self._max_restarts:
            raise RaftError(f"{error} (restarted {member.restarts} times, {self._key}={self._max_restarts})")
        member.restarts += 1
        member.started_anew(self._make(member.name))

    def remove(self, member: Member) -> None:
        """End an actor for good."""
        kill(member)
        self._members.pop(member.name, None)
        self._placed.discard(member.name)

    def dismiss(self, count: int) -> list[Member]:
        """Ask `count` members to leave after their chunk, the youngest first. Returns them."""
        staying = [member for member in self._members.values() if not member.leaving]
        going = sorted(staying, key=lambda member: int(member.name.rsplit("-", 1)[1]))[-count:] if count > 0 else []
        for member in going:
            member.leaving = True
            self._placed.discard(member.name)
        return going


def spawn(
    actor: type,
    options: dict[str, Any],
    config: Config,
    folder: str,
    run_dir: str,
    table: list[ray.ObjectRef],
    name: str,
) -> Any:
    """Start a rollout or teacher actor of a run; with all but the name bound, a crew's `make`."""
    return ray.remote(actor).options(**options).remote(config, folder, table, name, run_dir)


def kill(member: Member) -> None:
    """End the process, also one that hangs."""
    ray.kill(member.handle, no_restart=True)
