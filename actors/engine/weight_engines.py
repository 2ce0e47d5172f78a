"""vLLM's side of weight sync: its own weight-transfer engines, which also read packed versions and check updates.

vLLM's workers import this file as their extension, each in its own process, and so come to know the engines.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import save_file
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.lora.request import LoRARequest

from actors.engine.vllm_engine import ADAPTER
from actors.engine.weights import Checksum
from actors.runtime.remote import FETCH


class Recorder:
    """Stands before the model during an update and notes what it is given."""

    def __init__(self, model: Any, model_config: Any) -> None:
        self._model = model
        self.checksum = Checksum()
        self.missing = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
        """Parameters that no part of the update has covered so far."""
        if model_config.hf_text_config.tie_word_embeddings:
            # One tensor under two names; during a reload the tie is open.
            self.missing.discard("lm_head.weight")

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """What vLLM's engines call, once for each part of an update."""
        self.missing -= set(self._model.load_weights(self.checksum.over(weights)))


class Reporting:
    """Mixed into a weight-transfer engine of vLLM: packed versions, a report, and a clean end of a broken update."""

    # Of vLLM's class beside this one.
    model: Any
    model_config: Any
    device: torch.device

    def start_weight_update(self) -> None:
        super().start_weight_update()  # type: ignore[misc]
        self._recorder = Recorder(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        model, self.model = self.model, self._recorder
        try:
            if "packed" in update_info:
                weights = ray.get(update_info["packed"], timeout=FETCH)
                self.model.load_weights((name, tensor.to(self.device)) for name, tensor in weights.tensors())
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

    def report(self) -> tuple[int, list[str]]:
        """Of the last update: the checksum of what the model was given, and the parameters that were not covered."""
        return self._recorder.checksum.value(), sorted(self._recorder.missing)


class NcclEngine(Reporting, NCCLWeightTransferEngine):
    """vLLM's broadcast from the learner's rank 0; for `object_store` the same engine, which then joins no group."""


class IpcEngine(Reporting, IPCWeightTransferEngine):
    """vLLM's reading of memory that a learner on the same GPU exports."""


class WorkerExtension:
    """What we add to vLLM's workers; to be named to the engine as `worker_extension_cls`."""

    # Of vLLM's worker.
    weight_transfer_engine: Any
    model_runner: Any
    add_lora: Any

    def weight_report(self) -> Any:
        """`Reporting.report` of this worker's engine."""
        return self.weight_transfer_engine.report()

    def swap_adapter(self, packed: ray.ObjectRef, settings: dict[str, Any]) -> tuple[int, list[str]]:
        """Put a packed adapter in the place of the one before. vLLM reads it as files, from a folder of this process
        that goes at once.

        Args:
            packed: of `PackedWeights` under peft's names.
            settings: of its `adapter_config.json`.

        Returns the checksum of what vLLM was given, and its adapted layers that this model lacks.
        """
        checksum = Checksum()
        tensors = dict(checksum.over(ray.get(packed, timeout=FETCH).tensors()))
        with tempfile.TemporaryDirectory(prefix="raft-adapter-") as folder:
            save_file(tensors, Path(folder) / "adapter_model.safetensors")
            (Path(folder) / "adapter_config.json").write_text(json.dumps(settings))
            self.add_lora(LoRARequest(*ADAPTER, folder, load_inplace=True))
        # vLLM passes over what no layer asks for.
        manager = self.model_runner.lora_manager._adapter_manager
        return checksum.value(), sorted(manager.get_adapter(ADAPTER[1]).loras.keys() - manager.modules.keys())


_engine: Any
for _backend, _engine in {"object_store": NcclEngine, "nccl": NcclEngine, "ipc": IpcEngine}.items():
    WeightTransferEngineFactory.register_engine(f"raft_{_backend}", _engine)
