"""A DeepSpeed model as the `WeightSource` that vLLM's trainers send from. Importing it imports vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from actors.engine.weight_checksum import Checksum
from actors.engine.weight_sync import full_tensors, persistent_buffers


class DeepSpeedSource(WeightSource):
    """Full tensors under their names in the model, for ZeRO 0-3; each pass reads the weights as they are then.

    Args:
        model: the causal model.
        dtype, device: of what is yielded.
        verify: sum up each pass for `checksum`.

    Under ZeRO-3 every rank must iterate, in step with the others, and gets the full tensors.
    """

    def __init__(self, model: Any, zero_stage: int, dtype: torch.dtype, device: torch.device, verify: bool) -> None:
        self._model = model
        self._zero_stage = zero_stage
        self._dtype = dtype
        self._device = device
        self._verify = verify
        self._checksum = Checksum()

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and full shape of all that a pass yields, without gathering anything."""
        return [
            # Under ZeRO-3 a parameter's own shape is that of an empty tensor.
            ParamMeta(name, self._dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in self._model.named_parameters()
        ] + [ParamMeta(name, buffer.dtype, tuple(buffer.shape)) for name, buffer in persistent_buffers(self._model)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._checksum = Checksum()
        for name, tensor in full_tensors(self._model, self._zero_stage, dtype=self._dtype, device=self._device):
            if self._verify:
                self._checksum.add(name, tensor)
            yield name, tensor

    def checksum(self) -> int:
        """Of the last pass, to be read when it is over and its streams are done; 0 where nobody verifies."""
        return self._checksum.value()

    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [meta.dtype.itemsize * torch.Size(meta.shape).numel() for meta in self.metadata()]
