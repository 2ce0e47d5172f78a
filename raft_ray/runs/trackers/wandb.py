"""Weights & Biases. `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY` and the like are heeded by its client."""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from raft_ray.runs.trackers.tracker import TrackedRun, TrackerClient

OFFLINE = ("offline", "dryrun")


class Client(TrackerClient):
    """Offline it leaves one folder in `RUN/wandb`, which `wandb sync` uploads."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        return -1 if os.environ.get("WANDB_MODE") in OFFLINE else last

    def __init__(self, run: TrackedRun, first: int) -> None:
        if first == 0:
            run.remove(f"wandb/offline-run-*-{run.id}")
        # Metrics alone: no commands, hosts, packages, code or terminals of the user's.
        quiet = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_git=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(**run.opening("WANDB_PROJECT", id=run.id, dir=str(run.folder), settings=quiet))

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))
