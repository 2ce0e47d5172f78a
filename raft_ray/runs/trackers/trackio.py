"""Trackio: SQLite files in `TRACKIO_DIR`, or a Space or server that its environment variables name."""

from __future__ import annotations

import os
from contextlib import suppress

import trackio

from raft_ray.runs.trackers.tracker import PROJECT, TrackedRun, TrackerClient


class Client(TrackerClient):
    """Finds a run again by its name, so that bears the id."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        return last if os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL") else -1

    def __init__(self, run: TrackedRun, first: int) -> None:
        project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{run.name}-{run.id}"
        if first == 0:
            with suppress(ValueError):  # the project is new
                for old in trackio.Api().runs(project):
                    if old.name == name:
                        old.delete()
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(**run.opening("TRACKIO_PROJECT", **{"name": name, **quiet}))
