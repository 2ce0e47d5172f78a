"""A checksum of named tensors, computed where they are: of a GPU's weights only 8 bytes a row come to the host.

Sender and receiver each make one over the same pass. Knows nothing about models, engines or how weights travel.
"""

from __future__ import annotations

import zlib

import torch

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

    def value(self) -> int:
        """CRC-32 over names, dtypes, shapes and the hashes of all rows. Waits for the device."""
        crc = 0
        for header, rows in self._rows:
            crc = zlib.crc32(header.encode(), crc)
            crc = zlib.crc32(rows.cpu().numpy().tobytes(), crc)
        return crc
