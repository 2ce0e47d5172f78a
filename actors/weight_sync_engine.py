"""vLLM's side of `object_store`: a weight-transfer engine that reads a packed version from Ray's object store.

A file of its own because importing it imports vLLM, which learners do not have to.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weight_sync import Weights


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the store is there already."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """What an update brings: the reference of one packed version, in a list."""

    weights: list[ray.ObjectRef] = field(default_factory=list)


class ObjectStoreEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads a version from the object store by vLLM's layer-wise reload, and reports what it loaded.

    `report` holds `version`, `checksum` (of the bytes handed to the model) and `missing` (parameters that the
    version did not cover) of the last update.
    """

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.report: dict[str, Any] = {"version": None, "checksum": 0, "missing": []}

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        del init_info

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class ends with torch.accelerator.synchronize(), which needs an accelerator.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        (weights,) = ray.get(update_info.weights)
        expected = {name for name, _ in self.model.named_parameters()}
        if self.model_config.hf_text_config.tie_word_embeddings:
            # One tensor under two names; during a reload the tie is open.
            expected.discard("lm_head.weight")
        checksum = 0

        def stream(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal checksum
            for name, tensor in weights.tensors():
                checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
                yield name, tensor.to(self.device)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            model: Any = self.model
            loaded = model.load_weights(stream(weights))
        self.report = {
            "version": weights.version,
            "checksum": checksum,
            "missing": sorted(expected - set(loaded)),
        }

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""
