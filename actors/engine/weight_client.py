"""The rollout actors as vLLM's trainer sees them: its `VLLMWeightSyncClient` over Ray.

vLLM's own `RayVLLMWeightSyncClient` counts all actors as one engine; ours are engines of their own, so each gets its
place in the NCCL group. Each call goes to all actors at once and ends when all have answered, or with a `RaftError`
that names the one that failed. It knows nothing about tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import ray

from actors.runtime.remote import failure
from raft_ray.errors import RaftError


class RolloutClient:
    """The members of one group.

    Args:
        members: handles of `RolloutActor`s by name.
        epoch: number of the group.
        workers: GPUs of each engine.
        checksum: gives that of the weights last sent, once they are sent.
        timeout: of each call, seconds.

    `version` is to be set before an update begins.
    """

    def __init__(
        self, members: Mapping[str, Any], epoch: int, workers: int, checksum: Callable[[], int], timeout: float
    ) -> None:
        self.members = dict(members)
        self.version = 0
        self.failed: Future[None] = Future()
        """Gets the first failure, in the thread that met it: the trainer may wait in NCCL for the one that failed."""
        self._epoch = epoch
        self._workers = workers
        self._checksum = checksum
        self._timeout = timeout

    @property
    def world_size(self) -> int:
        """Of the NCCL group: the trainer and all engines' workers."""
        return 1 + self._workers * len(self.members)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every actor joins the group. Raises `RaftError`, as all calls do."""
        infos = [dict(init_info) for _ in self.members]
        if "rank_offset" in init_info:
            for index, info in enumerate(infos):
                info["rank_offset"] += index * self._workers
        self._call("join", f"joining weight-sync group {self._epoch}", [(self._epoch, info) for info in infos])

    def start_weight_update(self) -> None:
        """Every actor opens an update to `version`."""
        self._call("start_update", self._doing(), [(self.version, self._epoch)] * len(self.members))

    def update_weights(self, update_info: Any) -> None:
        """Every actor takes in a part of the weights."""
        self._call("receive", self._doing(), [(update_info,)] * len(self.members))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Every actor ends the update and compares checksums."""
        del weight_version
        self._call("finish_update", self._doing(), [(self.version, self._checksum())] * len(self.members))

    def _doing(self) -> str:
        return f"receiving weights of version {self.version}"

    def _call(self, method: str, doing: str, arguments: list[tuple[Any, ...]]) -> None:
        try:
            pending = {
                getattr(handle, method).remote(*args): name
                for (name, handle), args in zip(self.members.items(), arguments, strict=True)
            }
            deadline = time.monotonic() + self._timeout
            while pending:
                done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
                if not done:
                    raise RaftError(
                        f"{', '.join(pending.values())}: still {doing} after sync.timeout={self._timeout:g} s"
                    )
                name = pending.pop(done[0])
                try:
                    ray.get(done[0], timeout=self._timeout)
                except ray.exceptions.RayError as error:
                    raise failure(error, name, doing) from error
        except BaseException as error:
            if not self.failed.done():
                self.failed.set_exception(error)
            raise
