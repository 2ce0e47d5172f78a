"""SwanLab. `SWANLAB_MODE`, `SWANLAB_PROJ_NAME`, `SWANLAB_WORKSPACE` and the like are heeded by its client."""

from __future__ import annotations

import os

import swanlab

from raft_ray.runs.trackers.tracker import TrackedRun, TrackerClient

OFFLINE = ("offline", "local")


class Client(TrackerClient):
    """Offline it leaves one folder in `RUN/swanlab`, which `swanlab sync` uploads."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        return -1 if os.environ.get("SWANLAB_MODE") in OFFLINE else last

    def __init__(self, run: TrackedRun, first: int) -> None:
        if first == 0:
            run.remove(f"swanlab/run-*-{run.id}")
        # Metrics alone: no commands, hosts, packages, code or terminals of the user's.
        probe = swanlab.Settings.Probe(
            hardware=False, runtime=False, requirements=False, git=False, swanlab=False, monitor=False
        )
        quiet = swanlab.Settings(interactive=False, probe=probe, terminal=swanlab.Settings.Terminal(proxy_type="none"))
        folder = str(run.folder / "swanlab")
        self._run = swanlab.init(**run.opening("SWANLAB_PROJ_NAME", id=run.id, log_dir=folder, settings=quiet))
