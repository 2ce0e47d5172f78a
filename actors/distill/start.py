"""The start of a training's actors: the pipeline actor, which is given how to make the rollout and teacher actors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ray
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from actors.distill.pipeline import PipelineActor
from actors.distill.replay import ReplayActor
from actors.distill.rollout import RolloutActor
from actors.distill.teacher import TeacherActor
from actors.runtime import attach
from actors.runtime.cluster import actor_options, on_node
from raft_ray.config import Config
from raft_ray.distill.order import RowOrder
from raft_ray.errors import RaftError


def start_pipeline(config: Config, run_dir: Path, order: RowOrder, folder: str, teacher: str) -> Any:
    """The handle of the pipeline actor, under its run folder's name. `folder`, `teacher`: of the original model, and of
    the teacher's. Raises `RaftError` while another run trains in the folder."""
    actor = ray.remote(PipelineActor).options(
        **actor_options(role="pipeline", num_cpus=int(config.uses_engines), num_gpus=0, threads=1),
        **on_node(),
        name=attach.actor_name(run_dir),
        namespace=attach.NAMESPACE,
        max_restarts=config.learner.max_restarts,
    )
    rollout = ReplayActor if config.uses_given_trajectories else RolloutActor
    makers = [
        partial(_spawn, kind, _options(config, role), config, of, str(run_dir))
        for role, kind, of in (("rollout", rollout, folder), ("teacher", TeacherActor, teacher))
    ]
    # A driver that was killed leaves its actor for a moment; the name is free when Ray has ended it.
    taken = retry(
        retry=retry_if_exception_type(ValueError), wait=wait_fixed(1), stop=stop_after_delay(30), reraise=True
    )
    try:
        return taken(actor.remote)(config, order, str(run_dir), *makers)
    except ValueError as error:
        raise RaftError(f"run.dir={run_dir}: another run trains there; end it, or choose another --run-dir") from error


def _spawn(
    actor: type,
    options: dict[str, Any],
    config: Config,
    folder: str,
    run_dir: str,
    table: list[ray.ObjectRef],
    name: str,
) -> Any:
    """Start a rollout or teacher actor; with all but table and name bound, what the pipeline actor is given."""
    return ray.remote(actor).options(**options).remote(config, folder, table, name, run_dir)


def _options(config: Config, role: str) -> dict[str, Any]:
    """Resources and process environment of a role's actors."""
    section = config.rollout if role == "rollout" else config.teacher
    options = actor_options(
        role=role,
        num_cpus=section.num_cpus,
        num_gpus=section.num_gpus,
        threads=section.threads,
        overlapped=config.sync.max_staleness > 0,
        keep_memory=role == "teacher",
    )
    if role == "rollout" and config.sync.in_flight:
        options["max_concurrency"] = 2  # weights come in while a rollout batch is being written
    return options
