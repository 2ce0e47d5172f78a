"""The flow of rows: from the ledger through rollout actors and teachers back to the ledger, whoever dies on the way.

```
            serve, one a rollout actor                    teach, one a teacher
  Ledger ──> chunk ── Capacity.admit ──> RolloutActor ──ref──> TeacherActor ──refs──> Ledger
                          ▲  waits for free places                                       │
                          └───────────────── Ledger.done <── a step is published <───────┘
```

Who waits for whom: an idle rollout actor waits for a chunk, for which places must be free (`publish` frees them), and
takes up the newest version before it begins; a generated chunk waits for an idle teacher. Each event looks only at
what it concerns, so that the work of a step grows with its chunks, not with chunks times actors.

A death brings the chunk back to the ledger and a new actor in the dead one's place, within its budget; what no restart
can mend ends all loops. Chunks are handed out in the order of the steps, so the oldest step never starves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Any

import ray

from actors.distill.crew import Crew, Member
from actors.distill.diary import Diary
from actors.distill.growth import Growth
from actors.distill.room import Room
from actors.engine.weight_sync import WeightVersion
from actors.runtime.limits import Limits
from actors.runtime.loops import Loops
from actors.runtime.remote import ActorLost, DataLost, within
from raft_ray.config import Config
from raft_ray.distill.ledger import Ledger
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import Chunk
from raft_ray.errors import RaftError
from raft_ray.runs.records import RunRecords

WAITS = "waits for places"
PING = 10.0
"""Seconds between two calls to an actor that waits for work: its death is mended before there is any."""


class Flow:
    """The loops of all rollout actors and teachers, from one step on.

    Args:
        rollouts, teachers: the actors; a resumed run goes on with those of before.
        loops: run here; the pipeline's waits see their failure.
        published: the learners' weights at the step that comes first.
        limits: how long calls have taken.
    """

    def __init__(
        self,
        config: Config,
        order: RowOrder,
        records: RunRecords,
        diary: Diary,
        loops: Loops,
        rollouts: Crew,
        teachers: Crew,
        published: WeightVersion,
        limits: Limits,
    ) -> None:
        self.ledger = Ledger(
            order,
            config.sync.max_staleness,
            step=published.version,
            tries=config.rollout.tries,
            aside=records.set_aside(),
        )
        self.published = published
        self.peak_bytes = 0
        """Most bytes of scored samples held since this was last reset."""
        self.last_loss = ""
        """Why a chunk was last given back by an engine that it may have killed."""
        self._config = config
        self._order = order
        self._records = records
        self._diary = diary
        self._loops = loops
        self._rollouts = rollouts
        self._teachers = teachers
        self._limits = limits
        self._generated: asyncio.Queue[tuple[Chunk, ray.ObjectRef]] = asyncio.Queue()
        """Chunks that wait for a teacher."""
        self._idle: dict[str, tuple[Member, asyncio.Future[Chunk | None]]] = {}
        """Rollout actors that wait for a chunk, in the order in which they came."""
        self._working: set[str] = set()
        """Rollout actors that have a chunk."""
        self._without_weights: list[Member] = []
        """Rollout actors whose version was lost; they wait for a newer one."""
        self._holding = False
        self._held: list[Member] = []
        self.growth = Growth(Room(config), loops, rollouts, lambda member: loops.spawn(self._serve(member)))

    def start(self) -> None:
        """Set all actors to work."""
        for member in self._teachers:
            self._loops.spawn(self._teach(member))
        for member in self._rollouts:
            # Versions are counted anew from here: what it holds may be of steps that are undone.
            member.version = None
            self._loops.spawn(self._serve(member))

    async def resize(self, wanted: int) -> None:
        """Have so many rollout actors: new ones start as there is room, superfluous ones leave after their chunk."""
        have = self.growth.wanted
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
            self._config.learner.timeout,
            "learner.timeout",
        )
        self._held = self._at_rest()
        return {member.name: member.handle for member in self._held}

    def _at_rest(self) -> list[Member]:
        """Rollout actors that can take part in a push: not those that are to leave, since a group must stay whole."""
        waiting = [member for member, _ in self._idle.values()]
        return [member for member in (*waiting, *self._without_weights) if not member.leaving]

    def publish(self, published: WeightVersion) -> None:
        """Offer new weights; actors that were held have them already, and go on."""
        self.published = published
        for member in self._held:
            member.version = published.version
        self._holding, self._held = False, []
        if self._config.sync.in_flight and published.packed is not None:
            for member in self._rollouts:
                if member.state == "generate":
                    self._loops.spawn(self._offer(member, published))
        self._release()
        self._dispatch()
        self._loops.notify()

    def regenerate(self, step: int, rows: list[int]) -> None:
        """Samples that are lost are made again."""
        self.ledger.regenerate(step, rows)
        self._dispatch()

    async def _serve(self, member: Member) -> None:
        """One rollout actor's life: it starts, then chunk after chunk, until it leaves; after a death, again."""
        timeout = self._config.rollout.timeout
        while True:
            chunk: Chunk | None = None
            touched = False
            try:
                await self._started(self._rollouts, member, timeout)
                while (chunk := await self._next_chunk(member)) is not None:
                    begun = self._diary.now()
                    begun += await self._take_up(member, chunk)
                    touched = True
                    lengths_ref, trajectories = member.call("generate", 2).remote(chunk)
                    self._diary.add(chunk.step, "dispatch", self._diary.now() - begun)
                    rows = len(chunk.places)
                    with self._diary.doing(member, "generate", chunk.step) as clock:
                        limit = self._limits.of("generate", timeout, rows)
                        doing = f"generating chunk {chunk.index} of step {chunk.step}"
                        lengths = await within(lengths_ref, limit, member.who, doing)
                        self._diary.longest(chunk.step, "rollout", clock())
                        # As if its longest answer had all the tokens that one may have: a later one may.
                        whole = self._config.rollout.max_new_tokens / max(1, *lengths)
                        self._limits.took("generate", clock() * whole, rows)
                    member.rows += rows
                    self.ledger.generated(chunk, lengths)
                    self._generated.put_nowait((chunk, trajectories))
                    if self.ledger.generated_whole(chunk.step):
                        self._loops.notify()
                    chunk, touched = None, False
                self._rollouts.remove(member)
                return
            except DataLost as error:
                # The weights are gone with the learner that made them; the next version comes from its successor.
                logging.warning("%s", error)
                version = self.published.version
                self._without_weights.append(member)
                self._rests(member, f"waits for a version after {version}")
                self._give_back(chunk, False, error)
                try:
                    await self._loops.wait_for(
                        partial(self._newer_than, version),
                        partial("a version after {}".format, version),
                        self._config.learner.timeout,
                        "learner.timeout",
                    )
                finally:
                    self._without_weights.remove(member)
            except ActorLost as error:
                self._rests(member, "lost")
                self._give_back(chunk, touched, error)
                if not self._replace(self._rollouts, member, error):
                    return
            except BaseException:
                # Cancelled, or an error that ends the run: the member's state must not look like work.
                self._rests(member, "stopped")
                raise

    def _rests(self, member: Member, state: str) -> None:
        """A rollout actor has no chunk from now on."""
        member.now(state)
        self._working.discard(member.name)
        if self._holding and not self._working:
            self._loops.notify()

    async def _take_up(self, member: Member, chunk: Chunk) -> float:
        """Bring an actor to the newest version; returns the seconds it took."""
        async with member.loading:
            return await self._load(member, chunk)

    async def _load(self, member: Member, chunk: Chunk) -> float:
        newest = self.published
        oldest = self.ledger.capacity.oldest_version(chunk.step)
        if newest.version < oldest:
            raise RaftError(f"{member.who}: step {chunk.step} needs version {oldest}, {newest.version} is the newest")
        if member.version == newest.version:
            return 0.0
        with self._diary.doing(member, "load", chunk.step) as clock:
            await self._send(member, newest)
            took = clock()
        self._diary.longest(chunk.step, "load", took)
        return took

    async def _offer(self, member: Member, published: WeightVersion) -> None:
        """Weights for an actor that is in the middle of a chunk (`sync.in_flight`)."""
        async with member.loading:
            if published is not self.published:
                return  # newer ones have come; they are offered too
            try:
                await self._send(member, published)
            except DataLost as error:
                logging.warning("%s", error)
            except ActorLost:
                pass  # the actor's own loop meets the same death, and mends it

    async def _send(self, member: Member, weights: WeightVersion) -> None:
        begun = self._diary.now()
        await within(
            member.handle.load_weights.remote(weights),
            self._limits.of("load", self._config.sync.timeout),
            member.who,
            f"loading weights of version {weights.version}",
        )
        self._limits.took("load", self._diary.now() - begun)
        member.version = weights.version

    async def _next_chunk(self, member: Member) -> Chunk | None:
        """The next chunk in order once there are places for it; none when the member is to leave."""
        future: asyncio.Future[Chunk | None] = asyncio.get_running_loop().create_future()
        self._idle[member.name] = member, future
        self._rests(member, WAITS)
        if member.leaving:
            self._release()
        else:
            self._dispatch()
        try:
            while not (await asyncio.wait((future,), timeout=PING))[0]:
                await self._ping(member, self._config.rollout.timeout)
            return await future
        except ActorLost:
            if future.done() and (chunk := await future) is not None:
                self.ledger.returned(chunk)
            raise
        finally:
            self._idle.pop(member.name, None)

    def _dispatch(self) -> None:
        """Hand chunks to idle rollout actors, as long as there are both."""
        if self._holding:
            return
        ready = self.ledger.capacity.ready
        served = []
        for member, future in self._idle.values():
            if member.leaving or future.done() or not self._may_serve(member):
                continue
            chunk = self.ledger.take(self._parts())
            if chunk is None:
                break
            self._working.add(member.name)
            future.set_result(chunk)
            served.append(member.name)
        for name in served:
            del self._idle[name]
        if self.ledger.capacity.ready != ready:
            # Rows set aside before were passed over, which may have completed a learner's share.
            self._loops.notify()

    def _release(self) -> None:
        """Let idle rollout actors go that are to leave; while actors are held all stay."""
        for member, future in self._idle.values():
            if member.leaving and not self._holding and not future.done():
                future.set_result(None)

    def _may_serve(self, member: Member) -> bool:
        """Not while actors are held, nor without a version that was pushed: it comes while held, in no other way."""
        pushed = self.published.packed is None
        return not self._holding and not (pushed and member.version != self.published.version)

    def _newer_than(self, version: int) -> bool:
        return self.published.version > version

    def _parts(self) -> int:
        """Into how many chunks a step is cut."""
        rows = self._config.rollout.chunk_rows
        return -(-self._order.batch // rows) if rows else max(1, self._rollouts.placed)

    async def _started(self, crew: Crew, member: Member, timeout: float) -> None:
        """Wait until a member's process serves."""
        with self._diary.doing(member, "start", self.published.version):
            crew.serves(member, await within(member.handle.ready.remote(), timeout, member.name, "starting"))

    async def _teach(self, member: Member) -> None:
        """One teacher's life: it starts, then scores chunk after chunk; after a death, again."""
        while True:
            chunk: Chunk | None = None
            try:
                await self._started(self._teachers, member, self._config.teacher.timeout)
                while True:
                    member.now("idle")
                    chunk, trajectories = await self._next_generated(member)
                    await self._score(member, chunk, trajectories)
                    chunk = None
            except DataLost as error:
                self._give_back(chunk, False, error)
            except ActorLost as error:
                self._give_back(chunk, True, error)
                if not self._replace(self._teachers, member, error):
                    return
            except BaseException:
                member.now("stopped")
                raise

    async def _next_generated(self, member: Member) -> tuple[Chunk, ray.ObjectRef]:
        """The chunk that has waited longest for a teacher, and its trajectories."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING):
                    return await self._generated.get()
            await self._ping(member, self._config.teacher.timeout)

    async def _ping(self, member: Member, timeout: float) -> None:
        """An idle actor answers; raises `ActorLost` if it does not."""
        await within(member.handle.ready.remote(), timeout, member.who, "waiting for work")

    async def _score(self, member: Member, chunk: Chunk, trajectories: ray.ObjectRef) -> None:
        begun = self._diary.now()
        head, *samples = member.call("score", 1 + len(chunk.places)).remote(trajectories)
        self._diary.add(chunk.step, "dispatch", self._diary.now() - begun)
        rows = len(chunk.places)
        with self._diary.doing(member, "score", chunk.step) as clock:
            limit = self._limits.of("score", self._config.teacher.timeout, rows)
            doing = f"scoring chunk {chunk.index} of step {chunk.step}"
            infos, seconds = await within(head, limit, member.who, doing)
            self._limits.took("score", clock(), rows)
        member.rows += rows
        self._diary.add(chunk.step, "teacher", seconds)
        self.ledger.scored(chunk, list(zip(infos, samples, strict=True)))
        self.peak_bytes = max(self.peak_bytes, self.ledger.nbytes)
        if self.ledger.generated_whole(chunk.step):
            self._loops.notify()

    def _give_back(self, chunk: Chunk | None, touched: bool, error: RaftError) -> None:
        """The chunk goes back to the ledger; `touched` says that an engine may have died of its rows."""
        if chunk is None:
            return
        if touched:
            self.last_loss = str(error)
            aside = self.ledger.failed(chunk)
            for row in aside:
                logging.error("row %d is set aside: %s", row, error)
                self._records.put_aside(row, chunk.step, str(error))
        else:
            self.ledger.returned(chunk)
        self._dispatch()
        self._loops.notify()

    def _replace(self, crew: Crew, member: Member, error: ActorLost) -> bool:
        """Start a lost actor again; false if it is given up, while others of its crew go on. Raises `RaftError`."""
        logging.warning("%s", error)
        self._records.event("lost", member.name, member.node, str(error))
        try:
            crew.restart(member, error)
        except RaftError as final:
            crew.remove(member)
            if not len(crew):
                raise
            if crew is self._rollouts:
                self.growth.wanted -= not member.leaving
            logging.error("given up: %s", final)
            self._records.event("given up", member.name, member.node, str(final))
            return False
        return True
