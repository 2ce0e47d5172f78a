"""Stage 1 on Ray Data: the training set, slice by slice, into `RUN/refined`.

    data.train ──> read ──> RewriteWorker × n ──> FuseWorker × n ──> write ──> part-<first row>.parquet
                                   │                    │
                                   └──── CacheActor ────┤    what models wrote, in RUN/refine_cache.sqlite
                                   └─── EnginePools ────┘    RefineEngine × actors, a pool a local model

The driver keeps the checked rows on disk, where slices of them are read, and sees how many are done. A batch
(`refine.batch` rows) is asked as a whole, and everything that decides its texts is in its rows and the config, so the
result does not depend on how many workers and engines there are. Ray Data moves the slices, holds back whoever is
ahead, and starts dead workers again. Knows nothing about training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from actors.refine.cache import RemoteStore, cache_actor, hung_workers_killed
from actors.refine.engines import EnginePool, PoolPlan, engine_options, identities, plan_pool
from actors.refine.workers import FuseWorker, RewriteWorker, Setup, pass_on, read, write
from actors.runtime.cluster import actor_options, on_node
from actors.runtime.data_context import quiet_data
from raft_ray.config import Config
from raft_ray.data import RowTable, Slice
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.cache import Counts
from raft_ray.refine.parts import fingerprint, sort_out
from raft_ray.refine.roles import NONE, check_refine, load_prompts, local_models
from raft_ray.refine.schema import part_files, write_summary
from raft_ray.refine.summary import Summary, spending

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


def refine(rows: RowTable, config: Config, out: Path, progress: Progress | None = None) -> Path:
    """Refine the training set's rows into the folder `out` (`RUN/refined`); Ray must be running.

    Writes part files, whose names sort in the order of the rows, and the counts of `_summary.json`. With
    `refine.enabled=false` the rows pass as they are.

    Args:
        out: folder for the refined rows; made here. With `run.resume` part files of the same rows and settings are
            kept, and whatever else models wrote before is taken from the cache.
        progress: called with (rows done, rows) as files are finished.

    Returns `out`. Raises `ConfigError` for settings that cannot work or a folder already used, `RaftError` when a model
    fails or nothing moves for the time limit.
    """
    check_refine(config)
    out = out.absolute()
    if part_files(out) and not config.run.resume:
        raise ConfigError(
            f"run.dir={config.run.dir}: {out} holds refined rows already; set run.resume=true to go on with them, "
            "or name a new folder"
        )
    prompts = load_prompts(config.refine)
    names = identities(config) if config.refine.enabled else {}
    settings = fingerprint(config, prompts, names)
    out.mkdir(parents=True, exist_ok=True)
    pending = sort_out(out, rows.slices(config.refine.batch), settings)
    started = time.monotonic()
    check_resources(config)
    done = len(rows) - sum(part.count for part in pending)
    with cache_actor(out.parent, "refine") as cache, engine_pools(_plans(config), str(out.parent)) as pools:
        before: Counts = RemoteStore(cache).counts()
        setup = Setup(config, prompts, names, pools, cache, str(out.parent))
        if progress:
            progress(done, len(rows))
        with hung_workers_killed(cache):
            for count in _refined(rows, pending, setup, settings, out) if pending else ():
                done += count
                if progress:
                    progress(done, len(rows))
        counts: Counts = RemoteStore(cache).counts()
    summary = Summary()
    for file in part_files(out):
        summary.add(pq.read_table(file).to_pylist())
    result = summary.result()
    if result["rows"] != len(rows):
        raise RaftError(f"{out}: has {result['rows']} refined rows for {len(rows)}; remove the folder and run again")
    result |= {
        **spending(counts, before, config.refine),
        "seconds": round(time.monotonic() - started, 3),
        "prompts": prompts.hashes(),
    }
    write_summary(out, result)
    _log.info("refined %d rows: %d accepted, refused %s", result["rows"], result["accepted"], result["refused"])
    return out


def _refined(table: RowTable, pending: list[Slice], setup: Setup, settings: str, out: Path) -> Iterator[int]:
    """Refine the slices `pending` into part files; yields the rows of each when it is written."""
    config = setup.config
    # No more than there is work for: a worker imports for seconds.
    least = min(config.refine.workers, len(pending))
    most = min(config.refine.max_workers or config.refine.workers, len(pending))
    # On this node, where the training set and the run folder are.
    here: dict[str, Any] = {**_light(), "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    slices = {part.first: part for part in pending}
    source = {"slices": slices, "rows": table}
    logs = f"{out.parent / 'logs'}/refine-*.log"
    with quiet_data("stage 1 failed", logs, start_timeout=config.rollout.timeout) as context:
        context.target_max_block_size = None  # slices stay whole
        # A slice may take hours; each call of a model has its own time limit.
        context.execution_no_progress_timeout_s = -1
        data: Any = ray.data.from_items([{"first": first} for first in slices], override_num_blocks=len(slices))
        # One more than workers: with as many, Ray Data reads inside the workers, which may lack the file.
        data = data.map_batches(read, fn_kwargs=source, concurrency=most + 1, **whole, **here)
        if not config.refine.enabled:
            data = data.map_batches(pass_on, **whole, **here)
        else:
            for stage in [RewriteWorker] if config.refine.fuser == NONE else [RewriteWorker, FuseWorker]:
                data = data.map_batches(
                    stage,
                    fn_constructor_args=(setup,),
                    compute=ActorPoolStrategy(min_size=least, max_size=most),
                    **whole,
                    **_light(),
                )
        arguments = {"slices": slices, "settings": settings, "folder": str(out)}
        written = data.map_batches(write, fn_kwargs=arguments, **whole, **here)
        for receipt in written.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield sum(receipt["rows"].to_pylist())


@contextmanager
def engine_pools(plans: list[PoolPlan], run_dir: str) -> Iterator[dict[str, Any]]:
    """By name, each model's pool; pools end with the block, and their engines with them."""
    overlapped = sum(plan.engines for plan in plans) > 1
    actor: Any = ray.remote(EnginePool).options(**_light(), **on_node())
    pools = {plan.name: actor.remote(plan, engine_options(plan, overlapped), run_dir) for plan in plans}
    try:
        yield pools
    finally:
        for handle in pools.values():
            ray.kill(handle)


def _light() -> dict[str, Any]:
    """Options of what holds no model: no CPU of its own, since engines may hold all."""
    return actor_options(role="refine", num_cpus=0, num_gpus=0, threads=1)


def _plans(config: Config) -> list[PoolPlan]:
    return [plan_pool(config, name) for name in local_models(config.refine)] if config.refine.enabled else []


def check_resources(config: Config) -> None:
    """Refuse engines for which the cluster has no room. Raises `ConfigError`."""
    plans = _plans(config)
    have = ray.cluster_resources()
    for unit in ("CPU", "GPU"):
        need = sum(
            plan.engines * (plan.resources.num_cpus if unit == "CPU" else plan.resources.num_gpus) for plan in plans
        )
        if need > have.get(unit, 0):
            keys = " and ".join(f"{plan.key}={plan.engines}" for plan in plans)
            raise ConfigError(
                f"{keys}: the engines need {need:g} {unit}s, the cluster has {have.get(unit, 0):g}; lower them, or "
                f"what each takes (num_{unit.lower()}s in section rollout or in refine.models)"
            )
