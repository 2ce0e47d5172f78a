"""Stage 1 on Ray Data: rows through engines and endpoints into `RUN/refined`.

    rows ─> _source/part-<first row>.parquet ─ read ─> RefineWorker ─> write ─> part-<first row>-<made by>-*.parquet
            blocks of refine.batch rows               rewrite, filter,          a file a block, in order
            on disk, whatever their number            fuse, judge

A block is refined as a whole by one worker, and its seeds come from its rows, so the result does not depend on how
many engines and workers there are or which of them took it. Workers hold no model; `actors.refine_models` has the
engines that they ask. On resuming, a block whose file is complete is kept, and one that other settings made is made
anew from the texts that are kept. Ray Data places the blocks, holds them back where the next stage is slower, restarts
dead workers and repeats their block; what the rows go through is `raft_ray.refine`. Knows nothing about training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.cluster import log_to_file
from actors.refine_models import RefineBooks, connect, identities, local_models, start_engines
from raft_ray import errors
from raft_ray.config import Config
from raft_ray.data import Row
from raft_ray.errors import ConfigError, DataError, RaftError
from raft_ray.refine.refiner import check_refine, load_prompts, make_refiner, unrefined
from raft_ray.refine.schema import SOURCE_SCHEMA, iterate_refined, part_files, refined_table, summarise, write_summary
from raft_ray.templates import prompt_hash

Progress = Callable[[int, int], None]

_POLL = 0.5
_log = logging.getLogger(__name__)


def refine(rows: Iterable[Row], config: Config, out: Path, progress: Progress | None = None) -> Path:
    """Refine `rows` into the folder `out` (`RUN/refined`); Ray must be running.

    Writes `part-<first row>-*.parquet` files, whose names sort in the order of the rows, and the counts of
    `raft_ray.refine.read_summary`. With `refine.enabled=false` the rows pass as they are.

    Args:
        rows: the training set; read once, never held as a whole.
        config: of the run.
        out: folder for the refined rows; made here. With `run.resume` finished files in it are kept.
        progress: called with (rows done, rows) as files are finished, from a thread of its own.

    Returns `out`. Raises `ConfigError` for settings that cannot work or a folder already used, `DataError` for
    files of other rows in it, `RaftError` when a model fails or nothing moves for the time limit.
    """
    check_refine(config)
    out = out.absolute()
    if part_files(out) and not config.run.resume:
        raise ConfigError(
            f"run.dir={config.run.dir}: {out} holds refined rows already; set run.resume=true to go on with them, "
            "or name a new folder"
        )
    started = time.monotonic()
    blocks = _write_source(rows, config.refine.batch, out)
    pending = _pending(blocks, out, _made_by(config))
    counts: dict[str, dict[str, float]] = {}
    if not config.refine.enabled:
        for block in pending:
            pq.write_table(refined_table([unrefined(row) for row in block.read()]), out / f"{block.name}-off.parquet")
    elif pending:
        with _reported(blocks, out, progress):
            counts = _run(pending, config, out)
    _check_complete(blocks, out)
    summary = summarise(iterate_refined(out) if blocks else [], time.monotonic() - started)
    prompts = {name: prompt_hash(text) for name, text in load_prompts(config.refine).items()}
    write_summary(out, {**summary, "counts": counts, "prompts": prompts})
    if progress:
        progress(summary["rows"], summary["rows"])
    _log.info("refined %d rows: %d accepted, refused %s", summary["rows"], summary["accepted"], summary["refused"])
    return out


class RefineWorker:
    """A worker of Ray Data: the refiner and its rules; models are asked elsewhere."""

    def __init__(
        self, config: Config, run_dir: str, engines: dict[str, list[Any]], named: dict[str, str], books: Any
    ) -> None:
        import ray

        number = ray.get(books.number.remote(), timeout=config.rollout.timeout)
        log_to_file(Path(run_dir), f"refine-worker-{number}")
        self._books = books
        self._seconds: dict[str, float] = defaultdict(float)
        self._refiner = make_refiner(config, connect(config, engines, named, books, number, self._seconds))

    def __call__(self, block: pa.Table) -> pa.Table:
        """A block of `SOURCE_SCHEMA` to one of `REFINED_SCHEMA`, rows in order."""
        start = time.perf_counter()
        refined = refined_table(self._refiner.refine(_rows(block)))
        self._books.count.remote("seconds", {**self._seconds, "worker": time.perf_counter() - start})
        self._seconds.clear()
        return refined


@dataclass(frozen=True)
class _Block:
    """Rows that are refined together and go to one file; they wait in a file of their own."""

    name: str
    """What the name of the finished file begins with."""
    source: Path
    count: int

    def read(self) -> list[Row]:
        return _rows(pq.read_table(self.source))


def _write_source(rows: Iterable[Row], size: int, out: Path) -> list[_Block]:
    """Cut the rows into blocks on disk."""
    folder = out / "_source"
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    left = iter(rows)
    while some := list(islice(left, size)):
        name = f"part-{some[0].index:08d}"
        records = [
            {"row": row.index, "messages": row.messages, "answer": row.answer, "answers": row.answers} for row in some
        ]
        pq.write_table(pa.Table.from_pylist(records, schema=SOURCE_SCHEMA), folder / f"{name}.parquet")
        blocks.append(_Block(name, folder / f"{name}.parquet", len(some)))
    return blocks


def _rows(block: pa.Table) -> list[Row]:
    return [
        Row(index=row["row"], line=0, messages=row["messages"], answer=row["answer"], answers=row["answers"])
        for row in block.to_pylist()
    ]


def _made_by(config: Config) -> str:
    """Eight hex digits that change with everything that a refined row depends on besides the row."""
    if not config.refine.enabled:
        return "off"
    scale = ("actors", "batch", "models")
    settings = {key: value for key, value in asdict(config.refine).items() if key not in scale}
    known = [
        config.run.seed,
        identities(config),
        {name: {**model, "actors": 0} for name, model in config.refine.models.items()},
        settings,
        load_prompts(config.refine),
    ]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _run(blocks: list[_Block], config: Config, out: Path) -> dict[str, dict[str, float]]:
    """Refine `blocks` and write them, one file each. Returns what was counted, see `RefineBooks.counts`."""
    import ray
    from ray.data.exceptions import UserCodeException
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    _check_resources(config)
    run_dir = str(out.parent)
    # Files are on this node, where the run folder is; without CPUs of their own, since engines may hold them all.
    here: dict[str, Any] = {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    }
    books: Any = ray.remote(RefineBooks).options(**here).remote(str(out / "_kept.sqlite"))
    engines = start_engines(config, run_dir)
    try:
        _await_engines(engines, config, out)
        with _data_context(config):
            tables = [pa.table({"file": [str(block.source)]}) for block in blocks]
            # Two workers an engine: one prepares, filters and judges by rules while the other's call is on.
            workers = 2 * max([len(group) for group in engines.values()], default=2)
            data = (
                ray.data.from_arrow(tables)
                .map_batches(
                    _read,
                    batch_size=None,
                    batch_format="pyarrow",
                    num_cpus=0,
                    label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
                )
                .map_batches(
                    RefineWorker,
                    fn_constructor_args=(config, run_dir, engines, identities(config), books),
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(blocks))),
                    batch_size=None,  # a block as it is
                    batch_format="pyarrow",
                    zero_copy_batch=True,
                    num_cpus=0,
                )
            )
            data.write_parquet(str(out), filename_provider=_filenames(blocks, config), ray_remote_args=here)
        counts: dict[str, dict[str, float]] = ray.get(books.counts.remote(), timeout=60)
        return counts
    except (UserCodeException, ray.exceptions.RayError, TimeoutError) as error:
        raise _cause(error, out) from error
    finally:
        for engine in [engine for group in engines.values() for engine in group]:
            ray.kill(engine)
        ray.kill(books)


def _read(files: pa.Table) -> pa.Table:
    (file,) = files["file"].to_pylist()
    return pq.read_table(file)


def _await_engines(engines: dict[str, list[Any]], config: Config, out: Path) -> None:
    """Wait until all engines run: what is wrong with a model is said before anything is asked of it."""
    import ray

    waiting = {engine.ready.remote(): name for name, group in engines.items() for engine in group}
    done, left = ray.wait(list(waiting), num_returns=len(waiting), timeout=config.rollout.timeout)
    ray.get(done)
    if left:
        names = ", ".join(sorted({waiting[ref] for ref in left}))
        raise RaftError(
            f"RefineEngine of {names}: still starting after rollout.timeout={config.rollout.timeout:g} s; "
            f"see {out.parent / 'logs'}/refine-*.log"
        )


@contextmanager
def _data_context(config: Config) -> Iterator[None]:
    """Ray Data's settings for the block: quiet, ordered, and failing where nothing moves any more."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # A block is refine.attempts and refine.rounds calls of each model.
    limit = int(config.rollout.timeout * (1 + config.refine.attempts + 2 * config.refine.rounds))
    context.execution_no_progress_timeout_s = limit
    context.wait_for_min_actors_s = int(config.rollout.timeout)
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that its progress bars are off, among the like
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)


def _filenames(blocks: list[_Block], config: Config) -> Any:
    """Ray Data's name for the file of each block. Blocks are written in order, so task i writes block i."""
    from ray.data.datasource import FilenameProvider

    class BlockNames(FilenameProvider):
        def __init__(self, names: list[str]) -> None:
            super().__init__(file_format="parquet")
            self._names = names

        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            # Ray Data insists on its id, which tells the files of two writes apart.
            return f"{self._names[task_index]}-{write_uuid}.parquet"

    made_by = _made_by(config)
    return BlockNames([f"{block.name}-{made_by}" for block in blocks])


def _stem(file: Path) -> str:
    """The part of a file's name that says which block it is."""
    return "-".join(file.stem.split("-")[:2])


def _pending(blocks: list[_Block], out: Path, made_by: str) -> list[_Block]:
    """The blocks whose file is not complete in `out`; files that were cut off or made by other settings are removed."""
    files = {_stem(file): file for file in part_files(out)}
    pending = []
    for block in blocks:
        file = files.pop(block.name, None)
        if file is None or not _complete(file, block, made_by):
            pending.append(block)
    if files:
        raise _other_rows(next(iter(files.values())))
    return pending


def _complete(file: Path, block: _Block, made_by: str) -> bool:
    columns = ["row", "messages", "answer"]
    try:
        table = pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError):
        file.unlink()  # the write was cut off
        return False
    if table.to_pylist() != pq.read_table(block.source, columns=columns).to_pylist():
        raise _other_rows(file)
    if file.stem.split("-")[2] != made_by:
        file.unlink()
        return False
    return True


def _other_rows(file: Path) -> DataError:
    return DataError(
        f"{file}: holds other rows than this run's; it was made with other data.train or refine.batch. "
        "Use those again, or name a new run.dir"
    )


def _check_complete(blocks: list[_Block], out: Path) -> None:
    found = {_stem(file): pq.read_metadata(file).num_rows for file in part_files(out)}
    wanted = {block.name: block.count for block in blocks}
    if found != wanted:
        raise RaftError(
            f"{out}: has {sum(found.values())} refined rows for {sum(wanted.values())} rows; "
            "remove the folder and run again"
        )


def _check_resources(config: Config) -> None:
    import ray

    have = ray.cluster_resources()
    for resource, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        wanted = {model.name: model.actors * getattr(model, key) for model in local_models(config)}
        if sum(wanted.values()) > have.get(resource, 0):
            parts = ", ".join(f"{name} {need:g}" for name, need in wanted.items())
            raise ConfigError(
                f"refine.actors={config.refine.actors}: stage 1's engines need {sum(wanted.values()):g} {resource}s "
                f"({parts}), the cluster has {have.get(resource, 0):g}; lower refine.actors, refine.models.*.actors "
                f"or their {key}"
            )


@contextmanager
def _reported(blocks: list[_Block], out: Path, progress: Progress | None) -> Iterator[None]:
    """Log and report the rows in finished files while the block runs."""
    sizes = {block.name: block.count for block in blocks}
    ended = threading.Event()

    def watch() -> None:
        reported = -1
        while not ended.wait(_POLL):
            done = sum(sizes.get(_stem(file), 0) for file in part_files(out))
            if done != reported:
                reported = done
                _log.info("refined %d of %d rows", done, sum(sizes.values()))
                if progress:
                    progress(done, sum(sizes.values()))

    thread = threading.Thread(target=watch, name="refine-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _cause(error: Exception, out: Path) -> RaftError:
    """What went wrong in an actor: its own error if that was written for the user, else the reason in one line."""
    # Ray keeps an error of an actor's start as text only, so the text is what there is in every case.
    text = str(error)
    own = re.search(r"^.*\braft_ray\.errors\.(\w+): (.*)$", text, re.MULTILINE)
    if own:
        return getattr(errors, own.group(1), RaftError)(own.group(2))
    reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
    return RaftError(f"stage 1 failed: {reason}; see {out.parent / 'logs'}/refine-*.log")
