"""The cache of what models wrote for workers on any node: one actor beside the run folder has the file.

Stage 1's texts are in `refine_cache.sqlite`, the verdicts of the evaluation's judges in `judge_cache.sqlite`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from actors.runtime.cluster import actor_options, here, log_to_file, on_node
from actors.runtime.remote import again, get
from raft_ray.announce import announce
from raft_ray.refine.cache import CompletionStore, Counts
from raft_ray.refine.generation import Completion

_TIMEOUT = 300.0
"""Seconds for its start, and for writing its log into the file."""
LIMIT = 120.0
"""Seconds for reading or writing the texts of a batch of rows."""


class CacheActor:
    """An actor on the node of the run folder.

    Args:
        role: of the models: `refine`, `judge`. Names the file and the log.
    """

    def __init__(self, run_dir: str, role: str) -> None:
        self._name = f"{role}-cache"
        log_to_file(Path(run_dir), self._name)
        self._beats: dict[str, tuple[float, list[Any]]] = {}
        self._path = Path(run_dir) / f"{role}_cache.sqlite"

    @cached_property
    def _store(self) -> CompletionStore:
        """Opened at the first use, whose caller then learns what is wrong with the file."""
        return CompletionStore(self._path)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        return self._store.get(keys)

    def put(self, generations: Mapping[bytes, Completion], counts: Counts) -> None:
        announce(self._name, "writing", generations=len(generations))
        self._store.put(generations, counts)

    def counts(self) -> Counts:
        return self._store.counts()

    def close(self) -> None:
        self._store.close()

    def beat(self, name: str, worker: list[Any]) -> None:
        """A worker of this name (its handle, in a list) is alive."""
        self._beats[name] = time.monotonic(), worker

    def silent(self, limit: float) -> dict[str, tuple[float, list[Any]]]:
        """Workers that have not been heard of for `limit` seconds, with the seconds; they are forgotten."""
        now = time.monotonic()
        found = {name: (now - at, worker) for name, (at, worker) in self._beats.items() if now - at > limit}
        for name in found:
            del self._beats[name]
        return found


@contextmanager
def cache_actor(run_dir: Path, role: str) -> Iterator[Any]:
    """The handle of a `CacheActor` on this node, where the run folder is; the actor ends with the block.

    It takes no CPU of its own, since those whose texts it keeps may hold all. Raises `RaftError` for a damaged file.
    """
    options = actor_options(role=role, num_cpus=0, num_gpus=0, threads=1)
    actor = ray.remote(CacheActor).options(max_restarts=-1, max_task_retries=-1, **options, **on_node())
    handle: Any = actor.remote(str(run_dir), role)
    who = f"{role}-cache on {here()}"
    try:
        get(handle.counts.remote(), _TIMEOUT, who)
        yield handle
        get(handle.close.remote(), _TIMEOUT, who)
    finally:
        ray.kill(handle)


class RemoteStore:
    """The actor as a `Store`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        found: dict[bytes, Completion] = self._call(lambda: self._actor.get.remote(keys))
        return found

    def put(self, generations: Mapping[bytes, Completion], counts: Counts) -> None:
        """Returns when it is on disk."""
        self._call(lambda: self._actor.put.remote(generations, counts))

    def counts(self) -> Counts:
        counts: Counts = self._call(self._actor.counts.remote)
        return counts

    def _call(self, call: Callable[[], Any]) -> Any:
        return again(call, self._actor, LIMIT, "the actor that keeps what models wrote")
