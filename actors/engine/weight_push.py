"""`nccl` and `ipc`: the learner pushes its weights into the engines, by vLLM's own trainers.

An update is a rendezvous, since both sides take part in it at the same time:

```
learner ranks                pipeline                              rollout actors
  publish(v) ─ hold(v) ────> wait until every actor is at a
                             chunk boundary, keep all there
             <── handles ──
    new members? ── join(epoch, info) ───────────────────────────> enter the group     (NCCL: all at once)
    ── start_update(v, epoch) ───────────────────────────────────> open the update
    ── receive(info) ... ════ NCCL broadcast / shared memory ════> load
    ── finish_update(v, checksum) ───────────────────────────────> close, verify
  the step's record ───────> publish(v, no ref): all those
                             handles hold v; let them go on
```

What the pipeline must do: answer `hold(version)` with the handles by name as soon as no rollout actor is in a call
(neither generating nor loading), call none of them from then on until the step is published, and then take it that all
of them hold the version. An actor that it does not name (one that has just started) gets no chunk of that version. If
the learners start anew meanwhile, `begin` lets the actors go: a run's first weights come packed, `load_weights`.

Who waits for whom: `hold` for the longest running chunk; the learner for the slowest actor, at most `sync.timeout` a
call. The actors never wait for the pipeline, so there is no circle.

`nccl` has one group of rank 0 and all engines' workers. It cannot grow or shrink: when `hold` names other handles
than before, the group is built anew, under the next number (its epoch). `ipc` has nothing to build, and needs every
engine to share a GPU with a learner.

A failure is a `RaftError` naming the actor. It ends the learner, and Ray Train starts the group of learners again.
"""

from __future__ import annotations

import socket
import threading
from abc import abstractmethod
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.engine.weight_client import RolloutClient
from actors.engine.weight_publish import Hold, Publisher, Update
from actors.engine.weight_source import DeepSpeedSource
from raft_ray.errors import RaftError

PACKED_BYTES = 2**30
"""Most bytes of a packed buffer, unless a single tensor is larger."""


class PushPublisher(Publisher):
    """What `nccl` and `ipc` share. Arguments beyond `Publisher`'s:

    Args:
        hold: asks the pipeline for the rollout actors; called on rank 0.
        workers: GPUs of each rollout engine.
        timeout: seconds, of each call to a rollout actor (`sync.timeout`).
        verify: sum up what is sent (`sync.checksum`).
    """

    def __init__(
        self,
        model: Any,
        zero_stage: int,
        dtype: torch.dtype,
        rank: int,
        *,
        hold: Hold,
        workers: int,
        timeout: float,
        verify: bool,
    ) -> None:
        super().__init__(model, zero_stage, dtype, rank)
        self.epoch = 0
        """Groups that were built so far."""
        self._hold = hold
        self._workers = workers
        self._timeout = timeout
        device = next(model.parameters()).device
        self._source = DeepSpeedSource(model, zero_stage, dtype, device, verify and rank == 0)
        self._nbytes = sum(self._source.sizes())
        self._packed_bytes = max(min(PACKED_BYTES, self._nbytes), *self._source.sizes())
        self._client: RolloutClient | None = None
        self._trainer: TrainerWeightTransferEngine[Any] | None = None

    def publish(self, version: int) -> Update:
        """Push the weights into every rollout actor; all ranks. Raises `RaftError` on rank 0."""
        members = self._hold(version) if self._rank == 0 else {}
        if self._trainer is None or self._client is None or self._client.members != dict(members):
            self.connect(members)
        assert self._trainer is not None
        assert self._client is not None
        self._client.version = version
        if torch.accelerator.is_available():
            # The trainers read the weights in streams of their own, which do not wait for the optimizer's.
            torch.accelerator.synchronize()
        failed = self._client.failed
        try:
            self._trainer.send_weights()
        except BaseException:
            self.close()
            if failed.done():
                # The cause; what the trainer met may be its consequence.
                failed.result(timeout=0)
            raise
        return Update(version, None, self._source.checksum(), self._nbytes) if self._rank == 0 else Update(version)

    def connect(self, members: Mapping[str, Any]) -> None:
        """Build the group of these rollout actors (handles by name), in place of the one before.

        `publish` calls it when the members have changed. On other ranks than 0 it makes the trainer that takes part
        in gathering. The actors must be at a chunk boundary. Raises `RaftError`.
        """
        self.close()
        self.epoch += 1
        self._client = RolloutClient(members, self.epoch, self._workers, self._source.checksum, self._timeout)
        self._trainer = self._open(self._client)

    def close(self) -> None:
        """Leave the group; the actors leave it when they join the next."""
        if self._trainer is not None:
            self._trainer.shutdown()
        self._trainer = self._client = None

    @abstractmethod
    def _open(self, client: RolloutClient) -> TrainerWeightTransferEngine[Any]:
        """vLLM's trainer, connected."""

    def _make_trainer(self, info: TrainerInitInfo, client: RolloutClient) -> TrainerWeightTransferEngine[Any]:
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)


class IpcPublisher(PushPublisher):
    """Every rank copies the weights, a buffer at a time, into memory that the engine on its GPU reads."""

    def _open(self, client: RolloutClient) -> TrainerWeightTransferEngine[Any]:
        info = IPCTrainerInitInfo(rank=self._rank, packed=True, packed_buffer_size_bytes=self._packed_bytes)
        return self._make_trainer(info, client)


class NcclPublisher(PushPublisher):
    """Rank 0 broadcasts the weights, a buffer at a time, to every worker of every engine."""

    def _open(self, client: RolloutClient) -> TrainerWeightTransferEngine[Any]:
        info = NCCLTrainerInitInfo(
            rank=self._rank,
            master_address=ray.util.get_node_ip_address(),
            master_port=_free_port(),
            world_size=client.world_size,
            packed=True,
            packed_buffer_size_bytes=self._packed_bytes,
        )
        trainer = self._entered(info, client)
        # NCCL waits for ever for a member that is gone. Aborting the group makes the broadcast return, and then
        # vLLM's trainer raises the client's error.
        client.failed.add_done_callback(lambda _: trainer.shutdown())
        return trainer

    def _entered(self, info: TrainerInitInfo, client: RolloutClient) -> TrainerWeightTransferEngine[Any]:
        """The trainer in its group; in a thread, since NCCL waits for ever for a member that does not come."""
        entered: Future[TrainerWeightTransferEngine[Any]] = Future()
        # The current device is a thread's own.
        device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

        def enter() -> None:
            try:
                if device is not None:
                    torch.accelerator.set_device_index(device)
                entered.set_result(self._make_trainer(info, client))
            except BaseException as error:
                entered.set_exception(error)

        threading.Thread(target=enter, name="nccl-group", daemon=True).start()
        outcomes: list[Future[Any]] = [entered, client.failed]
        # All actors answer within `timeout`, or the client fails; what is left is the trainer's own part.
        done, _ = wait(outcomes, timeout=2 * self._timeout, return_when=FIRST_COMPLETED)
        if not done:
            raise RaftError(f"learner-0: still building NCCL group {self.epoch} after {2 * self._timeout:g} s")
        if client.failed.done():
            client.failed.result(timeout=0)
        return entered.result(timeout=0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port
