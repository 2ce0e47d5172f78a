"""Calls to actors within a time limit, and what their failures mean for the caller.

| error | meaning | what helps |
|---|---|---|
| `ActorLost` | the actor died, hung or its engine failed | a new actor, the same work |
| `DataLost` | an object that it needed is gone with its node or its owner | make the object again |
| `RaftError` | it refused, with a message for the user | nothing: the run stops |
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from raft_ray.errors import RaftError


class ActorLost(RaftError):
    """The actor cannot go on; another may do its work."""


class DataLost(RaftError):
    """An object is gone; whoever makes it may make it again."""


async def within(ref: Any, timeout: float, who: str, doing: str) -> Any:
    """The value of a call to an actor.

    Args:
        timeout: seconds.
        who, doing: name the actor, with its node, and what it does, for the message.

    Raises `ActorLost`, `DataLost` or `RaftError`, see above.
    """
    try:
        return await asyncio.wait_for(asyncio.shield(_value(ref)), timeout)
    except TimeoutError:
        raise ActorLost(f"{who}: still {doing} after {timeout:g} s") from None
    except ray.exceptions.RayError as error:
        raise failure(error, who, doing) from error


def failure(error: ray.exceptions.RayError, who: str, doing: str) -> RaftError:
    """What an error of a call means: `ActorLost`, `DataLost`, or the `RaftError` with which the actor refused."""
    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, RaftError):
            return error.cause
        if not isinstance(error.cause, ray.exceptions.ObjectLostError):
            return ActorLost(f"{who} failed while {doing}: {error.cause!r}")
        error = error.cause
    if isinstance(error, ray.exceptions.ObjectLostError):
        return DataLost(f"{who}: an object was lost while {doing}: {one_line(error)}")
    return ActorLost(f"{who} died while {doing}: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """What is worth reading of a message of Ray's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-3:]) if lines else type(error).__name__


async def _value(ref: Any) -> Any:
    return await ref
