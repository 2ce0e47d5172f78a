"""Learners of a local Ray: they meet over a file, and their sockets listen on the loopback interface alone.

Ray Train has them meet over PyTorch's TCP store, which listens on all interfaces of the machine and asks nobody for a
token.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

INTERFACE = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Environment of the learners."""
_ADDRESS = "127.0.0.1"


def is_local() -> bool:
    """Whether the Ray that this process has joined is one that listens on the loopback interface alone."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} == {_ADDRESS}


@dataclass
class LoopbackConfig(TorchConfig):
    """As `TorchConfig`, for workers of one machine; `backend` must be named."""

    @property
    def backend_cls(self) -> Any:
        return LoopbackBackend


class LoopbackBackend(_TorchBackend):
    """Runs in Ray Train's controller, which is on the machine of the workers."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Let the workers enter a process group."""
        # For its owner alone; anew for each group, since a file that was used before would be believed.
        self._folder = tempfile.mkdtemp(prefix="raft-ray-group-")
        worker_group.execute(_set_torch_distributed_env_vars)
        entered = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{self._folder}/store",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(entered, timeout=backend_config.timeout_s)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Leave it."""
        super().on_shutdown(worker_group, backend_config)
        shutil.rmtree(self._folder, ignore_errors=True)
