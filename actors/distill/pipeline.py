"""The pipeline actor: joins rollout actors, teacher actors and learners, and keeps the records.

```
  order ──> Ledger ──> Flow: rollout actors, teachers ──> Ledger ──> next_batch, one a learner rank
               ▲                                                        waits for its shard │
               └──────────────── Ledger.done <──── publish(version) <───────────────────────┘
```

Who waits for whom: a learner rank waits in `next_batch` until its shard is scored (only sampled where the learners are
the teacher, `actors.distill.base_teacher`); the loops of `actors.distill.flow`
wait for slots, freed by `publish`, and mend what dies. What they cannot mend is the pipeline's error, and ends every
wait.

Trajectories, targets and weights stay in the object store: this actor holds references, lengths and versions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.distill.actor_group import ActorGroup
from actors.distill.flow import Flow
from actors.distill.metrics import Metrics
from actors.distill.seal import read_key
from actors.distill.validation import Validation, Verdict, evaluation_status, known_base
from actors.engine.weight_sync import WeightVersion
from actors.runtime.cluster import log_to_file
from actors.runtime.loops import Loops
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.distill.elastic import ElasticPolicy
from raft_ray.distill.order import RowOrder, balanced_shards
from raft_ray.distill.trajectory import SampleInfo
from raft_ray.errors import RaftError
from raft_ray.models.prompts import EncodedRow
from raft_ray.runs.records import RunRecords
from raft_ray.runs.trackers import Trackers
from raft_ray.runs.trained import Trained

if TYPE_CHECKING:
    from raft_ray.evaluate.drift import Drift
    from raft_ray.models.head import Pair

STARTING_AGAIN = "the pipeline actor and the learners are starting again; ask in a minute"


class BeginAnewError(RuntimeError):
    """This process has no rows, or no rollout actor has weights: no error of the run, but the learners start again."""


class PipelineActor:
    """One a training run. Async: every method may wait while others go on. `make_rollout` and `make_teacher` make the
    actor of a name, given the table, and return its handle at once."""

    def __init__(
        self,
        config: Config,
        order: RowOrder,
        run_dir: str,
        make_rollout: Callable[[list[ray.ObjectRef], str], Any],
        make_teacher: Callable[[list[ray.ObjectRef], str], Any],
    ) -> None:
        log_to_file(Path(run_dir), "pipeline")
        self._config = config
        self._order = order
        self._sampled = order if config.uses_distillation else order.rehearsal if config.uses_rollouts else None
        """Which rows of each step are sampled and scored; none of a method without rollouts."""
        self._trackers = Trackers(config, Path(run_dir))
        self._records = RunRecords(run_dir, order, self._trackers)
        self._validation = Validation(config, Path(run_dir), self._records, order.steps)
        self._makers = make_rollout, make_teacher
        self._table: dict[int, EncodedRow] = {}
        rollout = config.rollout
        self._elastic = ElasticPolicy(rollout.min_actors or rollout.actors, rollout.max_actors or rollout.actors)
        self._scaled_by_hand = False
        self._stopped: str | None = None
        self._run_dir = Path(run_dir)
        self._loops = Loops(config.learner.timeout)
        self._metrics = Metrics(self._records)
        self._notices: list[str] = []
        self._going: Flow | None = None
        self._step = 0
        self._ranks: dict[int, tuple[str, float]] = {}
        """What each learner rank does, and since when."""
        self._looked = 0.0
        """When the number of rollout actors was last changed, or the run began."""

    async def prepare(self, table: list[ray.ObjectRef]) -> None:
        """Let the actors start; done once in the life of this process. Not a matter of the constructor, whose arguments
        Ray may have to find again when it restarts this actor. `table`: references of the encoded training rows by row
        index, and of the validation set, if it has one."""
        if self._table:
            return
        self._table, *asked = [await part for part in table]
        for questions in asked:
            self._validation.ask(questions)
        make_rollout, make_teacher = (partial(make, table) for make in self._makers)
        rollout, teacher = self._config.rollout, self._config.teacher
        self._rollouts = ActorGroup("rollout", make_rollout, rollout.timeout, rollout.max_restarts)
        self._teachers = ActorGroup("teacher", make_teacher, teacher.timeout, teacher.max_restarts)
        if self._config.uses_engines:
            self._rollouts.fill(rollout.actors)
        if self._config.uses_teachers:
            self._teachers.fill(teacher.actors)
        self._going = self._new_flow(WeightVersion(0))

    # What the learners call.

    def checkpoint_key(self) -> bytes:
        """Of the run's seal; see `actors.distill.seal`."""
        return read_key(self._run_dir)

    async def stop(self, error: str) -> None:
        """A learner was refused something that no restart mends: the run ends with this error."""
        self._stopped = self._stopped or error
        self._loops.fail(RaftError(error))

    def stopped(self) -> str | None:
        """Why the run ends, once a learner has called `stop`."""
        return self._stopped

    async def begin(self, weights: WeightVersion, table: list[ray.ObjectRef]) -> None:
        """(Re)start at step `weights.version` with the learner's weights; what was on the way is dropped. `weights`:
        packed, for methods that have rollout actors. `table`: as for `prepare`; a restarted pipeline actor has it from
        here."""
        step = weights.version
        announce("pipeline", "begin", step)
        await self.prepare(table)
        await self._loops.restart()
        self._records.rewind(step)
        self._validation.begin()
        self._metrics.forget()
        self._step, self._looked = step, self._metrics.now()
        self._ranks.clear()
        self._going = self._new_flow(weights)
        self._flow.evaluation = self._validation.evaluation_of(step)
        self._flow.start()

    def notice(self, text: str, who: str = "learner") -> None:
        """Tell the user something about the run: in its events, and on the driver's terminal."""
        self._records.event("notice", who, "", text)
        self._notices.append(text)

    async def next_batch(self, step: int, rank: int, ranks: int) -> list[tuple[SampleInfo | None, Any, int]]:
        """The rows that `rank` trains on at `step`: `(info, [sample ref], row)` each, balanced by tokens over ranks.
        Waits until the rank's shard is scored; where learners are the teacher until it is sampled, and the reference is
        that of its rollout batch's trajectories. A row that nobody samples is `(None, [], row)`. Raises the error that
        stopped the pipeline, or `RaftError` after `learner.timeout`."""
        now = self._metrics.now()
        if rank in self._ranks:
            self._metrics.limits.took("train", now - self._ranks[rank][1])
        self._ranks[rank] = f"waits for step {step}", now
        shard = await self._shard(step, rank, ranks)
        does = "scores" if self._config.learners_score else "trains"
        self._ranks[rank] = f"{does} step {step}", self._metrics.now()
        return shard

    def scored(self, step: int, rank: int, infos: list[SampleInfo]) -> None:
        """Where learners are the teacher: `rank` has scored its rows of `step`, of which `infos` are, and trains."""
        self._flow.ledger.scored_by_learners |= {info.sample_id: info for info in infos}
        now = self._metrics.now()
        self._metrics.limits.took("train", now - self._ranks[rank][1])
        self._ranks[rank] = f"trains step {step}", now

    async def _shard(self, step: int, rank: int, ranks: int) -> list[tuple[SampleInfo | None, Any, int]]:
        plain: list[tuple[SampleInfo | None, Any, int]] = []
        if not self._config.uses_distillation:
            rows = [
                self._table[each.row]
                for each in self._order.batch_of(step)
                if not self._sampled or self._order.owns(each)
            ]
            shares = balanced_shards([len(row.prompt) + len(row.answer) for row in rows], ranks)
            plain = [(None, [], rows[i].row) for i in shares[rank]]
        if not self._sampled:
            return plain
        shard: list[tuple[SampleInfo, Any]] | None = None

        def arrived() -> bool:
            nonlocal shard
            try:
                shard = self._flow.ledger.shard(step, rank, ranks)
            except RaftError as error:
                self._loops.fail(RaftError(f"{error}; the last time: {self._flow.last_loss}"))
            return shard is not None

        await self._wait(arrived, f"the samples of step {step}", step)
        return plain + [(info, [sample], info.sample_id.row) for info, sample in shard or []]

    async def lost(self, step: int, rows: list[int]) -> None:
        """Samples of `step` cannot be fetched, their node is gone: make them again; then ask `next_batch` again."""
        logging.warning("samples of step %d are lost and will be made again: rows %s", step, rows)
        self._flow.regenerate(step, rows)

    async def hold(self, version: int) -> dict[str, Any]:
        """Bring every rollout actor to rest before a back end pushes `version` into them; `publish` lets them go on.
        Returns the handles by name. An actor that starts meanwhile is left out: it serves from the next push on. Raises
        `RaftError` when they do not come to rest within `learner.timeout`."""
        return await self._flow.hold(version)

    async def publish(self, weights: WeightVersion, record: dict[str, Any]) -> None:
        """Step `weights.version - 1` is done: record it, free its slots and offer its weights to the rollout actors.
        `weights`: packed, but where nobody needs them or `hold`'s actors have them already. `record`: the learner's
        part of the step's metrics."""
        announce("pipeline", "publish", weights.version)
        step = weights.version - 1
        self._metrics.learned(step, record["seconds"])
        record["seconds"] |= self._metrics.take(step)
        quarantined = self._flow.ledger.quarantined_of(step)
        infos = self._flow.ledger.done(step) if self._sampled else []
        loaded = self._sampled and self._config.loads_weights
        base = weights.base.nbytes if weights.base else 0
        record["object_store_peak"] = self._flow.ledger.peak_bytes + (base + 2 * weights.nbytes if loaded else 0)
        if loaded:
            record["sync_bytes"] = weights.nbytes
        self._flow.ledger.peak_bytes = 0
        self._records.add(step, infos, record, quarantined)
        self._flow.evaluation = self._validation.evaluation_of(weights.version)
        self._flow.publish(weights)
        self._step = weights.version
        self._metrics.step_done(self._records.last or {})
        self._tell_failures()
        if self._sampled:
            await self._resize()

    def known_base(self) -> list[Pair] | None:
        """The original model's answers to general prompts, where an evaluation of version 0 has been made."""
        return known_base(self._run_dir)

    async def base_answers(self) -> list[Pair]:
        """The same, once they are there."""
        if 0 not in self._validation.lines:
            await self._answered(0)
        return self._validation.base_pairs()

    async def evaluated(self, version: int, rank: int, drift: Drift | None) -> Verdict:
        """What the evaluation of `version` decides, once it is complete; every rank asks, and rank 0 brings the drift.
        Raises `RaftError` after `learner.timeout`."""
        self._ranks[rank] = f"waits for the evaluation of version {version}", self._metrics.now()
        lines = self._validation.lines
        if drift is not None and version not in lines:
            await self._answered(version)
            self._validation.record(drift)
            self._loops.notify()
        await self._wait(lambda: version in lines, f"the evaluation of version {version}", version)
        self._ranks[rank] = f"goes on from version {version}", self._metrics.now()
        verdict = self._validation.verdict(version)
        if verdict.stops and rank == 0:
            self.notice(
                f"training ends after step {version}: {self._config.eval.patience} evaluations without a better one"
            )
        return verdict

    def prune(self, version: int) -> None:
        """The best model so far, of `version`, is there: those that nobody needs any more are deleted."""
        self._validation.prune(version)

    def adopt(self, trained: Trained) -> None:
        """Make the best model the run's. Raises `RaftError`."""
        self._validation.adopt(trained)

    async def _answered(self, version: int) -> None:
        def complete() -> bool:
            going = self._validation.going
            return going is not None and going.version == version and going.complete

        await self._wait(complete, f"the evaluation of version {version}", version)

    async def _wait(self, condition: Callable[[], bool], what: str, step: int) -> None:
        """A learner's wait for what rollout actors make for `step`. Raises `BeginAnewError` where none of them has the
        weights, since no push would come."""

        def met() -> bool:
            if condition():
                return True
            if self._flow.stranded(step):
                raise BeginAnewError(
                    f"no rollout actor is left that holds version {self._flow.published.version}, which was pushed; "
                    "the learners begin anew, and give it to those that have started since"
                )
            return False

        await self._loops.wait_for(met, lambda: what)

    # What the driver and the command line call.

    def progress(self) -> dict[str, Any]:
        """`step` done, `steps` of the run, the last metrics, the error if the pipeline stopped, and notices."""
        return {
            "step": self._step,
            "steps": self._order.steps,
            "last": self._records.last,
            "error": self._stopped or (str(self._loops.error) if self._loops.error else None),
            "notices": self._notices,
            **evaluation_status(self._validation.lines, self._validation.going),
        }

    def status(self) -> dict[str, Any]:
        """Who does what, the queue, rates and the bottleneck; see `raft_ray.runs.status` for how it is shown. Raises
        `RaftError` while the pipeline actor itself starts again."""
        if self._going is None:
            raise RaftError(STARTING_AGAIN)
        capacity = self._flow.ledger.capacity
        return {
            **self.progress(),
            "version": self._flow.published.version,
            "actors": [actor.status() for group in (self._rollouts, self._teachers) for actor in group],
            "learners": self._config.learner.num_workers,
            "ranks": [
                {"name": f"learner-{rank}", "state": what, "seconds": round(self._metrics.now() - since, 1)}
                for rank, (what, since) in sorted(self._ranks.items())
            ],
            "waits_for_room": self._flow.growth.waits,
            "queue": {
                "in_flight": capacity.in_flight,
                "ready": capacity.ready,
                "limit": capacity.limit,
                "came_back": self._flow.ledger.waiting,
                "quarantined": len(self._flow.ledger.quarantined),
            },
            "rates": self._metrics.rates(),
            "advice": self._overdue() or self._metrics.advice(),
        }

    def _overdue(self) -> str | None:
        """Which learner has not come back from its step for too long; more of them would be no help."""
        limit = self._metrics.limits.of("train", self._config.learner.timeout)
        for rank, (what, since) in sorted(self._ranks.items()):
            if what.startswith(("scores", "trains")) and (silent := self._metrics.now() - since) > limit:
                return (
                    f"learner-{rank} {what} and has not been heard of for {silent:.0f} s (limit {limit:.0f} s): it "
                    "hangs, or waits for a rank that does; Ray Train starts the learners again when a process is silent"
                )
        return None

    async def scale(self, rollouts: int) -> dict[str, Any]:
        """Have so many rollout actors from now on: new ones start, superfluous ones leave after their rollout batch.
        Switches the `rollout.min_actors`/`max_actors` policy off. Returns how many were wanted `before`, how many there
        are `now`, and what the others wait for (`waits`; none if all fit). Those start when there is room. Raises
        `RaftError` for less than one, for methods without rollouts, and while the pipeline actor starts again."""
        if self._going is None:
            raise RaftError(STARTING_AGAIN)
        if not self._config.uses_engines:
            raise RaftError(f"distill.method={self._config.distill.method.value} has no rollout actors to scale")
        if rollouts < 1:
            raise RaftError(f"--rollouts {rollouts}: at least one rollout actor must stay")
        before = self._rollouts.wanted
        self._scaled_by_hand = True
        await self._flow.resize(rollouts)
        return {"before": before, "now": len(self._rollouts), "waits": self._flow.growth.waits}

    async def finish(self) -> None:
        """Flush the records and stop the loops. Trackers may take their time; the driver's calls are answered."""
        self._loops.cancel()
        await asyncio.to_thread(self._records.close)
        self._tell_failures()

    def _tell_failures(self) -> None:
        for text in self._trackers.failures():
            self.notice(text, "tracker")

    async def _resize(self) -> None:
        """Let the policy look at the steps since its last change."""
        starting = any(not actor.ready for actor in self._rollouts)
        if self._scaled_by_hand or starting or self._flow.growth.waits or self._elastic.fixed:
            return
        have = self._rollouts.wanted
        wanted = self._elastic.target(have, self._metrics.loads(self._looked))
        if wanted != have:
            self._looked = self._metrics.now()
            await self._flow.resize(wanted)

    @property
    def _flow(self) -> Flow:
        if self._going is None:
            raise BeginAnewError("the pipeline actor has been started again; the learners have to begin anew")
        return self._going

    def _new_flow(self, published: WeightVersion) -> Flow:
        order, actors = self._sampled or self._order, (self._rollouts, self._teachers)
        return Flow(self._config, order, self._records, self._metrics, self._loops, *actors, published)
