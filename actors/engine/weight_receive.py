"""A rollout engine's side of weight sync, the same for every back end.

```
load(version, ref, checksum)                 a packed version from the object store, in one call

join(epoch, info)                            once a group of learner and rollout actors (nccl: all workers enter NCCL)
start(version, epoch) ─> receive(info) ... ─> finish(version, checksum)      one update of `nccl` or `ipc`
```

Call it between two chunks only. `receive` of `nccl` waits for the learner's broadcast and for every other member of
the group. From `start` on the engine's weights are of no version, until `finish` has returned. Every update ends in
the same check: what the model was given is what the learner sent, and every parameter was covered.
"""

from __future__ import annotations

from typing import Any

import ray

from actors.engine.vllm_engine import Engine
from raft_ray.errors import RaftError


class Receiver:
    """Takes up weights.

    Args:
        engine: built with one of `weight_sync.ENGINES`.
        verify: compare checksums (`sync.checksum`).
        where: names actor and node in errors.
    """

    def __init__(self, engine: Engine, verify: bool, where: str) -> None:
        self._engine = engine
        self._verify = verify
        self._where = where
        self._epoch: int | None = None
        self._open = False

    def load(self, version: int, ref: list[ray.ObjectRef], checksum: int) -> None:
        """Replace the weights by the packed version behind `ref`; works with every back end.

        Args:
            ref: the reference in a list, so that Ray does not fetch it on the way.
            checksum: the learner's, of the same version.

        Raises `RaftError` when other weights arrived than were sent, or a parameter was not covered.
        """
        self._start()
        self.receive({"weights": ref})
        self.finish(version, checksum)

    def join(self, epoch: int, info: dict[str, Any]) -> None:
        """Leave the group of before, if any, and enter the learner's group number `epoch`.

        Args:
            info: vLLM's init info of the back end. For `nccl` the call returns when every member has entered.
        """
        self._epoch = None
        self._engine.llm.shutdown_weight_transfer_engine()
        self._engine.llm.init_weight_transfer_engine({"init_info": info})
        self._epoch = epoch

    def start(self, version: int, epoch: int) -> None:
        """Begin an update by the learner's group `epoch`. Raises `RaftError` if this engine is in another."""
        if self._epoch != epoch:
            raise RaftError(
                f"{self._where}: version {version} is sent to weight-sync group {epoch}, "
                f"this actor is in {'none' if self._epoch is None else f'group {self._epoch}'}"
            )
        self._start()

    def receive(self, info: dict[str, Any]) -> None:
        """Take in one part of the weights: vLLM's update info of the back end, or `{"weights": ref}`."""
        try:
            self._engine.llm.update_weights({"update_info": info})
        except BaseException:
            # vLLM has ended the update, and our engine has put the model together again.
            self._open = False
            raise

    def finish(self, version: int, checksum: int) -> None:
        """End the update and check it. Raises `RaftError` as `load` does."""
        self._open = False
        self._engine.llm.finish_weight_update()
        self._engine.weights_changed()
        if not self._verify:
            return
        for report in self._engine.llm.collective_rpc("weight_report"):
            arrived = version if report["version"] is None else report["version"]
            if arrived != version or report["checksum"] != checksum:
                raise RaftError(
                    f"{self._where}: weights of version {arrived} (checksum {report['checksum']:08x}) arrived, "
                    f"version {version} (checksum {checksum:08x}) was sent"
                )
            if report["missing"]:
                raise RaftError(
                    f"{self._where}: version {version} lacks weights for {', '.join(report['missing'][:5])}"
                )

    def _start(self) -> None:
        if self._open:
            # A learner died half-way through an update; vLLM begins no new one before the old one's end.
            self._engine.llm.finish_weight_update()
        self._engine.weights_change()
        self._engine.llm.start_weight_update()
        self._open = True
