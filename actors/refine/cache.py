"""The cache of what models wrote, for workers on any node: one actor beside the run folder has the file.

    worker ── get, put, beat ──> CacheActor <── silent? ── driver ── kill ──> worker, which Ray Data starts again

Stage 1's texts are in `refine_cache.sqlite`, the verdicts of the evaluation's judges in `judge_cache.sqlite`. The actor
also hears from stage 1's workers that they live: Ray Data would wait without end for one that hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from actors.runtime.cluster import here, keeper, log_to_file
from actors.runtime.remote import again, get
from actors.runtime.watch import repeated
from raft_ray.announce import announce
from raft_ray.refine.cache import CompletionStore, Counts
from raft_ray.refine.generation import Completion

LIMIT = 120.0
"""Seconds for reading or writing the texts of a batch of rows."""
BEAT = 5.0
"""Seconds between two signs of life of a worker."""
SILENCE = 60.0
"""Seconds without one after which a worker hangs."""
_TIMEOUT = 300.0
"""Seconds for the actor's start, and for writing its log into the file."""

_log = logging.getLogger(__name__)


class CacheActor(CompletionStore):
    """An actor on the node of the run folder; its first call says what is wrong with the file. `role`: of the models:
    `refine`, `judge`. Names the file and the log."""

    def __init__(self, run_dir: str, role: str) -> None:
        super().__init__(Path(run_dir) / f"{role}_cache.sqlite")
        self._name = f"{role}-cache"
        log_to_file(Path(run_dir), self._name)
        self._beats: dict[str, tuple[float, list[Any]]] = {}

    def put(self, completions: Mapping[bytes, Completion], counts: Counts) -> None:
        announce(self._name, "writing", completions=len(completions))
        super().put(completions, counts)

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
    """The handle of a `CacheActor` on this node, where the run folder is; the actor ends with the block. Raises
    `RaftError` for a damaged file."""
    who = f"{role}-cache on {here()}"
    with keeper(CacheActor, role, str(run_dir), role) as handle:
        get(handle.counts.remote(), _TIMEOUT, who)
        yield handle
        get(handle.close.remote(), _TIMEOUT, who)


class RemoteStore:
    """The actor as a `Store`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        found: dict[bytes, Completion] = self._call("get", keys)
        return found

    def put(self, completions: Mapping[bytes, Completion], counts: Counts) -> None:
        """Returns when it is on disk."""
        self._call("put", completions, counts)

    def counts(self) -> Counts:
        counts: Counts = self._call("counts")
        return counts

    def _call(self, method: str, *arguments: Any) -> Any:
        return again(self._actor, method, *arguments, limit=LIMIT, who="the actor that keeps what models wrote")


def keep_beating(actor: Any, name: str) -> None:
    """Tell the `CacheActor`, as long as this process lives, that the worker in it does."""
    handle = [ray.get_runtime_context().current_actor]

    def beat() -> None:
        while True:
            actor.beat.remote(name, handle)
            time.sleep(BEAT)

    threading.Thread(target=beat, daemon=True).start()


@contextmanager
def hung_workers_killed(cache: Any) -> Iterator[None]:
    """For the block a worker that has not been heard of for `SILENCE` seconds is killed, with a warning that names it.
    `cache`: handle of the `CacheActor` that they tell."""

    def look() -> None:
        try:
            silent = ray.get(cache.silent.remote(SILENCE), timeout=SILENCE)
        except ray.exceptions.RayError:
            return  # those who need the cache meet the same error
        for name, (seconds, (worker,)) in silent.items():
            # One that has ended answers a call with an error, at once.
            if not ray.wait([worker.__ray_ready__.remote()], timeout=5)[0]:
                _log.warning("%s has been silent for %.0f s: killed, Ray Data starts it again", name, seconds)
                ray.kill(worker, no_restart=False)

    with repeated(look, SILENCE / 4, "refine-pulse"):
        yield
