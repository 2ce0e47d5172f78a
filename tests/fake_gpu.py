"""A GPU for vLLM's weight transfer, without one: what its `nccl` and `ipc` engines ask of CUDA and NCCL, on the CPU.

vLLM's own code runs on both sides. Replaced are: streams (all is synchronous), the device's name, NCCL's communicator
(here over the rendezvous store that vLLM's group already has) and exported memory (here a mapped file, which two
processes share as they share memory of a GPU: what one writes later, the other sees).
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
from types import SimpleNamespace
from typing import Any

import torch


class Communicator:
    """In the place of `PyNcclCommunicator`: like NCCL, a sender waits for all receivers, until it is aborted."""

    corrupt = False
    """The next part that this process receives has a bit wrong."""
    fail = False
    """The second part of the next update that this process receives is an error."""

    def __init__(self, group: Any, device: Any) -> None:
        self._group = group
        self._aborted = threading.Event()
        self._count = 0
        group.all_gather_obj(group.rank)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        if self._aborted.is_set():
            return
        store, rank, world = self._group.store, self._group.rank, self._group.world_size
        key = f"part/{self._count}"
        self._count += 1
        if Communicator.fail and self._count == 2:
            Communicator.fail = False
            raise RuntimeError("NCCL error")
        if rank == src:
            store.set(key, tensor.numpy().tobytes())
            taken = [f"{key}/{reader}" for reader in range(world) if reader != src]
            while not store.check(taken) and not self._aborted.wait(0.002):
                pass
        else:
            tensor.copy_(torch.frombuffer(bytearray(store.get(key)), dtype=torch.uint8))
            if Communicator.corrupt:
                Communicator.corrupt = False
                tensor[0] ^= 1
            store.set(f"{key}/{rank}", "")

    def destroy(self) -> None:
        self._aborted.set()


class Stream:
    def synchronize(self) -> None:
        """Nothing is ever outstanding."""


def install(uuid: str, folder: str) -> None:
    """Give this process the GPU called `uuid`; after DeepSpeed and vLLM have found that there is none.

    Exported memory lies in `folder`.
    """
    from torch.multiprocessing import reductions
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import ipc_engine, packed_tensor

    cuda: Any = torch.cuda
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.current_stream = lambda *_: Stream()
    cuda.get_device_properties = lambda *_: SimpleNamespace(uuid=uuid)
    cuda.synchronize = cuda.ipc_collect = lambda *_: None
    torch.accelerator.current_device_index = lambda: 0  # type: ignore[assignment]
    packed_tensor._get_streams = lambda device, count: (Stream(),) * count  # type: ignore[assignment]
    pynccl.PyNcclCommunicator = Communicator  # type: ignore[assignment,misc]

    files: dict[int, str] = {}
    empty = torch.empty

    def empty_on_gpu(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        if device != "cuda":
            return empty(*size, device=device, **options)
        handle, path = tempfile.mkstemp(dir=folder)
        os.close(handle)
        tensor = torch.from_file(path, shared=True, size=math.prod(size), **options)
        files[tensor.data_ptr()] = path
        return tensor

    def export(tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
        # Seven entries at least: vLLM writes the reader's device into the one with index 6.
        return None, (files[tensor.data_ptr()], tensor.numel(), None, None, None, None, 0)

    def rebuild(path: str, size: int, *rest: Any) -> torch.Tensor:
        return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)

    torch.empty = empty_on_gpu  # type: ignore[assignment]
    packed_tensor.reduce_tensor = export  # type: ignore[assignment]
    ipc_engine.reduce_tensor = export  # type: ignore[assignment]
    reductions.rebuild_cuda_tensor = rebuild  # type: ignore[assignment]
