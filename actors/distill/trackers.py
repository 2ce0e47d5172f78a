"""Tracker work that is none of the pipeline actor's: the check of its node beforehand, and evaluations afterwards.

Both run as a task on the driver's node, whose processes have the environment that the pipeline actor has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray

from actors.runtime.cluster import actor_options, here, log_to_file, on_node
from actors.runtime.remote import get, last_line, root_cause
from raft_ray.config import Config, Tracker
from raft_ray.runs.records import write_event
from raft_ray.runs.trackers import check_trackers, track_evaluation

LIMIT = 120.0
"""Seconds for a task's start, and for each training whose evaluation is tracked."""


def check_node(configs: Iterable[Config]) -> None:
    """Refuse trackers that cannot work in Ray's processes on this node. Raises `ConfigError`."""
    trackers = {tracker for config in configs for tracker in config.run.trackers} - {Tracker.tensorboard}
    if trackers:
        where = f" (of Ray's processes on {here()}: start Ray there with it)"
        get(_task(check_trackers).remote(sorted(trackers), where), LIMIT, f"the check of run.trackers on {here()}")


def track_evaluations(
    trainings: Mapping[str, tuple[Config, Path]], methods: Mapping[str, Any], run_dir: Path
) -> list[str]:
    """Put each training's evaluation into its runs in the trackers. A tracker that fails stops nothing. `trainings`:
    config and run folder by name in `methods`. `methods`: that part of `eval.json`. Returns a line for each failure,
    which is in the training's `events.jsonl` as well."""
    tracked = {name: each for name, each in trainings.items() if each[0].run.trackers and name in methods}
    if not tracked:
        return []
    scores = {name: {"main": methods[name], "base": methods.get("base")} for name in tracked}
    ref = _task(_track).remote(str(run_dir), [(*each, scores[name]) for name, each in tracked.items()])
    try:
        return get(ref, LIMIT * (1 + len(tracked)), "the task that tracks evaluations")
    # The models are trained and evaluated, and stay so.
    except Exception as error:
        ray.cancel(ref, force=True)
        return [f"evaluations are not in the trackers: {last_line(root_cause(error))}"]


def _track(run_dir: str, tracked: list[tuple[Config, Path, dict[str, Any]]]) -> list[str]:
    log_to_file(Path(run_dir), "trackers")
    failures = []
    for config, folder, blocks in tracked:
        for text in track_evaluation(config, folder, blocks["main"], blocks["base"]):
            write_event(folder, "notice", "tracker", here(), text)
            failures.append(text)
    return failures


def _task(work: Any) -> Any:
    options = actor_options(role="trackers", num_cpus=0, num_gpus=0, threads=1)
    return ray.remote(work).options(**options, **on_node(), max_retries=0)
