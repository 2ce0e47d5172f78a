"""The rollout actor of a run whose trajectories are given: it hands out answers in place of samples, without an engine.

Everything else is as with rollouts: the pipeline dispatches rollout batches, and the teacher scores what comes back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ray

from actors.engine.weight_sync import WeightVersion
from actors.runtime.cluster import here, log_to_file
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.distill.trajectory import RolloutBatch, SampleInfo, Trajectory
from raft_ray.models.prompts import EncodedRow


class ReplayActor:
    """Gives each row's answer as its trajectory, as of the newest weights: these have no part in it. It has the
    methods of `RolloutActor` that the pipeline calls."""

    def __init__(self, config: Config, folder: str, table: list[ray.ObjectRef], name: str, run_dir: str) -> None:
        log_to_file(Path(run_dir), name)
        self.name = name
        self._table: dict[int, EncodedRow] = ray.get(table[0], timeout=config.rollout.timeout)
        self._version = 0

    def ready(self) -> str:
        """The actor's node."""
        return here()

    def load_weights(self, weights: WeightVersion) -> float:
        """Take note of the version; no seconds."""
        self._version = weights.version
        return 0.0

    def generate(self, batch: RolloutBatch) -> tuple[list[SampleInfo], list[Trajectory]]:
        """As `RolloutActor.generate`."""
        announce(self.name, "generating", batch.step, rows=[sample_id.row for sample_id in batch.sample_ids])
        trajectories = []
        for sample_id in batch.sample_ids:
            row = self._table[sample_id.row]
            answer = np.asarray(row.response or row.answer, dtype=np.int32)
            trajectories.append(Trajectory(sample_id, self._version, answer, False, self.name))
        return [each.info for each in trajectories], trajectories
