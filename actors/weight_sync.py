"""Weights from the learner to the rollout engines, through vLLM's own weight-transfer interface.

```
learner (all ranks gather, rank 0 packs)          rollout actor (its vLLM worker)
  pack(version, tensors) ── ray.put ──> ref ────> start_weight_update
                                                  update_weights({"weights": [ref]})   ray.get, load, checksum
                                                  finish_weight_update(version)
```

`object_store` is a vLLM weight-transfer engine of ours that works on any machine: one packed buffer a version
in Ray's object store, which moves it between nodes in a tree. vLLM's layer-wise reload takes the tensors in
checkpoint names and fuses, shards and re-packs them as it does on loading.

A version v is the weights after v optimizer steps. Nothing here decides when to sync.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from raft_ray.errors import RaftError

if TYPE_CHECKING:
    from actors.engine import Engine

OBJECT_STORE = "raft_object_store"


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor lies in a packed buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Weights:
    """One version of the model, packed: numpy, so that readers on a node share the store's memory."""

    version: int
    specs: list[TensorSpec]
    buffer: np.ndarray
    """uint8, all tensors one after the other, each at a multiple of 64 bytes."""
    checksum: int
    """CRC-32 over the tensors' bytes in order."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """`(checkpoint name, tensor)` in order; views of the buffer, not to be written to."""
        for spec in self.specs:
            part = self.buffer[spec.offset : spec.offset + spec.nbytes]
            # torch warns of read-only memory; nobody writes to it: load_weights copies.
            flat = torch.frombuffer(part, dtype=torch.uint8) if part.size else torch.empty(0, dtype=torch.uint8)
            yield spec.name, flat.view(getattr(torch, spec.dtype)).reshape(spec.shape)


def pack(version: int, tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Weights:
    """Copy named tensors, cast to `dtype`, into one buffer.

    Args:
        tensors: full (gathered) tensors under their checkpoint names; a tied tensor once.
    """
    specs: list[TensorSpec] = []
    parts: list[tuple[int, np.ndarray]] = []
    offset = 0
    checksum = 0
    for name, tensor in tensors:
        value = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy()
        specs.append(TensorSpec(name, str(dtype).removeprefix("torch."), tuple(tensor.shape), offset, raw.nbytes))
        parts.append((offset, raw))
        checksum = zlib.crc32(raw.data, checksum)
        offset += -(-raw.nbytes // 64) * 64
    buffer = np.zeros(offset, dtype=np.uint8)
    for start, raw in parts:
        buffer[start : start + raw.nbytes] = raw
    return Weights(version, specs, buffer, checksum)


def register() -> None:
    """Make `object_store` known to vLLM in this process; call before the engine is built."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if OBJECT_STORE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(OBJECT_STORE, "actors.weight_sync_engine", "ObjectStoreEngine")


def load_into(engine: Engine, version: int, ref: list[ray.ObjectRef], checksum: int, verify: bool, where: str) -> None:
    """Replace an engine's weights by the version behind `ref`, and check that what arrived is what was sent.

    Args:
        engine: built with the `object_store` weight transfer.
        ref: the reference in a list, so that Ray does not fetch it on the way.
        checksum: the learner's, of the same version.
        where: names actor and node in errors.

    Raises `RaftError` when a worker's checksum differs or a parameter was not covered.
    """
    llm = engine.llm
    llm.start_weight_update()
    llm.update_weights({"update_info": {"weights": ref}})
    llm.finish_weight_update()
    engine.weights_changed()
    if not verify:
        return
    for report in llm.collective_rpc(_report):
        if report["version"] != version or report["checksum"] != checksum:
            raise RaftError(
                f"{where}: weights of version {report['version']} (checksum {report['checksum']:08x}) arrived, "
                f"version {version} (checksum {checksum:08x}) was sent"
            )
        if report["missing"]:
            raise RaftError(f"{where}: version {version} lacks weights for {', '.join(report['missing'][:5])}")


def _report(worker: Any) -> dict[str, Any]:
    report: dict[str, Any] = worker.weight_transfer_engine.report
    return report
