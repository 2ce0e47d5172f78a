"""A model's named tensors as they travel: gathered under ZeRO, packed for Ray's object store, checksummed."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raft_ray.models.adapters import adapter_parameters, base_parameters, merged

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checksum:
    """Add tensors in their order, then read `value()` once the device has done its work."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, torch.Tensor]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take in a tensor of any shape and dtype; its bits are hashed row by row, in the current stream."""
        bits = tensor.detach().view(_BITS[tensor.element_size()])
        header = f"{name} {tensor.dtype} {list(tensor.shape)}"
        # Kept as a tensor: reading it here would make the host wait for the device at every parameter.
        self._rows.append((header, torch.hash_tensor(bits, dim=-1) if bits.numel() else bits))

    def over(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Add each of `tensors` as it is passed on."""
        for name, tensor in tensors:
            self.add(name, tensor)
            yield name, tensor

    def value(self) -> int:
        """CRC-32 over names, dtypes, shapes and the hashes of all rows: 8 bytes per row come from the device."""
        crc = 0
        for header, rows in self._rows:
            crc = zlib.crc32(header.encode(), crc)
            crc = zlib.crc32(rows.cpu().numpy().tobytes(), crc)
        return crc


@dataclass(frozen=True)
class PackedWeights:
    """The content of one version in Ray's object store, which readers on a node share without copying."""

    version: int
    parts: list[tuple[str, str, tuple[int, ...], np.ndarray]]
    """Checkpoint name, dtype, shape and bytes (uint8) of each tensor, in order."""

    @classmethod
    def of(cls, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> PackedWeights:
        """Pack full tensors. Those on the CPU are not copied: put the result into the store before they change."""
        parts = []
        for name, tensor in tensors:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            parts.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), raw))
        return cls(version, parts)

    @property
    def nbytes(self) -> int:
        return sum(raw.nbytes for *_, raw in self.parts)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """`(checkpoint name, tensor)` in order; views of the store's memory, not to be written to."""
        for name, dtype, shape, raw in self.parts:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                flat = torch.from_numpy(raw)
            yield name, flat.view(getattr(torch, dtype)).reshape(shape)


def full_tensors(
    model: Any,
    zero_stage: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    merge: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name, full tensor)` of a DeepSpeed model's parameters and persistent buffers in a fixed order, a tied tensor
    once. Names are those in the model without an adapter, which is merged into what it yields, a tensor at a time.

    Args:
        dtype, device: of what is yielded; none leaves it as it is. Buffers, which nothing trains, keep their dtype.
        merge: with the adapter; else the frozen weights as they are.

    Under ZeRO-3 each step is a collective: all ranks must iterate to the end. What is yielded there is a copy, since
    ZeRO takes the gathered tensor apart again while the consumer still packs it. Below ZeRO-3 it may be the
    parameter itself, not to be written to.
    """
    for name, parameter, layer in base_parameters(model):
        layer = layer if merge else None
        parts = [parameter, *(adapter_parameters(layer) if layer else ())]
        with gathered(parts, zero_stage):
            full = merged(layer).to(dtype or parameter.dtype) if layer else parameter.detach()
            full = full.to(device=device, dtype=dtype, copy=zero_stage == 3)
        yield name, full
    for name, buffer in persistent_buffers(model):
        yield name, buffer.detach().to(device=device)


def adapter_tensors(model: Any, zero_stage: int) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name, full tensor)` of all that is trained beside frozen weights; collective as `full_tensors`."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with gathered([parameter], zero_stage):
                full = parameter.detach().cpu().clone()
            yield name, full


def gathered(parameters: list[torch.nn.Parameter], zero_stage: int) -> Any:
    """In its block the parameters are whole; under ZeRO-3 a collective, after which they are taken apart again."""
    if zero_stage < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those buffers of a model that a checkpoint holds, such as a router's biases; ZeRO leaves them whole."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
