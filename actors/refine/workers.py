"""What Ray Data runs for stage 1: light workers, in which no model lives, and the tasks that read and write.

A worker takes a slice of the training set batch by batch (`refine.batch` rows, aligned with the row numbers); the
texts come from the engines' pools, endpoints and the cache. Knows nothing about how slices get to it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.refine.cache import RemoteStore, keep_beating
from actors.refine.engines import PooledGenerate
from actors.runtime.cluster import here, log_to_file
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.data import Row, RowTable, Slice
from raft_ray.refine.cache import CachedGenerate
from raft_ray.refine.embed import make_embedder
from raft_ray.refine.generation import Generate
from raft_ray.refine.judges import make_judges
from raft_ray.refine.parts import write_part
from raft_ray.refine.refiner import Refiner, unrefined
from raft_ray.refine.roles import NONE, RefinePrompts
from raft_ray.refine.schema import SOURCE_SCHEMA, RefinedRow, refined_table


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
        actor = str(ray.get_runtime_context().get_actor_id())[:8]
        log_to_file(Path(setup.run_dir), f"refine-{self.stage}-{actor}")
        self._setup = setup
        self._store = RemoteStore(setup.cache)
        self._embedder = make_embedder(setup.config.refine.embedder)
        self._models: dict[str, Generate] = {}
        keep_beating(setup.cache, f"{type(self).__name__} {actor} on {here()}")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A slice, batch by batch."""
        start = time.monotonic()
        size = self._setup.config.refine.batch
        refined: list[RefinedRow] = []
        for _, records in groupby(table.to_pylist(), key=lambda record: record["row"] // size):
            batch = list(records)
            announce(f"refine-{self.stage}", "working", batch[0]["row"])
            refined += self._work(self._refiner(batch[0]["row"]), batch)
        spent = {(self.stage, "rows"): len(refined), (self.stage, "seconds"): time.monotonic() - start}
        self._store.put({}, spent)
        return refined_table(refined)

    def _work(self, refiner: Refiner, batch: list[Any]) -> list[RefinedRow]:
        raise NotImplementedError

    def _refiner(self, first: int) -> Refiner:
        """For the batch that begins with row `first`."""
        config, refine, prompts = self._setup.config, self._setup.config.refine, self._setup.prompts

        def model(role: str, name: str) -> Generate:
            return CachedGenerate(self._model(name), self._store, f"{role} {name}", scope=str(first))

        fuses = refine.fuser != NONE
        judges = make_judges(refine, self._embedder, prompts.judge, lambda name: model("judge", name)) if fuses else []
        return Refiner(
            refine,
            seed=config.run.seed,
            rewriter=model("rewriter", refine.rewriter),
            fuser=model("fuser", refine.fuser) if fuses else None,
            embedder=self._embedder,
            judges=judges,
            prompts=prompts,
        )

    def _model(self, name: str) -> Generate:
        if name not in self._models:
            if name in self._setup.pools:
                self._models[name] = PooledGenerate(self._setup.pools[name], self._setup.identities[name])
            else:
                from raft_ray.refine.endpoint import Endpoint

                self._models[name] = Endpoint(name, self._setup.config.refine.models[name])
        return self._models[name]


class RewriteWorker(_Worker):
    """A slice of `SOURCE_SCHEMA` to one of `REFINED_SCHEMA`: rewritten and filtered."""

    stage = "rewrite"

    def _work(self, refiner: Refiner, batch: list[Any]) -> list[RefinedRow]:
        return refiner.rewrite([_row(record) for record in batch])


class FuseWorker(_Worker):
    """A rewritten slice to a refined one: fused and judged."""

    stage = "fuse"

    def _work(self, refiner: Refiner, batch: list[Any]) -> list[RefinedRow]:
        refiner.fuse(batch)
        return batch


def pass_on(table: pa.Table) -> pa.Table:
    """A slice as it is, with `refine.enabled=false`."""
    return refined_table([unrefined(_row(record)) for record in table.to_pylist()])


def read(table: pa.Table, slices: dict[int, Slice], rows: RowTable) -> pa.Table:
    """The slice of the training set that begins with the row `first` in `table`, as one of `SOURCE_SCHEMA`."""
    part = slices[table["first"][0].as_py()]
    records = [
        {"row": row.index, "messages": row.messages, "answer": row.answer, "answers": row.answers}
        for row in rows.rows(part.first, part.count)
    ]
    return pa.Table.from_pylist(records, schema=SOURCE_SCHEMA)


def write(table: pa.Table, slices: dict[int, Slice], settings: str, folder: str) -> pa.Table:
    """Write a refined slice; what remains of it is how many rows it had."""
    first = table["row"][0].as_py()
    announce("refine-write", "writing", first)
    write_part(table, slices[first], settings, Path(folder))
    return pa.table({"rows": [table.num_rows]})


def _row(record: dict[str, Any]) -> Row:
    return Row(
        index=record["row"], line=0, messages=record["messages"], answer=record["answer"], answers=record["answers"]
    )
