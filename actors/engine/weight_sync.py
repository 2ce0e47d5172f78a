"""Weights from the learners to the rollout engines: `Publisher` on one side, `WeightReceiver` on the other.

```
learner, all ranks                        pipeline                     rollout actor
  Publisher.publish(v) ─> WeightVersion ─────> keeps the newest ─────> WeightReceiver
    object_store   gather, ray.put                                       load_weights(weights)     pulls, between two
      hot            the adapter alone                                     batches (or tokens) of its own
    nccl, ipc      a rendezvous with all actors that are held            join, start_update, receive, finish_update
                   (`actors.engine.weight_push`)                           called by the learner's rank 0
```

Version v is the weights after v optimizer steps. Every update ends in the same check: what the model was given is what
the learner sent, by checksum, and every parameter was covered. Nothing here decides when to sync.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray

from actors.engine.vllm_engine import Engine
from actors.runtime.cluster import here
from raft_ray.announce import announce
from raft_ray.config import Config, SyncBackend, SyncConfig
from raft_ray.distill.trajectory import Probe
from raft_ray.errors import RaftError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightVersion:
    """A version of the weights: what a learner publishes, the pipeline carries and an engine takes up."""

    version: int
    packed: Any = None
    """The reference of its `PackedWeights` in Ray's object store; none where they were pushed, or are for nobody."""
    checksum: int = 0
    """Of all tensors in order; like `nbytes` known on rank 0 alone."""
    nbytes: int = 0
    probe: Probe | None = None
    """With a run's first weights: what an engine that holds them must find likely."""
    base: WeightVersion | None = None
    """The original weights, where `packed` is an adapter of theirs (`sync.adapter=hot`)."""


def pack(version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> WeightVersion:
    """Put full (gathered) tensors under their names in the model, a tied tensor once, into Ray's object store."""
    from actors.engine.weights import Checksum, PackedWeights

    checksum = Checksum()
    weights = PackedWeights.of(version, checksum.over(tensors))
    return WeightVersion(version, ray.put(weights), checksum.value(), weights.nbytes)


class Publisher:
    """The learners' side, the same for every `sync.backend`. All methods are collective: every rank calls them.

    Args:
        model: the causal model, sharded by DeepSpeed under ZeRO-3.
        hold: called on rank 0 before a push: `hold(version)` brings every rollout actor to a batch's boundary, keeps it
            there, and returns their handles by name. `object_store` needs none.

    Example, on each rank:
        publisher = Publisher(config, model, rank, hold=lambda version: get(pipeline.hold.remote(version)))
        first = publisher.offer(0)                         # with every back end a run starts from a packed version
        if rank == 0: get(pipeline.begin.remote(first, table))
        for step in range(steps):
            train_step(...)
            weights = publisher.publish(step + 1)          # nccl, ipc: each held actor has it now, verified
            if rank == 0: get(pipeline.publish.remote(weights, record))        # frees slots, lets held actors go on
    """

    def __init__(self, config: Config, model: Any, rank: int, hold: Callable[[int], Mapping[str, Any]]) -> None:
        import torch

        self._model = model
        self._zero_stage = config.learner.zero_stage
        self._dtype = getattr(torch, config.model.dtype.value)
        self._rank = rank
        self._swaps_adapters = config.swaps_adapters
        self._base: WeightVersion | None = None
        self.push = None
        if config.sync.backend is not SyncBackend.object_store:
            # Imports vLLM.
            from actors.engine.weight_push import WeightPush

            self.push = WeightPush(config, model, rank, hold)

    def publish(self, version: int) -> WeightVersion:
        """Give the rollout actors the model's weights as `version`. Raises `RaftError` where a push fails."""
        if self.push is None:
            return self.offer(version)
        checksum, nbytes = self.push.send(version)
        return WeightVersion(version, None, checksum, nbytes)

    def offer(self, version: int) -> WeightVersion:
        """Put what engines pull into the object store: the weights or, for `sync.adapter=hot`, the adapter and, once,
        what it stands on."""
        if not self._swaps_adapters:
            return self.pack(version)
        from actors.engine.weights import adapter_tensors, full_tensors
        from raft_ray.models.adapters import peft_names

        if self._base is None:
            base = full_tensors(self._model, self._zero_stage, dtype=self._dtype, merge=False)
            self._base = self._put(0, base)
        tensors = peft_names(self._model, dict(adapter_tensors(self._model, self._zero_stage)))
        adapter = self._put(version, ((name, tensor.to(self._dtype)) for name, tensor in tensors.items()))
        return replace(adapter, base=self._base)

    def pack(self, version: int) -> WeightVersion:
        """Put the whole weights into the object store: a run's first, and its last, which the export reads."""
        from actors.engine.weights import full_tensors

        return self._put(version, full_tensors(self._model, self._zero_stage, dtype=self._dtype))

    def _put(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> WeightVersion:
        """On rank 0; the others take part in gathering them."""
        if self._rank == 0:
            return pack(version, tensors)
        for _ in tensors:
            pass
        return WeightVersion(version)


class WeightReceiver:
    """An engine that takes up weights; between two rollout batches, and by `load_weights` also in the middle of one.

    Args:
        name: of the actor, for errors.
        engine: built for `sync.backend`.

    From the first part of an update to its verified end the engine holds no version, and serves nothing.
    """

    def __init__(self, name: str, engine: Engine, sync: SyncConfig) -> None:
        self.name = name
        self.version: int | None = None
        self._engine = engine
        self._sync = sync
        self._epoch: int | None = None
        self._open = False
        self._base: int | None = None
        """Checksum of the original weights, where the engine swaps adapters and has them."""

    def held(self) -> int:
        """The version of the engine's weights. Raises `RaftError` where it holds none."""
        if self.version is None:
            raise RaftError(f"{self._where}: asked to generate before it was given a weight version")
        return self.version

    def load_weights(self, weights: WeightVersion) -> float:
        """Take up a packed version, with every back end; returns the seconds it took.

        Raises `RaftError` where other weights arrive than were sent, a parameter was not covered, or the engine
        computes something else with them than the probe says.
        """
        start = time.perf_counter()
        base = weights.base if weights.base and weights.base.checksum != self._base else None
        # Fetched before anything stops: generation goes on meanwhile, and what is lost costs nothing.
        for each in (base, weights) if base else (weights,):
            arrived = ray.get(each.packed, timeout=self._sync.timeout).version
            if arrived != each.version:
                raise RaftError(
                    f"{self._where}: weights of version {arrived} arrived, version {each.version} was announced"
                )
        with self._engine.paused():
            announce(self.name, "loading", weights.version)
            if weights.base is None:
                self._load_whole(weights)
            else:
                if base:
                    self._base = None
                    self._load_whole(base)
                    self._base = base.checksum
                self._swap_adapter(weights)
        if weights.probe is not None:
            self.version = None
            self._compare(weights.probe)
            if weights.base:
                # Not every run probes every version, and a prompt is read whole or in part, which rounds differently.
                self._engine.forget_prefixes()
            self.version = weights.version
        return time.perf_counter() - start

    def _load_whole(self, weights: WeightVersion) -> None:
        self._begin()
        self.receive({"packed": weights.packed})
        self.finish_update(weights.version, weights.checksum)

    def _swap_adapter(self, weights: WeightVersion) -> None:
        self.version = None
        for arrived, unused in self._engine.swap_adapter(weights.packed):
            if self._sync.checksum:
                self._check(weights.version, arrived, weights.checksum)
            if unused:
                raise RaftError(
                    f"{self._where}: sync.adapter=hot: vLLM's model has no layer {', '.join(unused[:5])} for the "
                    "adapter; set sync.adapter=merged, or name others as learner.lora.target_modules"
                )
        self.version = weights.version

    # What the learner calls while the pipeline keeps this actor at a batch's boundary (`nccl` and `ipc`).

    def join(self, epoch: int, info: dict[str, Any]) -> None:
        """Leave the group of before, if any, and enter the learner's group number `epoch`.

        Args:
            info: vLLM's init info of the back end. For `nccl` the call returns when every member has entered.
        """
        self._epoch = None
        self._engine.llm.shutdown_weight_transfer_engine()
        self._engine.llm.init_weight_transfer_engine({"init_info": info})
        self._epoch = epoch

    def start_update(self, version: int, epoch: int) -> None:
        """Begin an update by the learner's group `epoch`. Raises `RaftError` if this actor is in another."""
        if self._epoch != epoch:
            raise RaftError(
                f"{self._where}: version {version} is sent to weight-sync group {epoch}, "
                f"this actor is in {'none' if self._epoch is None else f'group {self._epoch}'}"
            )
        self._begin()

    def receive(self, info: dict[str, Any]) -> None:
        """Take in a part of the weights: vLLM's update info of the back end, or `{"packed": reference}`.

        With `nccl` it waits for the learner's broadcast and for every other member of the group.
        """
        try:
            self._engine.llm.update_weights({"update_info": info})
        except BaseException:
            # vLLM has ended the update, and our engine has put the model together again.
            self._open = False
            raise

    def finish_update(self, version: int, checksum: int) -> None:
        """End the update and verify it. Raises `RaftError` as `load_weights` does."""
        self._open = False
        self._engine.llm.finish_weight_update()
        self._engine.weights_changed()
        for arrived, missing in self._engine.llm.collective_rpc("weight_report") if self._sync.checksum else ():
            self._check(version, arrived, checksum)
            if missing:
                raise RaftError(f"{self._where}: version {version} lacks weights for {', '.join(missing[:5])}")
        self.version = version

    def _check(self, version: int, arrived: int, sent: int) -> None:
        if arrived != sent:
            raise RaftError(
                f"{self._where}: weights of version {version} (checksum {arrived:08x}) arrived, "
                f"checksum {sent:08x} was sent"
            )

    def _begin(self) -> None:
        self.version = None
        if self._open:
            # A learner died half-way through an update; vLLM begins no new one before the old one's end.
            self._engine.llm.finish_weight_update()
        self._engine.weights_change()
        self._engine.llm.start_weight_update()
        self._open = True

    def _compare(self, probe: Probe) -> None:
        """The engine finds likely what the learner does: weights can arrive whole and be left out by a kernel."""
        error = probe.error(self._engine.logprobs(probe.prompt, probe.answer))
        if not error <= probe.allowed:
            raise RaftError(
                f"{self._where}: with the learner's weights its engine gives other log-probabilities than "
                f"the learner, by {error:.3g} nats per token where rounding makes at most {probe.allowed:g}; vLLM and "
                "transformers compute this architecture differently, so it cannot be trained on-policy"
                + (", or its adapter apart from it (sync.adapter=merged)" if self._base is not None else "")
            )

    @property
    def _where(self) -> str:
        return f"{self.name} on {here()}"
