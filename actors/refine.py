"""Stage 1 on Ray Data: rows through `RefineActor`s (a vLLM engine each) into `RUN/refined`.

    rows ── blocks of refine.batch rows ──> RefineActor × refine.actors ──> part-<first row>-*.parquet
                                            rewrite, filter, fuse           a file a block, in order

A block is refined as a whole by one actor, and its seeds come from its rows, so the result does not depend on how
many actors there are or which of them took it. A block whose file is complete is not refined again on resuming.
Ray Data places the blocks, restarts dead actors and repeats their block; what the rows go through is
`raft_ray.refine`. Knows nothing about training.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.cluster import actor_options, log_to_file
from raft_ray import errors
from raft_ray.config import Config
from raft_ray.data import Row
from raft_ray.errors import ConfigError, DataError, RaftError
from raft_ray.models import load_tokenizer, model_context, resolve
from raft_ray.prompts import PromptEncoder
from raft_ray.refine.generation import Generation
from raft_ray.refine.refiner import check_refine, make_refiner, unrefined
from raft_ray.refine.schema import (
    SOURCE_SCHEMA,
    Message,
    RefinedRow,
    part_files,
    read_refined,
    refined_table,
    summarise,
    write_summary,
)

if TYPE_CHECKING:
    from actors.engine import Engine

Progress = Callable[[int, int], None]

_POLL = 0.5
_log = logging.getLogger(__name__)


def refine(rows: list[Row], config: Config, out: Path, progress: Progress | None = None) -> Path:
    """Refine `rows` into the folder `out` (`RUN/refined`); Ray must be running.

    Writes `part-<first row>-*.parquet` files, whose names sort in the order of the rows, and the counts of
    `raft_ray.refine.read_summary`. With `refine.enabled=false` the rows pass as they are.

    Args:
        rows: the training set.
        config: of the run.
        out: folder for the refined rows; made here. With `run.resume` finished files in it are kept.
        progress: called with (rows done, rows) as files are finished, from a thread of its own.

    Returns `out`. Raises `ConfigError` for settings that cannot work or a folder already used, `DataError` for
    files of other rows in it, `RaftError` when an engine fails or nothing moves for the time limit.
    """
    check_refine(config)
    out = out.absolute()
    blocks = [_Block(rows[i : i + config.refine.batch]) for i in range(0, len(rows), config.refine.batch)]
    pending = _pending(blocks, out, config)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if not config.refine.enabled:
        for block in pending:
            pq.write_table(refined_table([unrefined(row) for row in block.rows]), out / f"{block.name}.parquet")
    elif pending:
        with _reported(blocks, out, progress):
            _run(pending, config, out)
    refined = read_refined(out) if rows else []
    _check_complete(refined, rows, out)
    summary = summarise(refined, time.monotonic() - started)
    write_summary(out, summary)
    if progress:
        progress(len(rows), len(rows))
    _log.info("refined %d rows: %d accepted, refused %s", summary["rows"], summary["accepted"], summary["refused"])
    return out


class RefineActor:
    """A worker of Ray Data: an engine with the original model, and the refiner that uses it."""

    def __init__(self, config: Config, run_dir: str) -> None:
        import ray

        log_to_file(Path(run_dir), f"refine-{str(ray.get_runtime_context().get_actor_id())[:8]}")
        from actors.engine import Engine

        folder = resolve(config.model.path)
        context = model_context(folder, config.model)
        self._tokenizer = load_tokenizer(folder, config.model)
        self._encoder = PromptEncoder(self._tokenizer, context)
        self._context = context
        self._engine: Engine = Engine(
            folder,
            dtype=config.model.dtype,
            context=context,
            kv_cache_gib=config.rollout.kv_cache_gib,
            threads=config.rollout.threads,
            tensor_parallel=config.rollout.tensor_parallel,
            gpu_memory_utilization=config.rollout.gpu_memory_utilization,
            trust_remote_code=config.model.trust_remote_code,
            allow_pickle=config.model.allow_pickle,
        )
        self._refiner = make_refiner(config, self.generate)

    def __call__(self, block: pa.Table) -> pa.Table:
        """A block of `SOURCE_SCHEMA` to one of `REFINED_SCHEMA`, rows in order."""
        rows = [
            Row(index=row["row"], line=0, messages=row["messages"], answer=row["answer"], answers=row["answers"])
            for row in block.to_pylist()
        ]
        return refined_table(self._refiner.refine(rows))

    def generate(
        self, chats: list[list[Message]], *, temperature: float, max_new_tokens: int, seed: int
    ) -> list[Generation]:
        """The model's text for each chat, special tokens left out; see `raft_ray.refine.refiner.Generate`."""
        prompts = [self._encoder.prompt(chat) for chat in chats]
        fitting = [ids for ids in prompts if len(ids) + max_new_tokens <= self._context]
        completions = iter(
            self._engine.generate(fitting, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            if fitting
            else []
        )
        generations = []
        for ids in prompts:
            if len(ids) + max_new_tokens > self._context:
                generations.append(Generation("", truncated=False, too_long=True))
                continue
            completion = next(completions)
            text = self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            generations.append(Generation(str(text), completion.truncated))
        return generations


@dataclass
class _Block:
    """Rows that are refined together and go to one file."""

    rows: list[Row]

    @property
    def name(self) -> str:
        """What the file's name begins with."""
        return _name(self.rows[0].index)

    def table(self) -> pa.Table:
        records = [
            {"row": row.index, "messages": row.messages, "answer": row.answer, "answers": row.answers}
            for row in self.rows
        ]
        return pa.Table.from_pylist(records, schema=SOURCE_SCHEMA)


def _run(blocks: list[_Block], config: Config, out: Path) -> None:
    """Refine `blocks` and write them, one file each."""
    import ray
    from ray.data.exceptions import UserCodeException
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    _check_resources(config)
    options = actor_options(
        role="refine",
        num_cpus=config.rollout.num_cpus,
        num_gpus=config.rollout.num_gpus,
        threads=config.rollout.threads,
        overlapped=config.refine.actors > 1,
    )
    with _data_context(config):
        data = ray.data.from_arrow([block.table() for block in blocks]).map_batches(
            RefineActor,
            fn_constructor_args=(config, str(out.parent)),
            compute=ray.data.ActorPoolStrategy(size=config.refine.actors),
            batch_size=None,  # a block as it is
            batch_format="pyarrow",
            zero_copy_batch=True,
            **options,
        )
        try:
            # On this node, where the run folder is; without a CPU of its own, since the actors may hold them all.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            data.write_parquet(
                str(out),
                filename_provider=_filenames(blocks),
                ray_remote_args={"num_cpus": 0, "scheduling_strategy": here},
            )
        except (UserCodeException, ray.exceptions.RayError, TimeoutError) as error:
            raise _cause(error, out) from error


@contextmanager
def _data_context(config: Config) -> Iterator[None]:
    """Ray Data's settings for the block: quiet, ordered, and failing where nothing moves any more."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # A block is refine.attempts and refine.rounds calls of the engine, and the first waits for the engine's start.
    limit = int(config.rollout.timeout * (1 + config.refine.attempts + config.refine.rounds))
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


def _filenames(blocks: list[_Block]) -> Any:
    """Ray Data's name for the file of each block. Blocks are written in order, so task i writes block i."""
    from ray.data.datasource import FilenameProvider

    class BlockNames(FilenameProvider):
        def __init__(self, names: list[str]) -> None:
            super().__init__(file_format="parquet")
            self._names = names

        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            # Ray Data insists on its id, which tells the files of two writes apart.
            return f"{self._names[task_index]}-{write_uuid}.parquet"

    return BlockNames([block.name for block in blocks])


def _name(first: int) -> str:
    return f"part-{first:08d}"


def _stem(file: Path) -> str:
    """The part of a file's name that says which block it is."""
    return "-".join(file.stem.split("-")[:2])


def _pending(blocks: list[_Block], out: Path, config: Config) -> list[_Block]:
    """The blocks whose file is not complete in `out`; files that were cut off are removed."""
    files = {_stem(file): file for file in part_files(out)}
    if files and not config.run.resume:
        raise ConfigError(
            f"run.dir={config.run.dir}: {out} holds refined rows already; set run.resume=true to go on with them, "
            "or name a new folder"
        )
    pending = []
    for block in blocks:
        file = files.pop(block.name, None)
        if file is None or not _complete(file, block):
            pending.append(block)
    if files:
        raise _other_rows(next(iter(files.values())))
    return pending


def _complete(file: Path, block: _Block) -> bool:
    try:
        table = pq.read_table(file, columns=["row", "prompt", "answer"])
    except (pa.ArrowInvalid, OSError):
        file.unlink()  # the write was cut off
        return False
    expected = [{"row": row.index, "prompt": row.prompt, "answer": row.answer} for row in block.rows]
    if table.to_pylist() != expected:
        raise _other_rows(file)
    return True


def _other_rows(file: Path) -> DataError:
    return DataError(
        f"{file}: holds other rows than this run's; it was made with other data.train or refine.batch. "
        "Use those again, or name a new run.dir"
    )


def _check_complete(refined: list[RefinedRow], rows: list[Row], out: Path) -> None:
    if [row["row"] for row in refined] != [row.index for row in rows]:
        raise RaftError(f"{out}: has {len(refined)} refined rows for {len(rows)} rows; remove the folder and run again")


def _check_resources(config: Config) -> None:
    import ray

    have = ray.cluster_resources()
    for name, each in (("CPU", config.rollout.num_cpus), ("GPU", config.rollout.num_gpus)):
        need = config.refine.actors * each
        if need > have.get(name, 0):
            raise ConfigError(
                f"refine.actors={config.refine.actors}: they need {need:g} {name}s (rollout.num_{name.lower()}s each), "
                f"the cluster has {have.get(name, 0):g}; lower one of the two"
            )


@contextmanager
def _reported(blocks: list[_Block], out: Path, progress: Progress | None) -> Iterator[None]:
    """Log and report the rows in finished files while the block runs."""
    sizes = {block.name: len(block.rows) for block in blocks}
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
    return RaftError(f"RefineActor failed: {reason}; see {out.parent / 'logs'}/refine-*.log")
