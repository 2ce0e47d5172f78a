"""The student's drift from the original model while it trains: on the original's own answers, as `raft_ray.evaluate.
drift` defines it, without another copy of the model.

The learners begin with the original's weights. So its hidden states [n, D] at its answers' tokens, and a copy of its
head [V, D] in float32, are taken before anything is trained or restored, and stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from actors.distill.probes import evaluating
from raft_ray.config import Config
from raft_ray.distill.student import answer_hidden
from raft_ray.evaluate.drift import Drift, drift_between
from raft_ray.models.head import Head, Pair
from raft_ray.models.prompts import EncodedRow


class DriftMeter:
    """All ranks call its methods together, and each finds the same. `engine`: of DeepSpeed, around a `Student` with the
    original model's weights. `pairs`: prompt ids and response ids of the original model's answers, at least one."""

    def __init__(self, engine: Any, config: Config, pairs: Sequence[Pair]) -> None:
        self._engine, self._learner = engine, config.learner
        self._rows = [EncodedRow(number, prompt, response, []) for number, (prompt, response) in enumerate(pairs)]
        self._hidden_nD = self._hidden()
        with self._head() as head:
            # In float32 `in_float32` is the parameter itself, which training changes.
            self._base = replace(
                head, weight=head.weight.clone(), bias=None if head.bias is None else head.bias.clone()
            )

    def measure(self) -> Drift:
        """Of the weights that the engine has now."""
        tuned_nD = self._hidden()
        with self._head() as head:
            return drift_between(self._base, self._hidden_nD, head, tuned_nD, [len(row.answer) for row in self._rows])

    def _hidden(self) -> torch.Tensor:
        device = next(self._engine.module.parameters()).device
        with evaluating(self._engine):
            return answer_hidden(self._engine, self._rows, device, tokens=self._learner.max_tokens_per_microbatch)

    @contextmanager
    def _head(self) -> Iterator[Head]:
        """The model's head in float32, gathered under ZeRO-3."""
        import deepspeed

        head = Head.of(self._engine.module.model)
        parts = [part for part in (head.weight, head.bias) if part is not None]
        with deepspeed.zero.GatheredParameters(parts, enabled=self._learner.zero_stage == 3):
            yield Head.of(self._engine.module.model).in_float32()
