"""Weights & Biases. `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY` and the like are heeded by its client."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import wandb

from raft_ray.runs.trackers.tracker import PROJECT, TrackedRun, TrackerClient

OFFLINE = ("offline", "dryrun")


class Client(TrackerClient):
    """Offline it leaves one folder in `RUN/wandb`, which `wandb sync` uploads."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        return -1 if os.environ.get("WANDB_MODE") in OFFLINE else last

    def __init__(self, run: TrackedRun, first: int) -> None:
        if first == 0:
            for old in (run.folder / "wandb").glob(f"offline-run-*-{run.id}"):
                shutil.rmtree(old)
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
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            resume="allow",
            name=run.name,
            group=run.group,
            dir=str(run.folder),
            config=dict(run.config),
            settings=quiet,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def finish(self) -> None:
        self._run.finish()
