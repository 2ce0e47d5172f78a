"""vLLM's side of weight sync: its weight-transfer engines, with a report of what the model was given.

`ObjectStoreEngine` is ours; `NcclEngine` and `IpcEngine` are vLLM's own. All three also read packed versions from
Ray's object store: a run starts from one, and so does an actor that comes while no learner sends.

A file of its own because importing it imports vLLM, which learners do not have to. vLLM's workers import it as
their extension, each in its own process, and so come to know the engines.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engine import weight_sync
from actors.engine.weight_checksum import Checksum
from actors.runtime.remote import FETCH


class Recorder:
    """Stands before the model during an update and notes what it is given."""

    def __init__(self, model: Any, model_config: Any) -> None:
        self._model = model
        self._loaded: set[str] = set()
        self._expected = {name for name, _ in model.named_parameters()}
        if model_config.hf_text_config.tie_word_embeddings:
            # One tensor under two names; during a reload the tie is open.
            self._expected.discard("lm_head.weight")
        self.checksum = Checksum()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """What vLLM's engines call, once for each part of an update."""

        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                self.checksum.add(name, tensor)
                yield name, tensor

        self._loaded |= set(self._model.load_weights(noted()))

    def missing(self) -> list[str]:
        """Parameters that were not covered."""
        return sorted(self._expected - self._loaded)


class Reporting:
    """Mixed into a weight-transfer engine of vLLM: packed versions, a report, and a clean end of a broken update."""

    # Of vLLM's class beside this one.
    model: Any
    model_config: Any
    device: torch.device

    def start_weight_update(self) -> None:
        super().start_weight_update()  # type: ignore[misc]
        self._recorder = Recorder(self.model, self.model_config)
        self._version: int | None = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        model = self.model
        self.model = self._recorder
        try:
            if "weights" in update_info:
                self.load_packed(update_info["weights"])
            else:
                self.receive_weights(self.parse_update_info(update_info))  # type: ignore[attr-defined]
        except BaseException:
            # Half a layer would otherwise wait for its other half, and take it from the next update.
            self.model = model
            super().finish_weight_update()  # type: ignore[misc]
            raise
        self.model = model
        # vLLM's own method synchronizes whatever there is, and fails where there is no accelerator.
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def load_packed(self, ref: list[ray.ObjectRef]) -> None:
        """Give the model the packed version behind `ref`."""
        (weights,) = ray.get(ref, timeout=FETCH)
        self._version = weights.version
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.model.load_weights((name, tensor.to(self.device)) for name, tensor in weights.tensors())

    def report(self) -> dict[str, Any]:
        """Of the last update: `version` (none where only the learner knows it), `checksum` of what the model was
        given, and `missing`, the parameters that were not covered."""
        recorder = self._recorder
        return {"version": self._version, "checksum": recorder.checksum.value(), "missing": recorder.missing()}


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the store is there already."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """What an update brings: the reference of one packed version, in a list."""

    weights: list[ray.ObjectRef] = field(default_factory=list)


class _ObjectStoreEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """The least that vLLM asks of an engine; the loading is `Reporting.load_packed`."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        del init_info

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        raise ValueError("object_store takes packed versions only")

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class ObjectStoreEngine(Reporting, _ObjectStoreEngine):
    """Packed versions from Ray's object store."""


class NcclEngine(Reporting, NCCLWeightTransferEngine):
    """vLLM's broadcast from the learner's rank 0."""


class IpcEngine(Reporting, IPCWeightTransferEngine):
    """vLLM's reading of memory that a learner on the same GPU exports."""


class WorkerExtension:
    """What we add to vLLM's workers; to be named to the engine as `worker_extension_cls`."""

    weight_transfer_engine: Any

    def weight_report(self) -> dict[str, Any]:
        """`Reporting.report` of this worker's engine."""
        report: dict[str, Any] = self.weight_transfer_engine.report()
        return report


weight_sync.register()
