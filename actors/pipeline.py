"""The pipeline actor: joins rollout actors, teacher actors and learners, and keeps the books.

```
            _serve, one a rollout actor                 _score, one a chunk            next_batch, one a rank
  order ──> chunk ── Capacity.admit ──> RolloutActor ──ref──> TeacherActor ──refs──> ready[step] ──> learner rank
                          ▲  waits for free places                                        waits for all chunks │
                          └──────────────── Capacity.release <── publish(version) <────────────────────────────┘
```

Who waits for whom: a rollout loop waits for places (freed by `publish`) and takes up the newest version before
each chunk; a learner rank waits in `next_batch` until its step's chunks are scored. An error in any loop ends every
wait with that error. Chunks are handed out in the order of the steps, so the oldest step never starves.

Trajectories, targets and weights stay in the object store: this actor holds references, lengths and versions.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.rollout import RolloutActor
from actors.teacher import TeacherActor
from raft_ray.config import Config
from raft_ray.errors import RaftError
from raft_ray.pipeline import Capacity, RowOrder, balanced_shares
from raft_ray.prompts import EncodedRow
from raft_ray.records import RunRecords
from raft_ray.trajectory import Chunk, SampleInfo


@dataclass
class Ready:
    """The samples of a step, as they come in."""

    samples: list[tuple[SampleInfo, ray.ObjectRef]] = field(default_factory=list)
    rollout_seconds: list[float] = field(default_factory=list)
    teacher_seconds: list[float] = field(default_factory=list)


@dataclass
class Published:
    """The newest weights."""

    version: int
    ref: list[ray.ObjectRef] | None
    """In a list, so that Ray passes the reference on; none for the original model, which engines start with."""
    checksum: int


class PipelineActor:
    """One a training run. Async: every method may wait while others go on.

    Args:
        config: of the run.
        student: folder of the original model.
        teacher: folder of the teacher's model.
        table: the encoded training rows, by row index.
        table_ref: the same in the object store, for the other actors.
        order: which rows each step trains on.
        run_dir: for the records and the actors' logs.
        rollout_options, teacher_options: `.options(...)` of the actors.
        distils: whether the method samples and scores at all.
    """

    def __init__(
        self,
        config: Config,
        student: str,
        teacher: str,
        table: dict[int, EncodedRow],
        table_ref: list[ray.ObjectRef],
        order: RowOrder,
        run_dir: str,
        rollout_options: dict[str, Any],
        teacher_options: dict[str, Any],
        distils: bool,
    ) -> None:
        self._config = config
        self._table = table
        self._order = order
        self._distils = distils
        self._records = RunRecords(run_dir, order)
        self._rollouts: dict[str, Any] = {}
        self._teachers: dict[str, Any] = {}
        if distils:
            (shared,) = table_ref
            for index in range(config.rollout.actors):
                name = f"rollout-{index}"
                self._rollouts[name] = (
                    ray.remote(RolloutActor).options(**rollout_options).remote(config, student, shared, name, run_dir)
                )
            for index in range(config.teacher.actors):
                name = f"teacher-{index}"
                self._teachers[name] = (
                    ray.remote(TeacherActor).options(**teacher_options).remote(config, teacher, shared, name, run_dir)
                )
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: RaftError | None = None
        self._step = 0
        self._reset(0)

    def _reset(self, step: int) -> None:
        self._step = step
        self._capacity = Capacity(self._config.learner.batch, self._config.sync.max_staleness)
        self._ready: dict[int, Ready] = defaultdict(Ready)
        self._chunks = self._cut_chunks(step)
        self._upcoming = next(self._chunks, None)
        self._held: dict[str, int | None] = dict.fromkeys(self._rollouts)
        self._sync_seconds: dict[int, float] = {}
        self._idle_teachers: asyncio.Queue[str] = asyncio.Queue()

    def _cut_chunks(self, step: int) -> Any:
        """The chunks from `step` on: each step's rows in as many parts as there are rollout actors."""
        for at in range(step, self._order.steps):
            places = self._order.batch_of(at)
            size = -(-len(places) // max(1, len(self._rollouts)))
            for index, start in enumerate(range(0, len(places), size)):
                yield Chunk(at, index, tuple(places[start : start + size]))

    async def begin(self, step: int, ref: list[ray.ObjectRef] | None, checksum: int) -> None:
        """(Re)start at `step` with the learner's weights as version `step`; what was on the way is dropped.

        Args:
            ref: the packed weights; none for the untouched original model at step 0.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._error = None
        self._reset(step)
        self._records.rewind(step)
        self._published = Published(step, ref, checksum)
        for name in self._teachers:
            self._spawn(self._greet(name))
        for name in self._rollouts:
            self._spawn(self._serve(name))

    async def next_batch(self, step: int, rank: int, ranks: int) -> list[tuple[SampleInfo | None, Any, int]]:
        """The rows that `rank` trains on at `step`: `(info, [sample ref], row)` each, balanced by tokens over ranks.

        Waits until the whole step is scored. Methods without distillation get `(None, [], row)` at once.
        Raises the error that stopped the pipeline, or `RaftError` after `learner.timeout`.
        """
        places = self._order.batch_of(step)
        if not self._distils:
            tokens = [len(self._table[p.row].prompt) + len(self._table[p.row].answer) for p in places]
            share = balanced_shares(tokens, ranks)[rank]
            return [(None, [], places[i].row) for i in share]
        await self._wait_for(lambda: len(self._ready[step].samples) == len(places), f"the samples of step {step}")
        # In the order of the batch, so that the split does not depend on who finished first.
        position = {place: i for i, place in enumerate(places)}
        samples = sorted(self._ready[step].samples, key=lambda item: position[item[0].place])
        tokens = [len(self._table[info.place.row].prompt) + info.length for info, _ in samples]
        share = balanced_shares(tokens, ranks)[rank]
        return [(samples[i][0], [samples[i][1]], samples[i][0].place.row) for i in share]

    async def publish(
        self, version: int, ref: list[ray.ObjectRef] | None, checksum: int, record: dict[str, Any]
    ) -> None:
        """Step `version - 1` is done: record it, free its places and offer the new weights to the rollout actors.

        Args:
            ref: the packed weights; none where nobody needs them.
            record: the learner's part of the step's metrics.
        """
        step = version - 1
        ready = self._ready.pop(step, Ready())
        infos = [info for info, _ in ready.samples]
        record["seconds"]["rollout"] = max(ready.rollout_seconds, default=0.0)
        record["seconds"]["teacher"] = sum(ready.teacher_seconds)
        record["seconds"]["load"] = self._sync_seconds.pop(step, 0.0)
        self._records.add(step, infos, record)
        if self._distils:
            self._capacity.release(len(infos))
        self._published = Published(version, ref, checksum)
        self._step = version
        async with self._changed:
            self._changed.notify_all()

    def progress(self) -> dict[str, Any]:
        """`step` done, `steps` of the run, the last metrics, and the error if the pipeline stopped."""
        return {
            "step": self._step,
            "steps": self._order.steps,
            "last": self._records.last,
            "error": str(self._error) if self._error else None,
            "in_flight": self._capacity.in_flight,
            "ready": self._capacity.ready,
        }

    def weights(self) -> list[ray.ObjectRef] | None:
        """The newest published weights."""
        return self._published.ref

    def finish(self) -> None:
        """Flush the records and stop the loops."""
        for task in self._tasks:
            task.cancel()
        self._records.close()

    async def _greet(self, name: str) -> None:
        """A teacher is idle once it has its model."""
        await self._within(self._teachers[name].ready.remote(), self._config.teacher.timeout, name, "starting")
        self._idle_teachers.put_nowait(name)

    async def _serve(self, name: str) -> None:
        """One rollout actor's loop: a chunk, the newest weights if they changed, trajectories, hand over to score."""
        actor = self._rollouts[name]
        timeout = self._config.rollout.timeout
        await self._within(actor.ready.remote(), timeout, name, "starting")
        while (chunk := await self._next_chunk()) is not None:
            newest = self._published
            if self._held[name] != newest.version:
                if newest.ref is None:
                    await self._within(actor.hold_original.remote(), timeout, name, "taking up the original weights")
                else:
                    seconds = await self._within(
                        actor.load_weights.remote(newest.version, newest.ref, newest.checksum),
                        self._config.sync.timeout,
                        name,
                        f"loading weights of version {newest.version}",
                    )
                    self._sync_seconds[chunk.step] = max(seconds, self._sync_seconds.get(chunk.step, 0.0))
                self._held[name] = newest.version
            oldest = self._capacity.oldest_version(chunk.step)
            if newest.version < oldest:
                raise RaftError(f"{name}: step {chunk.step} needs version {oldest}, it holds {newest.version}")
            start = time.perf_counter()
            lengths_ref, trajectories_ref = actor.generate.options(num_returns=2).remote(chunk)
            await self._within(lengths_ref, timeout, name, f"generating chunk {chunk.index} of step {chunk.step}")
            self._ready[chunk.step].rollout_seconds.append(time.perf_counter() - start)
            self._spawn(self._score(chunk, trajectories_ref))

    async def _next_chunk(self) -> Chunk | None:
        """The next chunk in order once there are places for it; none when all steps are dispatched."""
        async with self._changed:
            while self._upcoming is not None and not self._capacity.admit(len(self._upcoming.places)):
                await self._changed.wait()
            chunk, self._upcoming = self._upcoming, next(self._chunks, None)
            return chunk

    async def _score(self, chunk: Chunk, trajectories: ray.ObjectRef) -> None:
        name = await self._idle_teachers.get()
        try:
            head, *samples = self._teachers[name].score.options(num_returns=1 + len(chunk.places)).remote(trajectories)
            infos, seconds = await self._within(
                head, self._config.teacher.timeout, name, f"scoring chunk {chunk.index} of step {chunk.step}"
            )
        finally:
            self._idle_teachers.put_nowait(name)
        ready = self._ready[chunk.step]
        ready.teacher_seconds.append(seconds)
        ready.samples += zip(infos, samples, strict=True)
        self._capacity.scored(len(infos))
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, work: Any) -> None:
        """Run a loop; its failure is the pipeline's, and wakes everybody who waits."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._error = error if isinstance(error, RaftError) else RaftError(f"pipeline: {error!r}")
                async with self._changed:
                    self._changed.notify_all()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait_for(self, condition: Any, what: str) -> None:
        deadline = self._config.learner.timeout

        async def wait() -> None:
            async with self._changed:
                while not condition() and self._error is None:
                    await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), deadline)
        except TimeoutError:
            raise RaftError(f"pipeline: {what} did not come within learner.timeout={deadline:g} s") from None
        if self._error is not None:
            raise self._error

    async def _within(self, ref: Any, timeout: float, name: str, doing: str) -> Any:
        """The value of a call to an actor, or `RaftError` naming the actor, what it did, and the cause."""
        try:
            return await asyncio.wait_for(asyncio.shield(_value(ref)), timeout)
        except TimeoutError:
            raise RaftError(f"{name}: still {doing} after {timeout:g} s") from None
        except ray.exceptions.RayActorError as error:
            raise RaftError(f"{name} died while {doing}: {_cause(error)}") from error
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            message = str(cause) if isinstance(cause, RaftError) else f"{name} failed while {doing}: {cause!r}"
            raise RaftError(message) from error


async def _value(ref: Any) -> Any:
    return await ref


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-3:]) if lines else type(error).__name__
