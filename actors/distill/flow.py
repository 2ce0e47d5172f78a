"""The flow of rows: from the ledger through rollout actors and teachers back to the ledger, whoever dies on the way.

```
            serve, one per rollout actor                  teach, one per teacher
  Ledger ──> rollout batch ── Capacity.admit ──> RolloutActor ──ref──> TeacherActor ──refs──> Ledger
                          ▲  waits for free slots          └──ref, where the learners are the teacher──> Ledger
                          └───────────────── Ledger.done <── a step is published <────────────────────────┘
```

Who waits for whom: an idle rollout actor waits for a batch, for which slots must be free (`publish` frees them), and
takes up the newest version before it begins; a generated batch waits for an idle teacher. An evaluation
(`actors.distill.validation`) goes before all rollouts of its version. Each event looks only at what it concerns, so
that the work of a step grows with its batches, not with batches times actors.

A death brings the batch back to the ledger and a new actor in the dead one's place, within its budget; what no restart
can mend ends all loops. Batches are handed out in the order of the steps, so the oldest step never starves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import ray

from actors.distill.actor_group import ActorGroup, ActorState, State
from actors.distill.metrics import Metrics
from actors.distill.slots import Growth, Slots
from actors.distill.validation import Evaluation, Part
from actors.engine.weight_sync import WeightVersion
from actors.runtime.loops import Loops
from actors.runtime.remote import ActorLost, DataLost, within
from raft_ray.config import Config
from raft_ray.distill.ledger import Ledger
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import RolloutBatch
from raft_ray.errors import RaftError
from raft_ray.runs.records import RunRecords

PING = 10.0
"""Seconds between two calls to an actor that waits for work: its death is mended before there is any."""


class Flow:
    """The loops of all rollout actors and teachers, from one step on.

    Args:
        order: which rows each step samples.
        loops: run here; the pipeline's waits see their failure.
        rollouts, teachers: the actors; a resumed run goes on with those of before.
        published: the learners' weights at the step that comes first.
    """

    def __init__(
        self,
        config: Config,
        order: RowOrder,
        records: RunRecords,
        metrics: Metrics,
        loops: Loops,
        rollouts: ActorGroup,
        teachers: ActorGroup,
        published: WeightVersion,
    ) -> None:
        self.ledger = Ledger(
            order,
            config.sync.max_staleness,
            step=published.version,
            max_failures=config.rollout.max_failures,
            quarantined=records.quarantined(),
        )
        self.published = published
        self.last_loss = ""
        """Why a rollout batch was last given back by an engine that it may have killed."""
        self.evaluation: Evaluation | None = None
        """Of the version published, until it is complete."""
        self._config, self._records, self._loops = config, records, loops
        self._metrics, self._limits = metrics, metrics.limits
        self._rollouts, self._teachers = rollouts, teachers
        self._generated: asyncio.Queue[tuple[RolloutBatch, ray.ObjectRef]] = asyncio.Queue()
        """Rollout batches that wait for a teacher."""
        self._idle: dict[str, tuple[ActorState, asyncio.Future[RolloutBatch | Part | None]]] = {}
        """Rollout actors that wait for work, in the order in which they came."""
        self._working: set[str] = set()
        """Rollout actors that have some."""
        self._holding = False
        self._held: list[ActorState] = []
        self.growth = Growth(Slots(config), loops, rollouts, self._begin_rollout)

    def start(self) -> None:
        """Set all actors to work."""
        for actor in self._teachers:
            self._loops.spawn(self._live(self._teachers, actor, self._teach))
        for actor in self._rollouts:
            # Versions are counted anew from here: what it holds may be of steps that are undone.
            actor.version = None
            self._begin_rollout(actor)
        self.growth.go_on()

    async def resize(self, wanted: int) -> None:
        """Have so many rollout actors: new ones start as there is room, superfluous ones leave after their batch."""
        have = self._rollouts.wanted
        if wanted == have:
            return
        self._records.event("scale", "rollout", "", f"{have} -> {wanted} rollout actors")
        self._rollouts.dismiss(len(self._rollouts) - wanted)
        self._release()
        await self.growth.to(wanted)

    async def hold(self, version: int) -> dict[str, Any]:
        """See `PipelineActor.hold`."""
        self._holding = True
        # One is enough: others that are just starting come in with a later push.
        await self._loops.wait_for(
            lambda: not self._working and bool(self._at_rest()),
            lambda: f"the rest of {', '.join(sorted(self._working)) or 'any rollout actor'} before version {version}",
        )
        self._held = self._at_rest()
        return {actor.name: actor.handle for actor in self._held}

    def publish(self, published: WeightVersion) -> None:
        """Offer new weights; actors that were held have them already, and go on."""
        self.published = published
        for actor in self._held:
            actor.version = published.version
        self._holding, self._held = False, []
        if self._config.sync.in_flight and published.packed is not None:
            for actor in self._rollouts:
                if actor.state is State.GENERATING:
                    self._loops.spawn(self._offer(actor, published))
        self._release()
        self._dispatch()
        self._loops.notify()

    def regenerate(self, step: int, rows: list[int]) -> None:
        """Samples that are lost are made again."""
        self.ledger.regenerate(step, rows)
        self._dispatch()

    def stranded(self, step: int) -> bool:
        """Whether there is work for `step`, and no rollout actor has the weights nor gets them before the next push."""
        works = self.evaluation is not None or self.ledger.needs_rollouts(step)
        held = self._holding or any(actor.version == self.published.version for actor in self._rollouts)
        return self._pushed and works and not held

    @property
    def _pushed(self) -> bool:
        """The weights were pushed, so that an actor without them cannot load them."""
        return self.published.packed is None and not self._config.uses_given_trajectories

    def _at_rest(self) -> list[ActorState]:
        """Rollout actors that can take part in a push: not those that are to leave, since a group must stay whole."""
        resting = [each for each in self._rollouts if each.name in self._idle or each.state is State.WEIGHTLESS]
        return [actor for actor in resting if not actor.leaving]

    def _begin_rollout(self, actor: ActorState) -> None:
        self._loops.spawn(self._live(self._rollouts, actor, self._serve))

    async def _live(
        self, group: ActorGroup, actor: ActorState, work: Callable[[ActorState], Coroutine[Any, Any, None]]
    ) -> None:
        """One actor's life: it starts, then works batch after batch, until it leaves; after a death, again."""
        while True:
            actor.batch, actor.engaged = None, False
            try:
                with self._metrics.doing(actor, State.STARTING, self.published.version):
                    ready = actor.handle.ready.remote()
                    group.serves(actor, await within(ready, group.timeout, actor.name, "starting"))
                await work(actor)
                group.remove(actor)
                self._loops.notify()
                return
            except DataLost as error:
                logging.warning("%s", error)
                actor.engaged = False
                if group is self._rollouts:
                    self._rests(actor, State.WEIGHTLESS)
                self._give_back(actor, error)
                if group is self._rollouts:
                    await self._newer_weights()
            except ActorLost as error:
                self._rests(actor, State.LOST)
                self._give_back(actor, error)
                if not self._replaced(group, actor, error):
                    return
            except BaseException:
                # Cancelled, or an error that ends the run: its state must not look like work.
                self._rests(actor, State.STOPPED)
                raise

    async def _serve(self, actor: ActorState) -> None:
        """A rollout actor's work; returns when it is to leave."""
        while (batch := await self._next_work(actor)) is not None:
            actor.batch = batch
            if isinstance(batch, Part):
                await self._evaluate(actor, batch)
                continue
            begun = self._metrics.now()
            async with actor.loading:
                begun += await self._load(actor, batch)
            actor.engaged = True
            infos_ref, trajectories = actor.call("generate", 2).remote(batch)
            self._metrics.add(batch.step, "dispatch", self._metrics.now() - begun)
            rows = len(batch.sample_ids)
            with self._metrics.doing(actor, State.GENERATING, batch.step) as clock:
                limit = self._limits.of("generate", self._rollouts.timeout, rows)
                infos = await within(infos_ref, limit, actor.who, f"generating {batch}")
                lengths = [info.length for info in infos]
                self._metrics.longest(batch.step, "rollout", clock())
                # As if its longest answer had all the tokens that one may have: a later one may.
                whole = self._config.longest_rollout / max(1, *lengths)
                self._limits.took("generate", clock() * whole, rows)
            actor.rows += rows
            self.ledger.generated(batch, lengths)
            if self._config.learners_score:  # Each rank picks its rows out of their rollout batch.
                self.ledger.scored(batch, [(info, trajectories) for info in infos])
            else:
                self._generated.put_nowait((batch, trajectories))
            actor.batch, actor.engaged = None, False
            if self.ledger.generated_whole(batch.step):
                self._loops.notify()

    async def _evaluate(self, actor: ActorState, part: Part) -> None:
        """A rollout actor answers a part of the evaluation."""
        async with actor.loading:
            await self._load(actor, part)
        actor.engaged = True
        longest = max(part.limits)
        kind, most = f"answer {longest}", self._rollouts.timeout * max(1, longest / self._config.rollout.max_new_tokens)
        with self._metrics.doing(actor, State.EVALUATING, part.step) as clock:
            limit = self._limits.of(kind, most, len(part.indices))
            call = actor.handle.answer.remote(part)
            answers = await within(call, limit, actor.who, f"answering an evaluation of version {part.step}")
            written = max(1, *(len(answer.token_ids) for answer in answers))
            self._limits.took(kind, clock() * longest / written, len(part.indices))
        actor.batch, actor.engaged = None, False
        if (going := self.evaluation) is not None:
            going.answered(part, answers)
            self.evaluation = None if going.complete else going
        self._loops.notify()

    async def _teach(self, actor: ActorState) -> None:
        """A teacher's work, which has no end: it scores the rollout batch that has waited longest."""
        while True:
            actor.now(State.IDLE)
            batch, trajectories = await self._next_generated(actor)
            actor.batch, actor.engaged = batch, True
            begun = self._metrics.now()
            head, *samples = actor.call("score", 1 + len(batch.sample_ids)).remote(trajectories)
            self._metrics.add(batch.step, "dispatch", self._metrics.now() - begun)
            rows = len(batch.sample_ids)
            with self._metrics.doing(actor, State.SCORING, batch.step) as clock:
                limit = self._limits.of("score", self._teachers.timeout, rows)
                infos, seconds = await within(head, limit, actor.who, f"scoring {batch}")
                self._limits.took("score", clock(), rows)
            actor.rows += rows
            self._metrics.add(batch.step, "teacher", seconds)
            self.ledger.scored(batch, list(zip(infos, samples, strict=True)))
            actor.batch, actor.engaged = None, False
            if self.ledger.generated_whole(batch.step):
                self._loops.notify()

    async def _load(self, actor: ActorState, batch: RolloutBatch | Part) -> float:
        """Bring an actor to the newest version; returns the seconds it took."""
        newest = self.published
        oldest = self.ledger.capacity.oldest_version(batch.step)
        if newest.version < oldest:
            raise RaftError(f"{actor.who}: step {batch.step} needs version {oldest}, {newest.version} is the newest")
        if actor.version == newest.version:
            return 0.0
        with self._metrics.doing(actor, State.LOADING, batch.step) as clock:
            await self._send(actor, newest)
            self._metrics.longest(batch.step, "load", clock())
            return clock()

    async def _offer(self, actor: ActorState, published: WeightVersion) -> None:
        """Weights for an actor that is in the middle of a rollout batch (`sync.in_flight`)."""
        async with actor.loading:
            if published is not self.published:
                return  # newer ones have come; they are offered too
            try:
                await self._send(actor, published)
            except (DataLost, ActorLost) as error:  # The actor's own loop meets the same death, and mends it.
                logging.warning("%s", error)

    async def _send(self, actor: ActorState, weights: WeightVersion) -> None:
        begun = self._metrics.now()
        call, limit = actor.handle.load_weights.remote(weights), self._limits.of("load", self._config.sync.timeout)
        await within(call, limit, actor.who, f"loading weights of version {weights.version}")
        self._limits.took("load", self._metrics.now() - begun)
        actor.version = weights.version

    async def _newer_weights(self) -> None:
        """The weights are gone with the learner that made them; the next version comes from its successor."""
        version = self.published.version
        await self._loops.wait_for(lambda: self.published.version > version, lambda: f"a version after {version}")

    async def _next_work(self, actor: ActorState) -> RolloutBatch | Part | None:
        """A part of the evaluation that goes on, else the next rollout batch in order once there are slots for it; none
        when the actor is to leave."""
        future: asyncio.Future[RolloutBatch | Part | None] = asyncio.get_running_loop().create_future()
        self._idle[actor.name] = actor, future
        self._rests(actor, State.WAITING)
        if actor.leaving:
            self._release()
        else:
            self._dispatch()
        try:
            while not (await asyncio.wait((future,), timeout=PING))[0]:
                await actor.ping(self._rollouts.timeout)
            return await future
        except ActorLost:
            actor.batch = await future if future.done() else None
            raise
        finally:
            self._idle.pop(actor.name, None)

    async def _next_generated(self, actor: ActorState) -> tuple[RolloutBatch, ray.ObjectRef]:
        """The rollout batch that has waited longest for a teacher, and its trajectories."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING):
                    return await self._generated.get()
            await actor.ping(self._teachers.timeout)

    def _dispatch(self) -> None:
        """Hand batches to idle rollout actors, as long as there are both. Not while actors are held, nor to one without
        a version that was pushed: it comes while held, in no other way."""
        if self._holding:
            return
        ready = self.ledger.capacity.ready
        served = []
        for actor, future in self._idle.values():
            if actor.leaving or future.done() or (self._pushed and actor.version != self.published.version):
                continue
            batch = self._take()
            if batch is None:
                break
            self._working.add(actor.name)
            future.set_result(batch)
            served.append(actor.name)
        for name in served:
            del self._idle[name]
        if self.ledger.capacity.ready != ready:
            # Rows quarantined before were passed over, which may have completed a learner's shard.
            self._loops.notify()

    def _take(self) -> RolloutBatch | Part | None:
        """What comes next. Rollouts wait for the end of an evaluation, and find their engines as they would without."""
        if self.evaluation is not None:
            return self.evaluation.take()
        if not self._config.uses_rollouts:
            return None
        rows = self._config.rollout.batch_rows
        parts = -(-self.ledger.order.rows_per_step // rows) if rows else max(1, self._rollouts.placed)
        return self.ledger.take(parts)

    def _release(self) -> None:
        """Let idle rollout actors go that are to leave; while actors are held all stay."""
        for actor, future in self._idle.values():
            if actor.leaving and not self._holding and not future.done():
                future.set_result(None)

    def _rests(self, actor: ActorState, state: State) -> None:
        """An actor does nothing with a rollout batch from now on."""
        actor.now(state)
        self._working.discard(actor.name)
        if self._holding and not self._working:
            self._loops.notify()

    def _give_back(self, actor: ActorState, error: RaftError) -> None:
        """An actor's rollout batch goes back to the ledger; if its engine was engaged, its rows may be why it died."""
        if (batch := actor.batch) is None:
            return
        if isinstance(batch, Part):
            if self.evaluation is not None:
                self.evaluation.returned(batch)
        elif actor.engaged:
            self.last_loss = str(error)
            for row in self.ledger.failed(batch):
                logging.error("row %d is quarantined: %s", row, error)
                self._records.quarantine(row, batch.step, str(error))
        else:
            self.ledger.returned(batch)
        self._dispatch()
        self._loops.notify()

    def _replaced(self, group: ActorGroup, actor: ActorState, error: ActorLost) -> bool:
        """Start a lost actor again; false if it is given up, while others of its group go on. Raises `RaftError`."""
        logging.warning("%s", error)
        self._records.event("lost", actor.name, actor.node, str(error))
        final = group.replace(actor, error)
        self._loops.notify()
        if final:
            logging.error("given up: %s", final)
            self._records.event("given up", actor.name, actor.node, str(final))
        return not final
