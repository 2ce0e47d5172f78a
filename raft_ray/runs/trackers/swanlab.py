"""SwanLab. `SWANLAB_MODE`, `SWANLAB_PROJ_NAME`, `SWANLAB_WORKSPACE` and the like are heeded by its client."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import swanlab

from raft_ray.runs.trackers.tracker import PROJECT, TrackedRun, TrackerClient

OFFLINE = ("offline", "local")


class Client(TrackerClient):
    """Offline it leaves one folder in `RUN/swanlab`, which `swanlab sync` uploads."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        return -1 if os.environ.get("SWANLAB_MODE") in OFFLINE else last

    def __init__(self, run: TrackedRun, first: int) -> None:
        if first == 0:
            for old in (run.folder / "swanlab").glob(f"run-*-{run.id}"):
                shutil.rmtree(old)
        # Metrics alone: no commands, hosts, packages, code or terminals of the user's.
        probe = swanlab.Settings.Probe(
            hardware=False, runtime=False, requirements=False, git=False, swanlab=False, monitor=False
        )
        quiet = swanlab.Settings(interactive=False, probe=probe, terminal=swanlab.Settings.Terminal(proxy_type="none"))
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
            id=run.id,
            resume="allow",
            name=run.name,
            group=run.group,
            log_dir=str(run.folder / "swanlab"),
            config=dict(run.config),
            settings=quiet,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()
