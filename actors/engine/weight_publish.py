"""The learners' side of weight sync: one interface, whatever the back end.

`publish(version)` is for the rollout actors and is what the back ends differ in; `pack(version)` puts a version into
the object store, for a run's start, for late comers and for the export. Both are collective: every rank calls them,
rank 0 gets the `Update` to hand on.

| `sync.backend` | `publish` returns when | and the rollout actors |
|---|---|---|
| `object_store` | the packed version is in Ray's object store | pull it: `load_weights(version, ref, checksum)` |
| `nccl`, `ipc` | every actor that `hold` named has it, verified | have nothing left to do (`ref` is none) |

See `actors.engine.weight_push` for what the pipeline must do with the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from actors.engine import weight_sync

Hold = Callable[[int], Mapping[str, Any]]
"""`hold(version)`: bring every rollout actor to a chunk boundary and keep it there; their handles by name."""


@dataclass(frozen=True)
class Update:
    """What is known of a published version; small enough to travel. On other ranks than 0 only the version."""

    version: int
    ref: list[ray.ObjectRef] | None = None
    """The packed weights, in a list, so that Ray passes the reference on; none where they were pushed, or to nobody."""
    checksum: int = 0
    nbytes: int = 0
    """Bytes of the weights."""


class Publisher:
    """Publishes through the object store.

    Args:
        model: the causal model, sharded by DeepSpeed if `zero_stage` is 3.
        dtype: of the weights that are sent.
    """

    def __init__(self, model: Any, zero_stage: int, dtype: torch.dtype, rank: int) -> None:
        self._model = model
        self._zero_stage = zero_stage
        self._dtype = dtype
        self._rank = rank

    def publish(self, version: int) -> Update:
        """Give the rollout actors the model's weights as `version`; all ranks."""
        return self.pack(version)

    def pack(self, version: int) -> Update:
        """Put the model's weights into the object store; all ranks."""
        tensors = weight_sync.full_tensors(self._model, self._zero_stage, dtype=self._dtype)
        if self._rank == 0:
            weights = weight_sync.pack(version, tensors)
            return Update(version, [ray.put(weights)], weights.checksum, weights.buffer.nbytes)
        for _ in tensors:
            pass
        return Update(version)

    def close(self) -> None:
        """Leave the rollout actors."""
