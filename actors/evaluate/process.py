"""One way of starting, naming, timing out and ending the evaluation's actors, each a process of its own.

with process("EvalActor", EvalActor, (folder, config, asked), options, timeout) as actor:
    sizes = actor.call("start")
    actor.work("answer", sizes, lambda done, total: report("answers", done, total))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.runtime.cluster import here
from actors.runtime.limits import Limits
from actors.runtime.remote import get, paced
from raft_ray.interrupts import interrupts


class Actor:
    """What the evaluation's actors have in common."""

    def where(self) -> str:
        """Node and process, for messages."""
        return f"node {here()} (pid {os.getpid()})"

    def stop(self) -> None:
        """End this process, and the models with it."""
        ray.actor.exit_actor()


class Process:
    """An actor's process, seen from the driver."""

    def __init__(self, actor: Any, who: str, timeout: float) -> None:
        self.actor, self.who, self.timeout = actor, who, timeout

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method returns. Raises as `actors.runtime.remote.get`."""
        return get(getattr(self.actor, method).remote(*arguments), self.timeout, self.who)

    def kept(self, method: str) -> ray.ObjectRef:
        """A reference to what a method returns, which outlives the process."""
        ref: ray.ObjectRef = getattr(self.actor, method).remote()
        ray.wait([ref], timeout=self.timeout, fetch_local=False)
        return ref

    def work(
        self,
        method: str,
        sizes: list[int],
        report: Callable[[int, int], None],
        timeout: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Let a method work through batches of these sizes, in order, and report how much of them is done. `timeout`:
        of each call, where it is another than the process's. `limits`: what calls for the same batches have taken so
        far, where all models take about as long."""
        for batch in range(len(sizes)):
            report(sum(sizes[:batch]), sum(sizes))
            ref = getattr(self.actor, method).remote(batch)
            paced(limits or Limits(), f"{method} {batch}", ref, timeout or self.timeout, self.who)
        if sizes:
            report(sum(sizes), sum(sizes))

    def end(self) -> None:
        """Wait until the process has ended, so that its memory is free; on Ctrl-C it is killed at once."""
        try:
            if interrupts.received is None:
                ray.get(self.actor.stop.remote(), timeout=min(self.timeout, 30.0))
        except ray.exceptions.RayError:
            pass  # What an exit looks like from outside; whatever is left of a hanging process is killed.
        finally:
            ray.kill(self.actor, no_restart=True)


@contextmanager
def process(
    name: str, kind: type[Actor], arguments: tuple[Any, ...], options: dict[str, Any], timeout: float
) -> Iterator[Process]:
    """An actor that lives as long as the block.

    Args:
        name: for messages, which add its node and process.
        options: its resources and environment (`actors.runtime.cluster.actor_options`).
        timeout: seconds for its start and for every call that has no limit of its own.

    Raises `RaftError` with what it needs where it finds no place in time.
    """
    wants = f"{options['num_cpus']:g} CPUs and {options['num_gpus']:g} GPUs"
    who = f"{name} (not placed yet: it waits for {wants} on one node)"
    started = Process(ray.remote(kind).options(**options).remote(*arguments), who, timeout)
    try:
        started.who = f"{name} on {started.call('where')}"
        yield started
    finally:
        started.end()
