"""The pipeline actor: joins rollout actors, teacher actors and learners, and keeps the books.

```
            _serve, one a rollout actor                   _score, one a chunk            next_batch, one a rank
  order ──> chunk ── Capacity.admit ──> RolloutActor ──ref──> TeacherActor ──refs──> Ledger ──> learner rank
                          ▲  waits for free places                                    waits for its share │
                          └──────────────── Ledger.done <──── publish(version) <──────────────────────────┘
```

Who waits for whom: a rollout loop waits for places (freed by `publish`) and takes up the newest version before each
chunk; a learner rank waits in `next_batch` until its share is scored. A death brings the chunk back to the ledger and
a new actor in the dead one's place, within its budget; what no restart can mend is the pipeline's error, and ends
every wait with that error. Chunks are handed out in the order of the steps, so the oldest step never starves.

Trajectories, targets and weights stay in the object store: this actor holds references, lengths and versions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.cluster import log_to_file
from actors.crew import Crew, Member
from actors.remote import ActorLost, DataLost, within
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.elastic import Elastic
from raft_ray.errors import RaftError
from raft_ray.ledger import Ledger
from raft_ray.pipeline import RowOrder, balanced_shares
from raft_ray.prompts import EncodedRow
from raft_ray.records import RunRecords
from raft_ray.spans import Span, bottleneck, loads
from raft_ray.trajectory import Chunk, SampleInfo

WAITS = "waits for places"
RECENT = 20
"""Steps that rates and advice look back on."""


@dataclass
class Published:
    """The newest weights."""

    version: int
    ref: list[ray.ObjectRef] | None
    """In a list, so that Ray passes the reference on; none before the learners have begun, or where none are needed."""
    checksum: int


class PipelineActor:
    """One a training run. Async: every method may wait while others go on.

    Args:
        config: of the run.
        order: which rows each step trains on.
        run_dir: for the records and the log.
        make_rollout, make_teacher: make the actor of a name, given the table, and return its handle at once.
        distils: whether the method samples and scores at all.
    """

    def __init__(
        self,
        config: Config,
        order: RowOrder,
        run_dir: str,
        make_rollout: Callable[[list[ray.ObjectRef], str], Any],
        make_teacher: Callable[[list[ray.ObjectRef], str], Any],
        distils: bool,
    ) -> None:
        log_to_file(Path(run_dir), "pipeline")
        self._config = config
        self._order = order
        self._distils = distils
        self._records = RunRecords(run_dir, order)
        self._makers = make_rollout, make_teacher
        self._table: dict[int, EncodedRow] = {}
        rollout = config.rollout
        self._elastic = Elastic(rollout.min_actors or rollout.actors, rollout.max_actors or rollout.actors)
        self._scaled_by_hand = False
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: RaftError | None = None
        self._zero = time.perf_counter()
        self._recent: deque[Span] = deque(maxlen=20_000)
        self._steps: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._set_up(0)

    def _set_up(self, step: int) -> None:
        self._step = step
        self._ledger = Ledger(
            self._order,
            self._config.sync.max_staleness,
            step=step,
            tries=self._config.rollout.tries,
            aside=self._records.set_aside(),
        )
        self._seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._idle_teachers: asyncio.Queue[Member] = asyncio.Queue()
        self._published = Published(step, None, 0)
        self._holding = False
        self._held: list[Member] = []
        self._peak_bytes = 0
        self._last_loss = ""
        self._step_began = self._now()

    async def prepare(self, table: list[ray.ObjectRef]) -> None:
        """Let the actors start; done once in the life of this process.

        Not a matter of the constructor, whose arguments Ray may have to find again when it restarts this actor.

        Args:
            table: the encoded training rows by row index, as a reference in a list.
        """
        if self._table:
            return
        self._table = await table[0]
        make_rollout, make_teacher = (partial(make, table) for make in self._makers)
        rollout, teacher = self._config.rollout, self._config.teacher
        self._rollouts = Crew("rollout", make_rollout, rollout.max_restarts, "rollout.max_restarts")
        self._teachers = Crew("teacher", make_teacher, teacher.max_restarts, "teacher.max_restarts")
        if self._distils:
            for _ in range(rollout.actors):
                self._rollouts.add()
            for _ in range(teacher.actors):
                self._teachers.add()

    # What the learners call.

    async def begin(
        self, step: int, ref: list[ray.ObjectRef] | None, checksum: int, table: list[ray.ObjectRef]
    ) -> None:
        """(Re)start at `step` with the learner's weights as version `step`; what was on the way is dropped.

        Args:
            table: as for `prepare`; a restarted pipeline actor has it from here.
            ref: the packed weights; none for methods that do not sample.
        """
        announce("pipeline", "begin", step)
        await self.prepare(table)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._error = None
        self._records.rewind(step)
        self._set_up(step)
        self._published = Published(step, ref, checksum)
        for member in self._teachers:
            self._spawn(self._greet(member))
        for member in self._rollouts:
            self._spawn(self._serve(member))

    async def next_batch(self, step: int, rank: int, ranks: int) -> list[tuple[SampleInfo | None, Any, int]]:
        """The rows that `rank` trains on at `step`: `(info, [sample ref], row)` each, balanced by tokens over ranks.

        Waits until the rank's share is scored. Methods without distillation get `(None, [], row)` at once.
        Raises the error that stopped the pipeline, or `RaftError` after `learner.timeout`.
        """
        if not self._distils:
            places = self._order.batch_of(step)
            tokens = [len(self._table[p.row].prompt) + len(self._table[p.row].answer) for p in places]
            return [(None, [], places[i].row) for i in balanced_shares(tokens, ranks)[rank]]
        share: list[tuple[SampleInfo, Any]] | None = None

        def arrived() -> bool:
            nonlocal share
            try:
                share = self._ledger.share(step, rank, ranks)
            except RaftError as error:
                self._error = RaftError(f"{error}; the last time: {self._last_loss}")
            return share is not None

        await self._wait_for(arrived, f"the samples of step {step}")
        return [(info, [sample], info.place.row) for info, sample in share or []]

    async def lost(self, step: int, rows: list[int]) -> None:
        """Samples of `step` cannot be fetched, their node is gone: make them again; then ask `next_batch` again."""
        logging.warning("samples of step %d are lost and will be made again: rows %s", step, rows)
        self._ledger.regenerate(step, rows)
        await self._notify()

    async def hold(self, version: int) -> dict[str, Any]:
        """Bring every rollout actor to rest before a back end pushes `version` into them; `publish` lets them go on.

        Returns the handles by name. An actor that starts meanwhile is left out: it serves from the next push on.
        Raises `RaftError` when they do not come to rest within `learner.timeout`.
        """
        self._holding = True
        busy = ("start", "load", "generate")
        await self._wait_for(
            lambda: not any(member.state in busy for member in self._rollouts),
            f"the rollout actors' rest before version {version}",
        )
        self._held = [member for member in self._rollouts if member.state == WAITS]
        return {member.name: member.handle for member in self._held}

    async def publish(
        self, version: int, ref: list[ray.ObjectRef] | None, checksum: int, record: dict[str, Any]
    ) -> None:
        """Step `version - 1` is done: record it, free its places and offer the new weights to the rollout actors.

        Args:
            ref: the packed weights; none where nobody needs them, or where `hold`'s actors have them already.
            record: the learner's part of the step's metrics.
        """
        announce("pipeline", "publish", version)
        step = version - 1
        self._learner_spans(step, record["seconds"])
        record["seconds"] |= self._seconds.pop(step, {})
        aside = self._ledger.aside_of(step)
        infos = self._ledger.done(step) if self._distils else []
        record["object_store_peak"] = self._peak_bytes + 2 * record.pop("weights_bytes", 0)
        self._peak_bytes = 0
        self._records.add(step, infos, record, aside)
        self._published = Published(version, ref, checksum)
        for member in self._held:
            member.version = version
        self._holding, self._held = False, []
        self._step = version
        self._steps.append({"at": self._now(), **(self._records.last or {})})
        if self._distils:
            self._resize(record["seconds"])
        await self._notify()

    # What the driver and the command line call.

    def progress(self) -> dict[str, Any]:
        """`step` done, `steps` of the run, the last metrics, and the error if the pipeline stopped."""
        return {
            "step": self._step,
            "steps": self._order.steps,
            "last": self._records.last,
            "error": str(self._error) if self._error else None,
        }

    def status(self) -> dict[str, Any]:
        """Who does what, the queue, rates and the bottleneck; see `raft_ray.status` for how it is shown."""
        capacity = self._ledger.capacity
        rates = {}
        if len(self._steps) > 1:
            first, last = self._steps[0], self._steps[-1]
            seconds = max(1e-9, last["at"] - first["at"])
            done = list(self._steps)[1:]
            rates = {
                "steps_per_minute": 60 * len(done) / seconds,
                "rows_per_second": sum(step["rows"] for step in done) / seconds,
                "tokens_per_second": sum(step["tokens"] for step in done) / seconds,
            }
        advice = bottleneck(loads(self._recent, self._steps[0]["at"], self._now())) if self._steps else None
        return {
            **self.progress(),
            "version": self._published.version,
            "actors": [
                {
                    "name": member.name,
                    "node": member.node,
                    "state": member.state + (", leaving" if member.leaving else ""),
                    "version": member.version,
                    "rows": member.rows,
                    "restarts": member.restarts,
                }
                for crew in (self._rollouts, self._teachers)
                for member in crew
            ],
            "learners": self._config.learner.workers,
            "queue": {
                "in_flight": capacity.in_flight,
                "ready": capacity.ready,
                "limit": capacity.limit,
                "came_back": self._ledger.waiting,
                "set_aside": len(self._ledger.aside),
            },
            "rates": rates,
            "advice": None if advice is None else advice.advice,
        }

    async def scale(self, rollouts: int) -> int:
        """Have so many rollout actors from now on: new ones start, superfluous ones leave after their chunk.

        Switches the `rollout.min_actors`/`max_actors` policy off. Returns the number before.
        Raises `RaftError` for less than one, and for methods without rollouts.
        """
        if not self._distils:
            raise RaftError(f"distill.method={self._config.distill.method.value} has no rollout actors to scale")
        if rollouts < 1:
            raise RaftError(f"--rollouts {rollouts}: at least one rollout actor must stay")
        before = len(self._rollouts)
        self._scaled_by_hand = True
        self._set_size(rollouts)
        await self._notify()
        return before

    def weights(self) -> list[ray.ObjectRef] | None:
        """The newest published weights."""
        return self._published.ref

    def finish(self) -> None:
        """Flush the records and stop the loops."""
        for task in self._tasks:
            task.cancel()
        self._records.close()

    # The loops.

    async def _serve(self, member: Member) -> None:
        """One rollout actor's life: it starts, then chunk after chunk, until it leaves; after a death, again."""
        timeout = self._config.rollout.timeout
        while True:
            chunk: Chunk | None = None
            touched = False
            try:
                with self._doing(member, "start"):
                    member.node = await within(member.handle.ready.remote(), timeout, member.name, "starting")
                member.stillborn = 0
                while (chunk := await self._next_chunk(member)) is not None:
                    begun = self._now()
                    begun += await self._take_up(member, chunk)
                    touched = True
                    lengths_ref, trajectories = member.handle.generate.options(num_returns=2).remote(chunk)
                    self._seconds[chunk.step]["dispatch"] += self._now() - begun
                    with self._doing(member, "generate", chunk.step) as clock:
                        lengths = await within(
                            lengths_ref, timeout, member.who, f"generating chunk {chunk.index} of step {chunk.step}"
                        )
                        seconds = self._seconds[chunk.step]
                        seconds["rollout"] = max(seconds["rollout"], clock())
                    member.rows += len(chunk.places)
                    self._ledger.generated(chunk, lengths)
                    self._spawn(self._score(chunk, trajectories))
                    chunk, touched = None, False
                self._rollouts.remove(member)
                return
            except DataLost as error:
                # The weights are gone with the learner that made them; the next version comes from its successor.
                logging.warning("%s", error)
                version = self._published.version
                await self._give_back(chunk, False, error)
                await self._wait_for(partial(self._newer_than, version), f"a version after {version}")
            except ActorLost as error:
                await self._give_back(chunk, touched, error)
                if not self._replace(self._rollouts, member, error):
                    return
            except BaseException:
                # Cancelled, or an error that ends the run: the member's state must not look like work.
                member.state = "stopped"
                raise

    async def _take_up(self, member: Member, chunk: Chunk) -> float:
        """Bring an actor to the newest version; returns the seconds it took."""
        newest = self._published
        oldest = self._ledger.capacity.oldest_version(chunk.step)
        if newest.version < oldest:
            raise RaftError(f"{member.who}: step {chunk.step} needs version {oldest}, {newest.version} is the newest")
        if member.version == newest.version:
            return 0.0
        with self._doing(member, "load", chunk.step) as clock:
            await within(
                member.handle.load_weights.remote(newest.version, newest.ref, newest.checksum),
                self._config.sync.timeout,
                member.who,
                f"loading weights of version {newest.version}",
            )
            took = clock()
        member.version = newest.version
        seconds = self._seconds[chunk.step]
        seconds["load"] = max(seconds["load"], took)
        return took

    async def _next_chunk(self, member: Member) -> Chunk | None:
        """The next chunk in order once there are places for it; none when the member is to leave."""
        member.state = WAITS
        async with self._changed:
            if self._holding:
                self._changed.notify_all()
            while not member.leaving:
                # Pushed weights reach an actor while it is held, and in no other way.
                if self._holding or (self._published.ref is None and member.version != self._published.version):
                    await self._changed.wait()
                    continue
                aside = len(self._ledger.aside)
                chunk = self._ledger.take(self._parts())
                if len(self._ledger.aside) != aside:
                    self._changed.notify_all()
                if chunk is not None:
                    return chunk
                await self._changed.wait()
        return None

    def _newer_than(self, version: int) -> bool:
        return self._published.version > version

    def _parts(self) -> int:
        """Into how many chunks a step is cut."""
        rows = self._config.rollout.chunk_rows
        return -(-self._order.batch // rows) if rows else max(1, len(self._rollouts))

    async def _greet(self, member: Member) -> None:
        """A teacher is idle once it has its model."""
        while True:
            try:
                with self._doing(member, "start"):
                    member.node = await within(
                        member.handle.ready.remote(), self._config.teacher.timeout, member.name, "starting"
                    )
                member.stillborn = 0
                member.state = "idle"
                self._idle_teachers.put_nowait(member)
                return
            except ActorLost as error:
                if not self._replace(self._teachers, member, error):
                    return

    async def _score(self, chunk: Chunk, trajectories: ray.ObjectRef) -> None:
        """One chunk's way through a teacher; if the teacher dies, the chunk is made anew."""
        member = await self._idle_teachers.get()
        try:
            begun = self._now()
            head, *samples = member.handle.score.options(num_returns=1 + len(chunk.places)).remote(trajectories)
            self._seconds[chunk.step]["dispatch"] += self._now() - begun
            with self._doing(member, "score", chunk.step):
                infos, seconds = await within(
                    head,
                    self._config.teacher.timeout,
                    member.who,
                    f"scoring chunk {chunk.index} of step {chunk.step}",
                )
        except DataLost as error:
            self._idle(member)
            await self._give_back(chunk, False, error)
            return
        except ActorLost as error:
            await self._give_back(chunk, True, error)
            if self._replace(self._teachers, member, error):
                self._spawn(self._greet(member))
            return
        except BaseException:
            self._idle(member)
            raise
        self._idle(member)
        member.rows += len(chunk.places)
        self._seconds[chunk.step]["teacher"] += seconds
        self._ledger.scored(chunk, list(zip(infos, samples, strict=True)))
        self._peak_bytes = max(self._peak_bytes, self._ledger.nbytes())
        await self._notify()

    def _idle(self, member: Member) -> None:
        member.state = "idle"
        self._idle_teachers.put_nowait(member)

    async def _give_back(self, chunk: Chunk | None, touched: bool, error: RaftError) -> None:
        """The chunk goes back to the ledger; `touched` says that an engine may have died of its rows."""
        if chunk is None:
            return
        if touched:
            self._last_loss = str(error)
            aside = self._ledger.failed(chunk)
            for row in aside:
                logging.error("row %d is set aside: %s", row, error)
                self._records.put_aside(row, chunk.step, str(error))
        else:
            self._ledger.returned(chunk)
        await self._notify()

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
            logging.error("given up: %s", final)
            self._records.event("given up", member.name, member.node, str(final))
            return False
        return True

    # Size.

    def _resize(self, seconds: dict[str, float]) -> None:
        """Let the policy look at the step that has just ended."""
        now = self._now()
        elapsed, self._step_began = max(1e-9, now - self._step_began), now
        busy = [member.busy for member in self._rollouts]
        for member in self._rollouts:
            member.busy = 0.0
        starting = any(member.state in ("starting", "start") for member in self._rollouts)
        if self._scaled_by_hand or starting or not busy:
            return
        wanted = self._elastic.target(
            len(self._rollouts),
            learner_wait=min(1.0, seconds.get("wait", 0.0) / max(1e-9, seconds.get("total", elapsed))),
            rollout_busy=min(1.0, sum(busy) / len(busy) / elapsed),
        )
        self._set_size(wanted)

    def _set_size(self, wanted: int) -> None:
        have = len(self._rollouts)
        if wanted == have:
            return
        self._records.event("scale", "rollout", "", f"{have} -> {wanted} rollout actors")
        for _ in range(have, wanted):
            self._spawn(self._serve(self._rollouts.add()))
        self._rollouts.dismiss(have - wanted)

    # Helpers.

    def _now(self) -> float:
        """Seconds since this actor began."""
        return time.perf_counter() - self._zero

    @contextmanager
    def _doing(self, member: Member, what: str, step: int | None = None) -> Iterator[Callable[[], float]]:
        """A member's state and span while the block runs. Yields a clock: seconds since it began."""
        member.state = what
        start = self._now()
        yield lambda: self._now() - start
        span = Span(member.name, what, self._step if step is None else step, start, self._now())
        member.busy += span.end - span.start
        self._note(span)

    def _note(self, span: Span) -> None:
        self._recent.append(span)
        self._records.span(span)

    def _learner_spans(self, step: int, seconds: dict[str, float]) -> None:
        """The learner's phases, which end now."""
        at = self._now() - seconds.get("total", 0.0)
        for what in ("checkpoint", "wait", "forward_backward", "optimizer", "sync"):
            if what in seconds:
                self._note(Span("learner", what, step, at, at + seconds[what]))
                at += seconds[what]

    def _spawn(self, work: Any) -> None:
        """Run a loop; its failure is the pipeline's, and wakes everybody who waits."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logging.exception("the pipeline stops")
                self._error = error if isinstance(error, RaftError) else RaftError(f"pipeline: {error!r}")
                await self._notify()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self._config.learner.timeout

        async def wait() -> None:
            async with self._changed:
                while self._error is None and not condition():
                    await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), deadline)
        except TimeoutError:
            self._error = RaftError(f"pipeline: {what} did not come within learner.timeout={deadline:g} s")
        if self._error is not None:
            raise self._error
