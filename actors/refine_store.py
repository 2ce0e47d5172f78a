"""The cache of stage 1's generations for workers on any node: one actor beside the run folder has the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.cluster import log_to_file
from raft_ray.announce import announce
from raft_ray.refine.cache import Counts, GenerationStore
from raft_ray.refine.generation import Generation

FILE = "refine_cache.sqlite"
"""In the run folder."""


class CacheActor:
    """An actor on the node of the run folder."""

    def __init__(self, run_dir: str) -> None:
        log_to_file(Path(run_dir), "refine-cache")
        self._store = GenerationStore(Path(run_dir) / FILE)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Generation]:
        return self._store.get(keys)

    def put(self, generations: Mapping[bytes, Generation], counts: Counts) -> None:
        announce("refine-cache", "writing", generations=len(generations))
        self._store.put(generations, counts)

    def counts(self) -> Counts:
        return self._store.counts()


class RemoteStore:
    """The actor as a `Store`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Generation]:
        found: dict[bytes, Generation] = ray.get(self._actor.get.remote(keys))
        return found

    def put(self, generations: Mapping[bytes, Generation], counts: Counts) -> None:
        """Returns when it is on disk."""
        ray.get(self._actor.put.remote(generations, counts))
