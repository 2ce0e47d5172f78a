"""The teacher inside a learner rank (`teacher.place=learner`): the student's frozen base, its adapter switched off.

```
 next_batch ─> (row, its rollout batch's trajectories) ─> engine(TeacherBatch), adapter off ─> Sample ─> train_step
                                                                └─ what the pipeline records ─> pipeline.scored
```

Rows that came in one rollout batch are scored together, as teacher actors do. So with one rank both make the same
forward passes, whose roundings padding decides. Who waits for whom: under ZeRO-3 every forward pass gathers parameters
from all ranks, so that ranks with fewer passes add idle ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from actors.distill.probes import evaluating
from raft_ray.config import Config
from raft_ray.distill.order import SampleId
from raft_ray.distill.teacher import TeacherBatch, make_teacher_batches
from raft_ray.distill.trajectory import Sample, SampleInfo, Trajectory
from raft_ray.models.prompts import EncodedRow

_IDLE = TeacherBatch([0], torch.zeros(1, 1, dtype=torch.long), [slice(0, 1)], 1)


class Unscored(NamedTuple):
    """A sample of which there is only the trajectory."""

    sample_id: SampleId
    trajectories: list[Trajectory]
    """Of its rollout batch, the same list for all of them."""


class BaseTeacher:
    """All ranks call `score` together. `engine`: of DeepSpeed, around a `Student` with an adapter. `most`: the largest
    of all ranks' counts."""

    def __init__(self, engine: Any, config: Config, most: Callable[[int], int]) -> None:
        self._engine, self._most = engine, most
        self._top_k, self._tokens = config.distill.top_k, config.teacher.tokens
        self._gathers = config.learner.zero_stage == 3

    def score(
        self, rows: Sequence[tuple[EncodedRow, list[Unscored]]]
    ) -> tuple[list[tuple[EncodedRow, list[Sample]]], list[SampleInfo]]:
        """The rows with their samples, and what the pipeline is to know of these. A row that nobody samples has none.
        Without gradients and dropout; draws no random numbers."""
        by_batch: dict[int, list[tuple[int, Trajectory]]] = defaultdict(list)
        for index, (_, unscored) in enumerate(rows):
            for sample_id, trajectories in unscored:
                (own,) = [each for each in trajectories if each.sample_id == sample_id]
                by_batch[id(trajectories)].append((index, own))
        passes: list[tuple[list[tuple[int, Trajectory]], TeacherBatch]] = []
        for part in by_batch.values():
            prompts = [rows[index][0].teacher_prompt for index, _ in part]
            responses = [trajectory.token_ids for _, trajectory in part]
            for batch in make_teacher_batches(prompts, responses, top_k=self._top_k, tokens=self._tokens):
                passes.append(([part[row] for row in batch.rows], batch))
        # Before the first pass: a rank that has none left would wait here for one that gathers.
        idle = self._most(len(passes)) - len(passes) if self._gathers else 0
        samples: dict[int, Sample] = {}
        infos = []
        with evaluating(self._engine):
            for part, batch in passes:
                for (index, trajectory), (ids, logprobs, mass) in zip(part, self._engine(batch), strict=True):
                    samples[index] = Sample(trajectory, ids, logprobs)
                    infos.append(samples[index].info(mass))
            for _ in range(idle):
                self._engine(_IDLE)
        return [(row, [samples[i]] if i in samples else []) for i, (row, _) in enumerate(rows)], infos
