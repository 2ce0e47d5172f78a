"""The teacher actor: the frozen original model, which reads the reference answer and scores the student's tokens.

Holds no state but the model. Gets trajectories as an object reference and returns one object a row, so that
learners fetch just their own rows and nothing passes through the pipeline.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray

from actors.runtime.cluster import here, log_to_file
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.prompts import EncodedRow


class TeacherActor:
    """Scores trajectories under the frozen model in `folder`; `table` is the encoded training rows by row index, as a
    reference in a list."""

    def __init__(self, config: Config, folder: str, table: list[ray.ObjectRef], name: str, run_dir: str) -> None:
        log_to_file(Path(run_dir), name)
        import torch

        self.name = name
        self._config = config
        self._table: dict[int, EncodedRow] = ray.get(table[0], timeout=config.teacher.timeout)
        device = "cuda" if config.teacher.num_gpus > 0 else "cpu"
        model: Any = models.load_model(folder, config.model)
        self._model = model.to(device).eval().requires_grad_(False)
        torch.set_grad_enabled(False)

    def ready(self) -> str:
        """The actor's node, once its model is loaded."""
        return here()

    def score(self, trajectories: list[Trajectory]) -> list[object]:
        """Targets for a rollout batch's trajectories: `[(infos, seconds), sample, sample, ...]`, one return value each.
        Called with `num_returns = 1 + len(trajectories)`."""
        from raft_ray.distill.teacher import score

        announce(self.name, "scoring")
        start = time.perf_counter()
        scored = score(
            self._model,
            [self._table[t.sample_id.row].teacher_prompt for t in trajectories],
            [t.token_ids for t in trajectories],
            top_k=self._config.distill.top_k,
            tokens=self._config.teacher.tokens,
        )
        samples = [Sample(t, ids, values) for t, (ids, values, _) in zip(trajectories, scored, strict=True)]
        infos = [sample.info(mass) for sample, (_, _, mass) in zip(samples, scored, strict=True)]
        return [(infos, time.perf_counter() - start), *samples]
