"""What every tracker can do, which run it shows, and what metrics are called in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from raft_ray.config import Config, Tracker, settings

PROJECT = "raft-ray"
"""Where runs are kept whose environment names no other project."""


@dataclass(frozen=True)
class TrackedRun:
    """One training, as trackers show it."""

    folder: Path
    id: str
    """The same for as long as the folder is there, so that a resumed run goes on in the tracker's run."""
    name: str
    group: str
    """The name of the run folder that a comparison's trainings, or a run's methods, have in common."""
    config: Mapping[str, Any]
    """Dotted key -> value; references in place of what came from the environment."""

    @classmethod
    def of(cls, config: Config, folder: Path, run_id: str) -> TrackedRun:
        """The training with this config in a run folder, or in `methods/` of one."""
        parts = folder.absolute().parts
        at = len(parts) - 1 - parts[::-1].index("methods") if "methods" in parts else len(parts)
        seed = f"seed{config.run.seed}"
        place = [part for part in parts[at + 1 :] if part != seed] or [config.distill.method.value]
        return cls(folder, run_id, "-".join([parts[at - 1], *place, seed]), parts[at - 1], settings.flatten(config))

    def opening(self, project: str, **more: Any) -> dict[str, Any]:
        """How W&B's client, and those that are used as it is, are asked for the run; `project` names a variable."""
        where = os.environ.get(project, PROJECT)
        own = {"name": self.name, "group": self.group, "config": dict(self.config)}
        return {"project": where, "resume": "allow", **own, **more}

    def remove(self, pattern: str) -> None:
        """Remove what an earlier start of the run has left in its folder."""
        for old in self.folder.glob(pattern):
            shutil.rmtree(old)


class TrackerClient:
    """One tracker's client. Every method may raise whatever the client raises. `run`: opened anew, or gone on with
    where the tracker has its id. `first`: the first step that will be logged."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        """Of the steps up to `last`, the last that stays when a run goes on at `step`: opened with the one after it as
        `first`, it forgets all that follow. Those that cannot forget keep what they have: it is the same again. Stores
        on this disk are made anew (-1): after a kill nobody knows how much of what was logged is in them."""
        return last

    _run: Any
    """The run of a client that is used as W&B's is."""

    def __init__(self, run: TrackedRun, first: int) -> None:
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step; steps come in order."""
        self._run.log(dict(values), step=step)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """The evaluation of the model after step `step`."""
        self.log(step, values)

    def finish(self) -> None:
        """Send or write what is on the way."""
        self._run.finish()


def client(tracker: Tracker) -> type[TrackerClient]:
    """The client of a tracker. Imports the module here that bears its name, and with it the tracker's package."""
    found: type[TrackerClient] = import_module(f"raft_ray.runs.trackers.{tracker.value}").Client
    return found


def flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a line of `metrics.jsonl`, those of an object in it under `OBJECT/KEY`; `step` and nulls left out.

    >>> flatten({"step": 7, "loss": 0.5, "kl_loss": None, "seconds": {"wait": 1.5}})
    {'loss': 0.5, 'seconds/wait': 1.5}
    """
    return dict(_numbers(line, prefix))


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield f"{prefix}{key}", value
