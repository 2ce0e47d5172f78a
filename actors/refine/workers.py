"""What Ray Data runs for stage 1: light workers, in which no model lives, and the tasks that read and write.

A worker takes a slice of the training set batch by batch (`refine.batch` rows, aligned with the row numbers); the
texts come from the engines' pools, endpoints and the cache. Knows nothing about how slices get to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.refine.cache import RemoteStore
from actors.refine.engines import PooledGenerate
from actors.runtime.cluster import here, log_to_file
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.data import Row, RowTable, Slice
from raft_ray.refine.cache import CachedGenerate
from raft_ray.refine.embed import make_embedder
from raft_ray.refine.generation import Generate
from raft_ray.refine.parts import write_part
from raft_ray.refine.prompts import RefinePrompts
from raft_ray.refine.refiner import Refiner, unrefined
from raft_ray.refine.roles import NONE, judges_of
from raft_ray.refine.schema import SOURCE_SCHEMA, refined_table

BEAT = 5.0
"""Seconds between two signs of life of a worker."""
SILENCE = 60.0
"""Seconds without one after which a worker hangs."""


@dataclass(frozen=True)
class Setup:
    """What a worker is given."""

    config: Config
    prompts: RefinePrompts
    identities: dict[str, str]
    """By name, of the models that have a role."""
    pools: dict[str, Any]
    """By name, of the local models: handles of their `EnginePool`s."""
    cache: Any
    """Handle of the `CacheActor`."""
    run_dir: str


class _Worker:
    """Args: `setup`."""

    stage: str

    def __init__(self, setup: Setup) -> None:
        actor = str(ray.get_runtime_context().get_actor_id())
        log_to_file(Path(setup.run_dir), f"refine-{self.stage}-{actor[:8]}")
        self._setup = setup
        self._store = RemoteStore(setup.cache)
        self._embedder = make_embedder(setup.config.refine.embedder)
        self._models: dict[str, Generate] = {}
        handle = [ray.get_runtime_context().current_actor]
        threading.Thread(
            target=self._beat, args=(f"{type(self).__name__} {actor[:8]} on {here()}", handle), daemon=True
        ).start()

    def _beat(self, name: str, handle: list[Any]) -> None:
        """Tell of being alive, as long as this process lives."""
        while True:
            self._setup.cache.beat.remote(name, handle)
            time.sleep(BEAT)

    def _refiner(self, first: int) -> Refiner:
        """For the batch that begins with row `first`."""
        announce(f"refine-{self.stage}", "working", first)
        config, refine, prompts = self._setup.config, self._setup.config.refine, self._setup.prompts

        def model(role: str, name: str) -> Generate:
            return CachedGenerate(self._model(name), self._store, f"{role} {name}", scope=str(first))

        fuses = refine.fuser != NONE
        return Refiner(
            refine,
            seed=config.run.seed,
            rewriter=model("rewriter", refine.rewriter),
            fuser=model("fuser", refine.fuser) if fuses else None,
            embedder=self._embedder,
            judges=judges_of(refine, self._embedder, prompts.judge, lambda name: model("judge", name)) if fuses else [],
            prompts=prompts,
        )

    def _model(self, name: str) -> Generate:
        if name not in self._models:
            self._models[name] = self._make_model(name)
        return self._models[name]

    def _make_model(self, name: str) -> Generate:
        if name in self._setup.pools:
            return PooledGenerate(self._setup.pools[name], self._setup.identities[name])
        from raft_ray.refine.endpoint import Endpoint

        return Endpoint(name, self._setup.config.refine.models[name])

    def _batches(self, table: pa.Table) -> Iterator[list[dict[str, Any]]]:
        size = self._setup.config.refine.batch
        for _, rows in groupby(table.to_pylist(), key=lambda row: row["row"] // size):
            yield list(rows)

    def _count(self, rows: int, start: float) -> None:
        taken = time.monotonic() - start
        self._store.put({}, {(self.stage, "rows"): rows, (self.stage, "seconds"): taken})


class RewriteWorker(_Worker):
    """A slice of `SOURCE_SCHEMA` to one of `REFINED_SCHEMA`: rewritten and filtered."""

    stage = "rewrite"

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.monotonic()
        refined = []
        for batch in self._batches(table):
            refined += self._refiner(batch[0]["row"]).rewrite([_row(record) for record in batch])
        self._count(len(refined), start)
        return refined_table(refined)


class FuseWorker(_Worker):
    """A rewritten slice to a refined one: fused and judged."""

    stage = "fuse"

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.monotonic()
        refined: list[Any] = []
        for batch in self._batches(table):
            self._refiner(batch[0]["row"]).fuse(batch)  # type: ignore[arg-type]
            refined += batch
        self._count(len(refined), start)
        return refined_table(refined)


def pass_on(table: pa.Table) -> pa.Table:
    """A slice as it is, with `refine.enabled=false`."""
    return refined_table([unrefined(_row(record)) for record in table.to_pylist()])


def read(table: RowTable, part: Slice) -> Iterator[pa.Table]:
    """A slice of the training set as one table of `SOURCE_SCHEMA`."""
    records = [
        {"row": row.index, "messages": row.messages, "answer": row.answer, "answers": row.answers}
        for row in table.rows(part.first, part.count)
    ]
    yield pa.Table.from_pylist(records, schema=SOURCE_SCHEMA)


def write(table: pa.Table, slices: dict[int, Slice], settings: str, folder: str) -> pa.Table:
    """Write a refined slice; what remains of it is how many rows it had."""
    announce("refine-write", "writing", table["row"][0].as_py())
    write_part(table, slices[table["row"][0].as_py()], settings, Path(folder))
    return pa.table({"rows": [table.num_rows]})


def _row(record: dict[str, Any]) -> Row:
    return Row(
        index=record["row"], line=0, messages=record["messages"], answer=record["answer"], answers=record["answers"]
    )
