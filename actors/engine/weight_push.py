"""`nccl` and `ipc`: the learner pushes its weights into the engines, by vLLM's own trainers.

```
learner ranks                pipeline                              rollout actors
  publish(v) ─ hold(v) ────> wait until none of them is in a call
             <── handles ──  keep all there
    new members? ── join(epoch, info) ───────────────────────────> enter the group     (NCCL: all at once)
    ── start_update(v, epoch) ───────────────────────────────────> open the update
    ── receive(info) ... ════ NCCL broadcast / shared memory ════> load
    ── finish_update(v, checksum) ───────────────────────────────> close, verify
  publish(weights, record) > all those handles hold v; go on
```

From `hold` to `publish` the pipeline calls none of these actors. One that `hold` did not name, having just started,
gets no rollout batch of that version. If the learners start anew meanwhile, `begin` lets the actors go.

Who waits for whom: `hold` for the longest running batch; the learner for the slowest actor, at most `sync.timeout` per
call; actors never for the pipeline, so there is no circle. A failure is a `RaftError` naming the actor; it ends the
learner, and Ray Train starts the group of learners again.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.engine.weights import Checksum, full_tensors, persistent_buffers
from actors.runtime.remote import failure
from raft_ray.config import Config, SyncBackend
from raft_ray.errors import RaftError
from raft_ray.models.adapters import base_parameters

PACKED_BYTES = 2**30
"""Most bytes of a packed buffer, unless a single tensor is larger."""


class DeepSpeedSource(WeightSource):
    """Full tensors under their names in the model, for ZeRO 0-3; each pass reads the weights as they are then.

    Args:
        dtype: of the parameters that are yielded.
        verify: sum up each pass for `checksum`.

    Under ZeRO-3 every rank must iterate, in step with the others, and gets the full tensors.
    """

    def __init__(self, model: Any, zero_stage: int, dtype: torch.dtype, verify: bool) -> None:
        self._model = model
        self._zero_stage = zero_stage
        self._dtype = dtype
        self._device = next(model.parameters()).device
        self._verify = verify
        self._checksum = Checksum()

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and full shape of all that a pass yields, without gathering anything."""
        return [
            # Under ZeRO-3 a parameter's own shape is that of an empty tensor.
            ParamMeta(name, self._dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter, _ in base_parameters(self._model)
        ] + [ParamMeta(name, buffer.dtype, tuple(buffer.shape)) for name, buffer in persistent_buffers(self._model)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._checksum = Checksum()
        tensors = full_tensors(self._model, self._zero_stage, dtype=self._dtype, device=self._device)
        return self._checksum.over(tensors) if self._verify else tensors

    def checksum(self) -> int:
        """Of the last pass, to be read when it is over and its streams are done; 0 where nobody verifies."""
        return self._checksum.value()

    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [meta.dtype.itemsize * torch.Size(meta.shape).numel() for meta in self.metadata()]


@dataclass
class RolloutClient:
    """The rollout actors of one group as vLLM's trainer sees them: its `VLLMWeightSyncClient` over Ray.

    vLLM's own counts all actors as one engine; ours are an engine each, with ranks of its own in the NCCL group. A call
    goes to all actors at once and ends when all have answered, or with a `RaftError` that names the one that failed.
    """

    members: Mapping[str, Any]
    """Handles of `RolloutActor`s by name."""
    epoch: int
    """Number of the group."""
    workers: int
    """GPUs of each engine."""
    checksum: Callable[[], int]
    """Gives that of the weights last sent, once they are sent."""
    timeout: float
    """Of each call, seconds."""
    version: int = 0
    """To be set before an update begins."""
    failed: Future[None] = field(default_factory=Future)
    """Gets the first failure, in the thread that met it: the trainer may wait in NCCL for the one that failed."""

    @property
    def world_size(self) -> int:
        """Of the NCCL group: the trainer and all engines' workers."""
        return 1 + self.workers * len(self.members)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every actor joins the group, at its own ranks where the back end has ranks."""

        def join(index: int, actor: Any) -> ray.ObjectRef:
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self.workers
            return actor.join.remote(self.epoch, info)

        self._call(f"joining weight-sync group {self.epoch}", join)

    def start_weight_update(self) -> None:
        """Every actor opens an update to `version`."""
        self._call(self._receiving, lambda _, actor: actor.start_update.remote(self.version, self.epoch))

    def update_weights(self, update_info: Any) -> None:
        """Every actor takes in a part of the weights."""
        self._call(self._receiving, lambda _, actor: actor.receive.remote(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Every actor ends the update and compares checksums."""
        checksum = self.checksum()
        self._call(self._receiving, lambda _, actor: actor.finish_update.remote(self.version, checksum))

    @property
    def _receiving(self) -> str:
        return f"receiving weights of version {self.version}"

    def _call(self, doing: str, call: Callable[[int, Any], ray.ObjectRef]) -> None:
        try:
            pending = {call(index, actor): name for index, (name, actor) in enumerate(self.members.items())}
            deadline = time.monotonic() + self.timeout
            while pending:
                done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
                if not done:
                    names = ", ".join(pending.values())
                    raise RaftError(f"{names}: still {doing} after sync.timeout={self.timeout:g} s")
                name = pending.pop(done[0])
                try:
                    ray.get(done[0], timeout=self.timeout)
                except ray.exceptions.RayError as error:
                    raise failure(error, name, doing) from error
        except BaseException as error:
            if not self.failed.done():
                self.failed.set_exception(error)
            raise


class WeightPush:
    """Sends versions into the engines: every rank of the learners calls it, rank 0 talks to the actors.

    `nccl` has one group of rank 0, which broadcasts, and all engines' workers. It cannot grow or shrink: when `hold`
    names other handles than before, the group is built anew, under the next number (its epoch). With `ipc` every rank
    copies the weights into memory that the engine on its GPU reads, so each engine shares a GPU with a learner.
    """

    def __init__(self, config: Config, model: Any, rank: int, hold: Callable[[int], Mapping[str, Any]]) -> None:
        self.epoch = 0
        """Groups that were built so far."""
        dtype = getattr(torch, config.model.dtype.value)
        self.source = DeepSpeedSource(model, config.learner.zero_stage, dtype, config.sync.checksum and rank == 0)
        self._backend = config.sync.backend
        self._workers = config.rollout.tensor_parallel
        self._timeout = config.sync.timeout
        self._rank = rank
        self._hold = hold
        self._client: RolloutClient | None = None
        self._trainer: Any = None
        """vLLM's, of this group."""

    def send(self, version: int) -> tuple[int, int]:
        """Push the weights into every rollout actor. Returns checksum and bytes. Raises `RaftError` on rank 0."""
        members = dict(self._hold(version)) if self._rank == 0 else {}
        client = self._client
        if client is None or client.members != members:
            client = self._connect(members)
        client.version = version
        if torch.accelerator.is_available():
            # The trainers read the weights in streams of their own, which do not wait for the optimizer's.
            torch.accelerator.synchronize()
        try:
            self._trainer.send_weights()
        except BaseException:
            self._close()
            if client.failed.done():
                # The cause; what the trainer met may be its consequence.
                client.failed.result(timeout=0)
            raise
        return self.source.checksum(), sum(self.source.sizes())

    def _connect(self, members: dict[str, Any]) -> RolloutClient:
        """Build the group of these rollout actors, in place of the one before; other ranks than 0 join none."""
        self._close()
        self.epoch += 1
        client = RolloutClient(members, self.epoch, self._workers, self.source.checksum, self._timeout)
        sizes = self.source.sizes()
        size = max(min(PACKED_BYTES, sum(sizes)), *sizes)
        info: TrainerInitInfo
        if self._backend is SyncBackend.ipc:
            info = IPCTrainerInitInfo(rank=self._rank, packed=True, packed_buffer_size_bytes=size)
        else:
            with socket.socket() as found:
                found.bind(("", 0))
                port = found.getsockname()[1]
            address = ray.util.get_node_ip_address()
            info = NCCLTrainerInitInfo(
                address, port, client.world_size, rank=self._rank, packed=True, packed_buffer_size_bytes=size
            )
        trainer = self._entered(info, client)
        # NCCL waits for ever for a member that is gone. Aborting the group makes the broadcast return, and then
        # vLLM's trainer raises the client's error.
        client.failed.add_done_callback(lambda _: trainer.shutdown())
        self._client, self._trainer = client, trainer
        return client

    def _entered(self, info: TrainerInitInfo, client: RolloutClient) -> Any:
        """The trainer in its group; in a thread, since NCCL waits for ever for a member that does not come."""
        entered: Future[Any] = Future()
        # The current device is a thread's own.
        device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

        def enter() -> None:
            try:
                if device is not None:
                    torch.accelerator.set_device_index(device)
                entered.set_result(WeightTransferTrainerFactory.trainer_init(info, client=client, source=self.source))
            except BaseException as error:
                entered.set_exception(error)

        threading.Thread(target=enter, name="weight-sync-group", daemon=True).start()
        # All actors answer within `timeout`, or the client fails; what is left is the trainer's own part.
        wait([client.failed, entered], timeout=2 * self._timeout, return_when=FIRST_COMPLETED)
        for outcome in (client.failed, entered):
            if outcome.done():
                return outcome.result(timeout=0)
        raise RaftError(f"learner-0: still building weight-sync group {self.epoch} after {2 * self._timeout:g} s")

    def _close(self) -> None:
        """Leave the group; the actors leave it when they join the next."""
        if self._trainer is not None:
            self._trainer.shutdown()
        self._trainer = self._client = None
