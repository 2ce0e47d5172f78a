"""Calls to actors within a time limit, and what their failures mean for the caller.

Of `within`, whose caller can start another actor:

| error | meaning | what helps |
|---|---|---|
| `ActorLost` | the actor died, hung or its engine failed | a new actor, the same work |
| `DataLost` | an object that it needed is gone with its node or its owner | make the object again |
| `RaftError` | it refused, with a message for the user | nothing: the run stops |

Of `get`, whose caller cannot: a `RaftError`, or a defect as the actor raised it.
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


def get(ref: Any, timeout: float, who: str) -> Any:
    """The value of a call, for a caller that waits and has no other actor to ask.

    Unlike `within` it does not count a defect as a death: what the actor raised is raised here, with its traceback.

    Args:
        timeout: seconds.
        who: names the actor, with its node, for the message.

    Raises `RaftError` with which the actor refused, or that names `who` if it dies or is late.
    """
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise RaftError(f"{who}: no answer within {timeout:g} s (rollout.timeout, teacher.timeout)") from error
    except ray.exceptions.RayTaskError as error:
        raise root_cause(error) from error
    except ray.exceptions.RayError as error:
        raise RaftError(f"{who}: the process died ({one_line(error)})") from error


def failure(error: ray.exceptions.RayError, who: str, doing: str) -> RaftError:
    """What an error of a call means: `ActorLost`, `DataLost`, or the `RaftError` with which the actor refused."""
    cause = root_cause(error)
    if isinstance(cause, RaftError):
        return cause
    if isinstance(cause, ray.exceptions.ObjectLostError):
        return DataLost(f"{who}: an object was lost while {doing}: {one_line(cause)}")
    if isinstance(error, ray.exceptions.RayTaskError):
        return ActorLost(f"{who} failed while {doing}: {cause!r}")
    return ActorLost(f"{who} died while {doing}: {one_line(error)}")


def root_cause(error: BaseException) -> BaseException:
    """What was raised first, out of what Ray wraps around it for each call that it passed and Ray Train for its ranks.

    Ray Data keeps its text only, which `actors.data_context` reads.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return root_cause(error.cause)
    failures = getattr(error, "worker_failures", None)
    return root_cause(next(iter(failures.values()))) if failures else error


def last_line(error: BaseException) -> str:
    """Of a message that may be a traceback, which ends with what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """What is worth reading of a message of Ray's own, which tells of a death in several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-3:]) if lines else type(error).__name__


async def _value(ref: Any) -> Any:
    return await ref
