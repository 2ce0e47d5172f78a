"""Rollout actors and teachers in the process of the flow itself, whose calls are coroutines: no Ray, no engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from actors.distill import slots
from actors.distill.actor_group import ActorGroup
from actors.distill.flow import Flow
from actors.distill.metrics import Metrics
from actors.distill.validation import Part
from actors.engine.weight_sync import WeightVersion
from actors.runtime.loops import Loops
from raft_ray.config import Config
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import RolloutBatch, SampleInfo
from raft_ray.evaluate.answers import Answer

PACKED: Any = "weights"
"""Stands for a reference in the object store."""


class Method:
    """A coroutine function as a method of an actor's handle."""

    def __init__(self, function: Callable[..., Any], returns: int = 1) -> None:
        self._function, self._returns = function, returns

    def options(self, num_returns: int) -> Method:
        return Method(self._function, num_returns)

    def remote(self, *arguments: Any) -> Any:
        call = asyncio.ensure_future(self._function(*arguments))
        if self._returns == 1:
            return call
        return [asyncio.ensure_future(self._part(call, index)) for index in range(self._returns)]

    @staticmethod
    async def _part(call: Any, index: int) -> Any:
        return (await call)[index]


class Actor:
    """Both roles. What a test changes: the functions, by name."""

    def __init__(self, name: str, **functions: Callable[..., Any]) -> None:
        self.name = name
        self.version = -1
        self.killed = False
        for method in ("ready", "load_weights", "generate", "answer", "score"):
            function = functions.get(method)
            bound = getattr(self, f"_{method}") if function is None else self._with_self(function)
            setattr(self, method, Method(bound))

    def _with_self(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(self, *arguments)

    async def _ready(self) -> str:
        return "here"

    async def _load_weights(self, weights: WeightVersion) -> float:
        self.version = weights.version
        return 0.0

    async def _generate(self, batch: RolloutBatch) -> Any:
        infos = [SampleInfo(place, self.version, 1, False, self.name, 6, 1.0) for place in batch.sample_ids]
        return infos, infos

    async def _answer(self, part: Part) -> list[Answer]:
        assert self.version == part.step
        return [Answer(self.name, [1], False) for _ in part.indices]

    async def _score(self, infos: Any) -> Any:
        infos = await infos
        return [(infos, 0.0), *infos]


class Running:
    """A flow over fakes, its loops, and what a learner does: `await running.train(step)`."""

    def __init__(
        self,
        config: Config,
        rows: int,
        monkeypatch: Any,
        room: int = 10**6,
        teacher: dict[str, Any] | None = None,
        **rollout: Any,
    ) -> None:
        self.made: list[Actor] = []
        self.events: list[tuple[str, str]] = []
        self.room = room
        monkeypatch.setattr("actors.distill.actor_group.kill", self._kill)
        monkeypatch.setattr(slots, "RETRY", 0.0)
        monkeypatch.setattr("actors.distill.slots.Slots.free", lambda _, have: max(0, self.room - have))
        monkeypatch.setattr("actors.distill.slots.Slots.ask", lambda *_: None)
        order = RowOrder(rows, config.learner.global_batch_size, 1, 0)
        records: Any = SimpleNamespace(
            quarantined=list,
            event=lambda what, who, node, text: self.events.append((what, text)),
            quarantine=lambda *_: None,
            span=lambda _: None,
        )
        self.loops = Loops(20)

        def make(name: str) -> Actor:
            self.made.append(Actor(name, **rollout))
            return self.made[-1]

        self.rollouts = ActorGroup("rollout", make, config.rollout.timeout, config.rollout.max_restarts)
        teachers = ActorGroup(
            "teacher", lambda name: Actor(name, **(teacher or {})), config.teacher.timeout, config.teacher.max_restarts
        )
        self.rollouts.fill(config.rollout.actors)
        teachers.fill(config.teacher.actors if config.uses_teachers else 0)
        self.flow = Flow(
            config,
            order,
            records,
            Metrics(records),
            self.loops,
            self.rollouts,
            teachers,
            WeightVersion(0, PACKED),
        )
        self.flow.start()

    @staticmethod
    def _kill(actor: Any) -> None:
        actor.handle.killed = True

    async def shard(self, step: int) -> list[SampleInfo]:
        """The samples of a step, once they are all there."""
        found: list[Any] = []

        def arrived() -> bool:
            shard = self.flow.ledger.shard(step, 0, 1)
            found[:] = shard or []
            return shard is not None

        await self.loops.wait_for(arrived, lambda: f"step {step}")
        return [info for info, _ in found]

    async def train(self, step: int, *, pushed: bool = False) -> list[SampleInfo]:
        samples = await self.shard(step)
        self.flow.ledger.done(step)
        self.flow.publish(WeightVersion(step + 1, None if pushed else PACKED))
        return samples

    async def settled(self) -> None:
        """Until nothing moves any more without a learner."""
        for _ in range(200):
            await asyncio.sleep(0)
