"""Which publisher a run's learners send their weights with (`sync.backend`)."""

from __future__ import annotations

from typing import Any

import torch

from actors.engine.weight_publish import Hold, Publisher
from raft_ray.config import Config, Dtype, SyncBackend


def make_publisher(config: Config, model: Any, rank: int, hold: Hold) -> Publisher:
    """The publisher of `sync.backend`; imports vLLM only where it sends.

    Args:
        hold: called on rank 0 (see `weight_publish`); `object_store` needs none.
    """
    stage = config.learner.zero_stage
    dtype = getattr(torch, Dtype(config.model.dtype).value)
    if config.sync.backend is SyncBackend.object_store:
        return Publisher(model, stage, dtype, rank)
    from actors.engine.weight_push import IpcPublisher, NcclPublisher

    push = NcclPublisher if config.sync.backend is SyncBackend.nccl else IpcPublisher
    return push(
        model,
        stage,
        dtype,
        rank,
        hold=hold,
        workers=config.rollout.tensor_parallel,
        timeout=config.sync.timeout,
        verify=config.sync.checksum,
    )
