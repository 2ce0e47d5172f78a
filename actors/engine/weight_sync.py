"""Weights from the learner to the rollout engines, through vLLM's own weight-transfer interface.

`sync.backend` chooses how a version travels; the interface is the same for all:

```
learner, all ranks                           rollout actor, between two chunks
  Publisher.publish(version) -> Update
    object_store  gather, pack, ray.put ──>  Receiver.load(version, ref, checksum)   pulls, whenever it comes to it
    nccl, ipc     rendezvous            ══>  Receiver.start, receive ..., finish     pushed to all at the same time
```

This file is what `object_store` puts into Ray's object store: one packed buffer a version, which Ray moves between
nodes in a tree. It is also the way of a run's first and last weights with every back end. vLLM's layer-wise reload
takes the tensors in checkpoint names and fuses, shards and re-packs them as it does on loading.

A version v is the weights after v optimizer steps. Nothing here decides when to sync.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.engine.weight_checksum import Checksum
from raft_ray.config import SyncBackend

OBJECT_STORE = "raft_object_store"
ENGINES = {
    SyncBackend.object_store: (OBJECT_STORE, "ObjectStoreEngine"),
    SyncBackend.nccl: ("raft_nccl", "NcclEngine"),
    SyncBackend.ipc: ("raft_ipc", "IpcEngine"),
}
"""Back end -> its name in vLLM's registry, and its class in `actors.engine.weight_sync_engine`."""


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
    """Of all tensors in order, see `actors.engine.weight_checksum`."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """`(checkpoint name, tensor)` in order; views of the buffer, not to be written to."""
        for spec in self.specs:
            part = self.buffer[spec.offset : spec.offset + spec.nbytes]
            # torch warns of read-only memory; nobody writes to it: load_weights copies.
            flat = torch.frombuffer(part, dtype=torch.uint8) if part.size else torch.empty(0, dtype=torch.uint8)
            yield spec.name, flat.view(getattr(torch, spec.dtype)).reshape(spec.shape)


def pack(version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Weights:
    """Copy named tensors into one buffer.

    Args:
        tensors: full (gathered) tensors under their names in the model; a tied tensor once.
    """
    specs: list[TensorSpec] = []
    parts: list[tuple[int, np.ndarray]] = []
    offset = 0
    checksum = Checksum()
    for name, tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy()
        specs.append(TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(tensor.shape), offset, raw.nbytes))
        parts.append((offset, raw))
        checksum.add(name, value)
        offset += -(-raw.nbytes // 64) * 64
    buffer = np.zeros(offset, dtype=np.uint8)
    for start, raw in parts:
        buffer[start : start + raw.nbytes] = raw
    return Weights(version, specs, buffer, checksum.value())


def full_tensors(
    model: Any, zero_stage: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name, full tensor)` of a DeepSpeed model's parameters and persistent buffers in a fixed order, a tied tensor
    once. Names are those in the model.

    Args:
        dtype, device: of what is yielded; none leaves it as it is. Buffers, which nothing trains, keep their dtype.

    Under ZeRO-3 each step is a collective: all ranks must iterate to the end. What is yielded there is a copy, since
    ZeRO takes the gathered tensor apart again while the consumer still packs it. Below ZeRO-3 it may be the
    parameter itself, not to be written to.
    """
    for name, parameter in model.named_parameters():
        if zero_stage < 3:
            yield name, parameter.detach().to(device=device, dtype=dtype)
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            full = parameter.detach().to(device=device, dtype=dtype, copy=True)
        yield name, full
    for name, buffer in persistent_buffers(model):
        yield name, buffer.detach().to(device=device)


def persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those buffers of a model that a checkpoint holds, such as a router's biases; ZeRO leaves them whole."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def register() -> None:
    """Make our engines known to vLLM in this process; call before the engine is built."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, engine in ENGINES.values():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "actors.engine.weight_sync_engine", engine)
