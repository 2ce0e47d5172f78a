"""Calls to actors within a time limit, and what their failures mean for the caller.

Of `within`, whose caller can start another actor:

| error | meaning | what helps |
|---|---|---|
| `ActorLost` | the actor died, hung or its engine failed | a new actor, the same work |
| `DataLost` | an object that it needed is gone with its node or its owner | make the object again |
| `RaftError` | it refused, with a message for the user | nothing: the run stops |

Of `get`, whose caller cannot: a `RaftError`, or a defect as the actor raised it.

`understood` says in one line what is left of an error of Ray's own that nobody has caught.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import ray

from actors.runtime.limits import Limits
from raft_ray import errors
from raft_ray.errors import RaftError

FETCH = 600.0
"""Seconds to fetch an object that another process has put into the store."""


class ActorLost(RaftError):
    """The actor cannot go on; another may do its work."""


class Hung(ActorLost):
    """The actor did not answer in time; its process may still be there."""


class DataLost(RaftError):
    """An object is gone; whoever makes it may make it again."""


async def within(ref: Any, timeout: float, who: str, doing: str) -> Any:
    """The value of a call to an actor. `timeout`: seconds. `who`, `doing`: name the actor, with its node, and what it
    does, for the message. Raises `ActorLost`, `DataLost` or `RaftError`, see above."""
    # The call goes on when this wait is cancelled; nobody asks for its value then.
    call = asyncio.ensure_future(_value(ref))
    call.add_done_callback(lambda done: done.cancelled() or done.exception())
    finished, _ = await asyncio.wait((call,), timeout=timeout)
    if not finished:
        raise Hung(f"{who}: still {doing} after {timeout:g} s")
    try:
        return call.result()
    except ray.exceptions.RayError as error:
        raise failure(error, who, doing) from error


def get(ref: Any, timeout: float, who: str) -> Any:
    """The value of a call, for a caller that waits and has no other actor to ask. Unlike `within` it does not count a
    defect as a death: what the actor raised is raised here, with its traceback. `timeout`: seconds. `who`: names the
    actor, with its node, for the message. Raises `RaftError` with which the actor refused, or that names `who` if it
    dies or is late (`Hung`)."""
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise Hung(f"{who}: no answer within {timeout:g} s") from error
    except ray.exceptions.RayTaskError as error:
        raise root_cause(error) from error
    except ray.exceptions.RayError as error:
        raise RaftError(f"{who}: the process died ({one_line(error)})") from error


def paced(limits: Limits, kind: str, ref: Any, most: float, who: str) -> Any:
    """As `get`, within the limit of the calls of this kind so far, at most `most` seconds."""
    begun = time.monotonic()
    value = get(ref, limits.of(kind, most), who)
    limits.took(kind, time.monotonic() - begun)
    return value


def patiently(ref: Any, ping: Callable[[], Any], limit: float, who: str) -> Any:
    """As `get`, of a call that may take any time, as long as the actor answers a ping within `limit` seconds."""
    while True:
        ready, _ = ray.wait([ref], timeout=limit)
        if ready:
            return get(ready[0], limit, who)
        get(ping(), limit, who)


def again(actor: Any, method: str, *arguments: Any, limit: float, who: str) -> Any:
    """As `get`, of a method of an actor that Ray may start again: one that hangs is killed, and asked once more."""
    call = getattr(actor, method)
    try:
        return get(call.remote(*arguments), limit, who)
    except Hung as hung:
        ray.kill(actor, no_restart=False)
        try:
            return get(call.remote(*arguments), limit, who)
        except Hung:
            raise RaftError(f"{hung}; it was killed and started again, with no more success") from None


def failure(error: ray.exceptions.RayError, who: str, doing: str) -> RaftError:
    """What an error of a call means: `ActorLost`, `DataLost`, or the `RaftError` with which the actor refused."""
    cause = root_cause(error)
    if isinstance(cause, RaftError):
        return cause
    if isinstance(cause, ray.exceptions.ObjectLostError):
        return DataLost(f"{who}: an object was lost while {doing}: {one_line(cause)}")
    if isinstance(error, ray.exceptions.RayTaskError):
        return ActorLost(f"{who} failed while {doing}: {cause!r}")
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        return written(str(error)) or ActorLost(f"{who} failed while {doing}: {last_line(error)}")
    return ActorLost(f"{who} died while {doing}: {one_line(error)}")


def root_cause(error: BaseException) -> BaseException:
    """What was raised first, out of what Ray wraps around it for each call that it passed and Ray Train for its ranks.
    Ray Data keeps its text only, and so does Ray of what an actor's start raised: see `written`."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return root_cause(error.cause)
    if failures := getattr(error, "worker_failures", None):
        return root_cause(next(iter(failures.values())))
    controller: BaseException | None = getattr(error, "controller_failure", None)
    return error if controller is None else root_cause(controller)


def written(text: str) -> RaftError | None:
    """The error for the user that a traceback tells of, if there is one."""
    found = re.search(r"^.*\b(?:raft_ray\.errors|actors\.runtime\.remote)\.(\w+): (.*)$", text, re.MULTILINE)
    return getattr(errors, found.group(1), RaftError)(found.group(2)) if found else None


def understood(error: BaseException) -> RaftError | None:
    """One line about an error of Ray or Ray Train; none for what an actor's own code raised, which is a defect."""
    cause = root_cause(error)
    if isinstance(cause, RaftError):
        return cause
    rank = next(iter(getattr(error, "worker_failures", None) or ()), None)
    who = "" if rank is None else f"learner-{rank}: "
    if isinstance(cause, ray.exceptions.GetTimeoutError):
        return RaftError(f"{who}a call was not answered in time: {one_line(cause)}")
    if type(cause).__module__.partition(".")[0] == "ray":
        return RaftError(f"{who}{one_line(cause)}")
    return None


def last_line(error: BaseException) -> str:
    """Of a message that may be a traceback, which ends with what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """What is worth reading of a message of Ray's own, which tells of a death in several lines."""
    if killed := _killed_for_memory(str(error)):
        return killed
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-3:]) if lines else type(error).__name__


def _killed_for_memory(text: str) -> str | None:
    """What Ray's memory monitor says in a page: whom it killed, on how full a node, and what to lower."""
    if "running low on memory" not in text:
        return None
    workers = [
        f"{name or 'a worker'} (pid {pid}, {used} GB)"
        for name, pid, used in re.findall(
            r"\((?:[^()]*?name=([^,()]+), )?[^()]*?pid=(\d+), (?:actual )?memory used=([\d.]+) ?GB", text
        )
    ]
    node = re.search(r"Memory on the node \(IP: ([^,]+),.*?was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB", text, re.DOTALL)
    where = f" on {node[1]}, whose memory was full ({node[2]} of {node[3]} GB)" if node else ""
    return (
        f"Ray killed {' and '.join(workers) or 'a worker'} for memory{where}; lower rollout.actors, "
        "learner.max_tokens_per_microbatch or rollout.kv_cache_gib, or end what else runs there"
    )


async def _value(ref: Any) -> Any:
    return await ref
