"""The compatibility gap of a refined folder, measured on the cluster: rows stream through `GapActor`s.

    RUN/refined/part-*.parquet ── Ray Data ──> GapActor × teacher.actors ──> _gap.pq (a row's numbers), _gap.json

The actors are the teacher's (the frozen original model, a forward pass): their resources, and the template of what a
teacher reads, are those of section `teacher`. What is measured is `raft_ray.refine.gap`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from actors.runtime.cluster import actor_options, log_to_file
from actors.runtime.data_context import quiet_data
from raft_ray.config import Config
from raft_ray.config.references import shown
from raft_ray.errors import DataError, RaftError
from raft_ray.files import write_whole
from raft_ray.models import load_chat, load_model, model_context, source
from raft_ray.models.prompts import PromptEncoder, load_teacher_template
from raft_ray.refine.gap import COLUMNS, GAP, VALUES, VALUES_SCHEMA, Gap, measure_rows, read_gap
from raft_ray.refine.schema import part_files

Progress = Callable[[int, int], None]


def measure_gap(config: Config, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Measure the gap of the refined rows in `folder`, write it there, and return it; Ray must be running.

    A gap that was measured on the same files with the same model and template is not measured again. `progress` is
    called with (rows measured, rows). Raises `DataError` for a folder without refined rows, `RaftError` when the model
    cannot read them.
    """
    folder = folder.absolute()
    files = part_files(folder)
    if not files:
        raise DataError(f"{folder}: no refined rows there (part-*.parquet); run `raft-ray refine` first")
    # A teacher that is another model uses the reference in its own way, which says nothing of the original's.
    template = load_teacher_template(config.teacher) if config.teacher.path is None else None
    fingerprint = _fingerprint(config, files, template)
    known = read_gap(folder)
    if known is not None and known.get("fingerprint") == fingerprint and (folder / VALUES).exists():
        return known
    started = time.monotonic()
    total, done = sum(pq.read_metadata(file).num_rows for file in files), 0
    report = progress or (lambda done, total: None)
    report(done, total)
    gap = Gap(config.run.seed)
    partial_file = folder / f"{VALUES}.partial"
    with pq.ParquetWriter(partial_file, VALUES_SCHEMA) as writer:
        for values in _values(config, folder, files, template):
            writer.write_table(values)
            gap.add(values)
            done += values.num_rows
            report(done, total)
    if done != total:
        raise RaftError(f"{folder}: {done} of {total} rows came back from the measurement of the gap; run it again")
    os.replace(partial_file, folder / VALUES)
    result = {
        "model": shown(source(config.model)),
        **gap.result(),
        "seconds": round(time.monotonic() - started, 3),
        "fingerprint": fingerprint,
    }
    write_whole(folder / GAP, json.dumps(result, indent=2) + "\n")
    return result


class GapActor:
    """A worker of Ray Data: the original model."""

    def __init__(self, config: Config, run_dir: str, template: str | None) -> None:
        import torch

        from raft_ray.models.head import Head
        from raft_ray.models.likelihood import mean_log_likelihoods

        log_to_file(Path(run_dir), f"gap-{str(ray.get_runtime_context().get_actor_id())[:8]}")
        folder = source(config.model)
        self._encoder = PromptEncoder(
            load_chat(folder, config.model),
            model_context(folder, config.model),
            teacher_template=template,
            on_long_reference=config.teacher.on_long_reference,
        )
        device = "cuda" if config.teacher.num_gpus > 0 and torch.cuda.is_available() else "cpu"
        model: Any = load_model(folder, config.model).eval()
        model = model.to(device)
        head = Head.of(model).in_float32()
        self._score = partial(mean_log_likelihoods, model, tokens=config.teacher.tokens, head=head)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Refined rows (`COLUMNS`) to `VALUES_SCHEMA`, in order."""
        return pa.Table.from_pylist(measure_rows(batch.to_pylist(), self._encoder, self._score), schema=VALUES_SCHEMA)


def _values(config: Config, folder: Path, files: list[Path], template: str | None) -> Iterator[pa.Table]:
    """Tables of `VALUES_SCHEMA`, in the order of the rows."""
    teacher = config.teacher
    options = actor_options(
        role="gap",
        num_cpus=teacher.num_cpus,
        num_gpus=teacher.num_gpus,
        threads=teacher.threads,
        overlapped=teacher.actors > 1,
    )
    logs = f"{folder.parent / 'logs'}/gap-*.log"
    with quiet_data("compatibility gap", logs, start_timeout=teacher.timeout) as context:
        context.execution_options.preserve_order = True
        # It fails where nothing moves any more.
        context.execution_no_progress_timeout_s = int(2 * teacher.timeout)
        # On this node, where the run folder is; without a CPU of its own, since the actors may hold them all.
        rows = ray.data.read_parquet(
            [str(file) for file in files],
            partitioning=None,
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            override_num_blocks=max(len(files), teacher.actors),
        ).select_columns(COLUMNS)
        data = rows.map_batches(
            GapActor,
            fn_constructor_args=(config, str(folder.parent), template),
            compute=ActorPoolStrategy(size=teacher.actors),
            batch_size=config.refine.batch,
            batch_format="pyarrow",
            **options,
        )
        for values in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(values, pa.Table)
            yield values.select(VALUES_SCHEMA.names).cast(VALUES_SCHEMA)


def _fingerprint(config: Config, files: list[Path], template: str | None) -> str:
    """Tells whether a gap on record is that of these files, this model and this template."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    own = config.model
    model = (source(own), own.dtype.value, own.context, own.thinking, config.run.seed)
    reads = (template, config.teacher.on_long_reference.value)
    return hashlib.sha256(json.dumps([model, reads, facts]).encode()).hexdigest()
