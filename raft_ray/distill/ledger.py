"""The record of stage 2: which rows are dispatched, generated, scored, trained or quarantined. No Ray, no tensors.

```
 order ─cut─> RolloutBatch ──take──> dispatched ──generated──> lengths known ──scored──> ready ──done(step)──> released
                ▲                  │                         │                      │
                ├── returned ──────┤  (its actor went away before it touched the rows)
                ├── failed ────────┴─────────────────────────┘  (an engine died on it; alone after some deaths,
                │                                                then quarantined)
                └── regenerate ─────────────────────────────────────────────────────┘  (a node took it along)
```

Sampling is seeded by rollout batch, and a row's tokens depend on the whole batch that it is in. A sample that is lost
is therefore made again with the batch that made it, and of the result only what is missing is taken: with the same
weights (`max_staleness=0`) it is the same sample, bit for bit. Rows that go on alone after deaths of engines have seeds
of their own, so their samples are others.

A rollout batch that comes back keeps its slots in `Capacity`: they are given up only by `done`. So the order in which
steps are admitted, and with it the staleness bound (see `raft_ray.distill.order`), survives every death, and a row can
neither be lost nor trained twice. A row quarantined keeps its slot too, until its step is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from raft_ray.distill.order import Capacity, RowOrder, SampleId, balanced_shards
from raft_ray.distill.trajectory import RolloutBatch, SampleInfo
from raft_ray.errors import RaftError


@dataclass
class StepRecord:
    """What is known of one step's rows. Counts what is missing, so that no event costs more than its own rows."""

    sample_ids: list[SampleId]
    """In the order of the batch."""
    lengths: dict[SampleId, int] = field(default_factory=dict)
    """Response tokens, once generated; kept when a sample has to be made again, so that shards stay."""
    samples: dict[SampleId, tuple[SampleInfo, Any]] = field(default_factory=dict)
    """Scored rows, with whatever stands for the sample (a reference)."""
    made_by: dict[SampleId, RolloutBatch] = field(default_factory=dict)
    """The rollout batch that made each scored sample."""
    quarantined: set[SampleId] = field(default_factory=set)
    shards: list[list[SampleId]] | None = None
    unknown: int = 0
    """Rows that are neither generated nor quarantined."""
    _owner: dict[SampleId, int] = field(default_factory=dict)
    """The rank of a row."""
    _lacking: list[int] = field(default_factory=list)
    """By rank, the rows of its shard that are neither scored nor quarantined."""

    def missing(self, sample_ids: Iterable[SampleId]) -> list[SampleId]:
        """Those of `sample_ids` that are neither scored nor quarantined."""
        return [each for each in sample_ids if each not in self.samples and each not in self.quarantined]

    def __post_init__(self) -> None:
        self.unknown = len(self.sample_ids)

    def generated(self, sample_id: SampleId, length: int) -> None:
        if sample_id not in self.lengths:
            self.lengths[sample_id] = length
            self.unknown -= 1

    def scored(self, info: SampleInfo, sample: Any) -> None:
        self._count(info.sample_id, -1)
        self.samples[info.sample_id] = (info, sample)

    def lost(self, sample_id: SampleId) -> tuple[SampleInfo, Any]:
        self._count(sample_id, 1)
        return self.samples.pop(sample_id)

    def quarantine(self, sample_id: SampleId) -> None:
        self._count(sample_id, -1)
        self.unknown -= sample_id not in self.lengths
        self.quarantined.add(sample_id)

    def cut(self, ranks: int) -> None:
        """Share the rows out by length over `ranks`; all are generated or quarantined."""
        alive = [each for each in self.sample_ids if each not in self.quarantined]
        tokens = [self.lengths[each] for each in alive]
        self.shards = [[alive[i] for i in shard] for shard in balanced_shards(tokens, ranks)]
        self._owner = {each: rank for rank, shard in enumerate(self.shards) for each in shard}
        self._lacking = [sum(each not in self.samples for each in shard) for shard in self.shards]

    def lacks(self, rank: int) -> bool:
        """Whether a row of the rank's shard is neither scored nor quarantined."""
        return self._lacking[rank] > 0

    def _count(self, sample_id: SampleId, change: int) -> None:
        if sample_id in self._owner:
            self._lacking[self._owner[sample_id]] += change


class Ledger:
    """The way of every row, from step `step` on.

    Args:
        order: which rows each step samples.
        max_staleness: S of the capacity rule.
        step: the first step that is not done yet.
        max_failures: deaths of engines after which a batch's rows go on alone, one row per batch; the next death of
            an engine on such a row quarantines it.
        quarantined: rows that were quarantined before; no step dispatches them.
    """

    def __init__(
        self,
        order: RowOrder,
        max_staleness: int,
        *,
        step: int = 0,
        max_failures: int = 2,
        quarantined: Iterable[int] = (),
    ) -> None:
        self.order = order
        self.capacity = Capacity(order.rows_per_step, max_staleness)
        self.quarantined: set[int] = set(quarantined)
        """Row indices that are never dispatched again."""
        self.nbytes = 0
        """Of the scored samples that are held."""
        self.peak_bytes = 0
        """Most of these since this was last reset."""
        self.scored_by_learners: dict[SampleId, SampleInfo] = {}
        """Of samples that learners score themselves, once they have (`teacher.place=learner`)."""
        self._max_failures = max_failures
        self._next_step = step
        self._cut: deque[RolloutBatch] = deque()
        self._back: deque[RolloutBatch] = deque()
        self._remaking: set[tuple[int, int]] = set()
        """Step and number of the rollout batches that are made again and not yet scored."""
        self._records: dict[int, StepRecord] = {}

    def take(self, parts: int) -> RolloutBatch | None:
        """The next rollout batch to generate: one that came back, else the oldest undispatched rows if there are slots.
        `parts`: into how many rollout batches a step is cut when its first one is taken."""
        while (batch := self._upcoming(parts)) is not None:
            if batch.step not in self._records:
                continue  # Its rows came by another rollout batch, and the step is done.
            # Rows quarantined since the rollout batch was cut.
            self._quarantine(batch.step, [each for each in batch.sample_ids if each.row in self.quarantined])
            rest = tuple(each for each in batch.sample_ids if each.row not in self.quarantined)
            if self._records[batch.step].missing(rest):
                return batch if rest == batch.sample_ids else replace(batch, sample_ids=rest)
            self._remaking.discard((batch.step, batch.index))
        return None

    def returned(self, batch: RolloutBatch) -> None:
        """Nobody works on `batch` any more, through no fault of its rows; it will be taken first."""
        self._back.appendleft(batch)

    def failed(self, batch: RolloutBatch) -> list[int]:
        """An engine died on `batch`: it will be taken again, as a whole or row by row. Returns the rows that are now
        quarantined: a single one that an engine has died on alone, else none."""
        if batch.step not in self._records:
            return []
        failures = batch.failures + 1
        if failures < self._max_failures:
            self._back.appendleft(replace(batch, failures=failures))
            return []
        self._remaking.discard((batch.step, batch.index))
        if len(batch.sample_ids) > 1 or failures == self._max_failures:
            record = self._records[batch.step]
            for each in reversed(record.missing(batch.sample_ids)):
                # A number that no rollout batch cut from the step has: it seeds the row's sampling.
                number = len(record.sample_ids) + record.sample_ids.index(each)
                self._back.appendleft(RolloutBatch(batch.step, number, (each,), failures))
            return []
        self._quarantine(batch.step, batch.sample_ids)
        self.quarantined.update(each.row for each in batch.sample_ids)
        return [each.row for each in batch.sample_ids]

    def generated(self, batch: RolloutBatch, lengths: Iterable[int]) -> None:
        """The rollout batch's responses have these lengths; they go to a teacher now."""
        record = self._records.get(batch.step)
        if record is None:
            return
        for sample_id, length in zip(batch.sample_ids, lengths, strict=True):
            record.generated(sample_id, length)

    def scored(self, batch: RolloutBatch, samples: Iterable[tuple[SampleInfo, Any]]) -> None:
        """The batch's samples are ready for the learners; of a batch made again, those that were missing."""
        record = self._records.get(batch.step)
        if record is None:
            return
        missing = record.missing(batch.sample_ids)
        for info, sample in samples:
            if info.sample_id in missing:
                record.scored(info, sample)
                record.made_by[info.sample_id] = batch
                self.nbytes += _nbytes(info)
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
        self.capacity.scored(len(missing))
        self._remaking.discard((batch.step, batch.index))

    def regenerate(self, step: int, rows: Iterable[int]) -> None:
        """Samples of `rows` are lost (their node is gone): make the batches that made them again. Ignores those that
        are on their way."""
        record = self._records[step]
        gone = set(rows)
        for sample_id in [each for each in record.sample_ids if each.row in gone and each in record.samples]:
            info, _ = record.lost(sample_id)
            self.nbytes -= _nbytes(info)
            self.capacity.unready(1)
            batch = record.made_by.pop(sample_id)
            if sample_id.row in self.quarantined:
                self._quarantine(step, [sample_id])
                continue
            if (step, batch.index) not in self._remaking:
                self._remaking.add((step, batch.index))
                self._back.append(replace(batch, failures=0))

    def shard(self, step: int, rank: int, ranks: int) -> list[tuple[SampleInfo, Any]] | None:
        """The samples that `rank` trains on at `step`, in the order of the batch; none while any is missing. Rows are
        shared out by length as soon as all of the step are generated, so a rank need not wait for the scoring of
        another rank's rows. Raises `RaftError` when every row of the step was quarantined, those of rehearsal beside
        them left out."""
        record = self._records.get(step)
        if record is None or record.unknown:
            return None
        if record.quarantined:
            own = [each for each in record.sample_ids if self.order.owns(each)]
            if record.quarantined.issuperset(own):
                raise RaftError(f"step {step}: engines died on each of its {len(own)} rows; see quarantined.jsonl")
        if record.shards is None or len(record.shards) != ranks:
            record.cut(ranks)
        if record.shards is None or record.lacks(rank):
            return None
        return [record.samples[each] for each in record.shards[rank] if each in record.samples]

    def needs_rollouts(self, step: int) -> bool:
        """Whether rows of a step that is not done have yet to be generated, or to be generated again."""
        if self.generated_whole(step):
            return any(batch.step == step for batch in self._back)
        return step < self.order.steps

    def generated_whole(self, step: int) -> bool:
        """Whether all lengths of a step are known: before, no rank has a shard."""
        record = self._records.get(step)
        return record is not None and not record.unknown

    def done(self, step: int) -> list[SampleInfo]:
        """`step` has been trained and its weights are published: free its slots. Returns its samples' infos."""
        record = self._records.pop(step)
        self.capacity.release(len(record.sample_ids))
        self.nbytes -= sum(_nbytes(info) for info, _ in record.samples.values())
        infos = [record.samples[each][0] for each in record.sample_ids if each in record.samples]
        return [self.scored_by_learners.pop(info.sample_id, info) for info in infos]

    def quarantined_of(self, step: int) -> list[SampleId]:
        """Rows of an open step that are quarantined."""
        record = self._records.get(step)
        return [each for each in record.sample_ids if each in record.quarantined] if record else []

    @property
    def waiting(self) -> int:
        """Rows that came back and wait for an actor."""
        open_ = [batch for batch in self._back if batch.step in self._records]
        return sum(len(self._records[batch.step].missing(batch.sample_ids)) for batch in open_)

    def _upcoming(self, parts: int) -> RolloutBatch | None:
        """What comes next, its slots counted as in flight."""
        if self._back:
            return self._back.popleft()
        if not self._cut and self._next_step < self.order.steps:
            self._open(self._next_step, parts)
            self._next_step += 1
        if self._cut and self.capacity.admit(len(self._cut[0].sample_ids)):
            return self._cut.popleft()
        return None

    def _open(self, step: int, parts: int) -> None:
        sample_ids = self.order.batch_of(step)
        self._records[step] = StepRecord(sample_ids)
        size = -(-len(sample_ids) // max(1, parts))
        self._cut.extend(
            RolloutBatch(step, index, tuple(sample_ids[start : start + size]))
            for index, start in enumerate(range(0, len(sample_ids), size))
        )

    def _quarantine(self, step: int, sample_ids: Iterable[SampleId]) -> None:
        record = self._records[step]
        missing = record.missing(sample_ids)
        for sample_id in missing:
            record.quarantine(sample_id)
        self.capacity.scored(len(missing))


def _nbytes(info: SampleInfo) -> int:
    """Of a scored sample that is held: targets and token ids."""
    return info.target_bytes + 4 * info.length
