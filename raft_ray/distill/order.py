"""The pure rules of stage 2's data flow: which rows a step trains on, how many may be on the way, and with
which weights they may have been made. No Ray, no tensors: `actors.distill.pipeline` obeys these rules.

**Versions.** Steps count from 0. Version v is the weights after v optimizer steps, so step s starts from version s.
A row trained at step s and sampled with version v has staleness `s - v`.

**Capacity.** A row is *in flight* from its dispatch to a rollout actor until it is scored, then *ready* until the
step that trains on it has published its weights. With `in_flight + ready ≤ (S + 1) · batch`, and batches dispatched
in order: when a row of step t is dispatched at published version v, every row of steps v … t-1 is still counted, so
`(t - v) · batch` rows plus at least one fit into `(S + 1) · batch`, hence `t - v ≤ S`. An actor that takes up the
newest published version before it starts a rollout batch therefore never makes a row that is too old. A row whose actor
died keeps its slot while it waits to be made again, so the same holds for it (`raft_ray.distill.ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np


@dataclass
class Capacity:
    """Admission of rows: `in_flight + ready ≤ (max_staleness + 1) · batch`. `batch`: rows per step. `max_staleness`: S
    ≥ 0."""

    batch: int
    max_staleness: int
    in_flight: int = 0
    ready: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_staleness < 0:
            raise ValueError(f"batch={self.batch} must be at least 1, max_staleness={self.max_staleness} at least 0")

    @property
    def limit(self) -> int:
        """Rows that may be on the way at once."""
        return (self.max_staleness + 1) * self.batch

    @property
    def free(self) -> int:
        """Rows that may be dispatched now."""
        return self.limit - self.in_flight - self.ready

    def admit(self, rows: int) -> bool:
        """Count `rows` as in flight if they fit, all or none; false means wait for `release`."""
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1")
        if rows > self.free:
            return False
        self.in_flight += rows
        return True

    def scored(self, rows: int) -> None:
        """`rows` in flight are now ready for the learner."""
        self._take("in_flight", rows)
        self.ready += rows

    def unready(self, rows: int) -> None:
        """`rows` that were ready are lost and have to be made again; they keep their slots, in flight."""
        self._take("ready", rows)
        self.in_flight += rows

    def release(self, rows: int) -> None:
        """The step that trained on `rows` has published its weights."""
        self._take("ready", rows)

    def oldest_version(self, step: int) -> int:
        """The oldest version that a row of `step` may be sampled with."""
        return max(0, step - self.max_staleness)

    def _take(self, name: str, rows: int) -> None:
        have = getattr(self, name)
        if not 0 <= rows <= have:
            raise ValueError(f"{rows} rows leave {name}, which holds {have}")
        setattr(self, name, have - rows)


@dataclass(frozen=True)
class SampleId:
    """A row's place in the order of training."""

    epoch: int
    row: int


@dataclass(frozen=True)
class RowOrder:
    """Which rows each step trains on: a seeded permutation an epoch, one after the other, cut into batches.

    A batch may span two epochs; only the last batch of all may be short. Every row occurs once in an epoch.

    Rehearsal rows have an order of their own of the same kind, which lasts as long as this one, and a step takes its
    rows from both. They are numbered on from the rows of the training set.

    Args:
        rows: rows of the training set.
        batch: rows of it per step.
        epochs: passes over the set.
        seed: of the permutations.
        max_steps: stop after so many steps; none trains all epochs.
        first: index of the first row.
        rehearsal: the order of the rehearsal rows; none without rehearsal.
    """

    rows: int
    batch: int
    epochs: int
    seed: int
    max_steps: int | None = None
    first: int = 0
    rehearsal: RowOrder | None = None

    def with_rehearsal(self, rows: int, batch: int) -> RowOrder:
        """This order with `batch` of `rows` rehearsal rows in each step beside its own; with none, as it is."""
        if not batch:
            return self
        epochs = -(-self.steps * batch // rows)
        return replace(self, rehearsal=RowOrder(rows, batch, epochs, self.seed, self.steps, first=self.rows))

    @property
    def rows_per_step(self) -> int:
        """Of both kinds."""
        return self.batch + (self.rehearsal.batch if self.rehearsal else 0)

    def owns(self, sample_id: SampleId) -> bool:
        """Whether a sample is of this order's own rows, not of the rehearsal's."""
        return 0 <= sample_id.row - self.first < self.rows

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        all_steps = -(-self.rows * self.epochs // self.batch)
        return all_steps if self.max_steps is None else min(all_steps, self.max_steps)

    def done(self, step: int) -> dict[str, int]:
        """What a checkpoint keeps of the order: after `step` steps the rows before `position` are trained."""
        done = {"rows": self.rows, "batch": self.batch, "seed": self.seed, "position": self._position(step)}
        if self.rehearsal:
            done |= {"rehearsal_rows": self.rehearsal.rows, "rehearsal_batch": self.rehearsal.batch}
        return done

    def batch_of(self, step: int) -> list[SampleId]:
        """The rows of a step, in order, those of rehearsal last. Raises `IndexError` outside the run."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        own = [self._place(position) for position in range(self._position(step), self._position(step + 1))]
        return own + (self.rehearsal.batch_of(step) if self.rehearsal else [])

    def _position(self, step: int) -> int:
        """Where a step begins in the order of all epochs; only the last step's end is cut short."""
        return min(step * self.batch, self.rows * self.epochs)

    def _place(self, position: int) -> SampleId:
        epoch, offset = divmod(position, self.rows)
        return SampleId(epoch, self.first + int(_permutation(self.rows, self.seed, epoch, self.first)[offset]))


def balanced_shards(tokens: list[int], ranks: int) -> list[list[int]]:
    """Split rows over ranks so that the heaviest rank has few tokens: longest first, to the lightest rank. `tokens`:
    tokens of each row. `ranks`: how many shards. Returns indices into `tokens`, a list for each rank (a rank may have
    none), ascending within a rank."""
    shards: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        # By rows first: no rank gets two more rows than another, so that micro-batches match.
        rank = min(range(ranks), key=lambda r: (len(shards[r]) >= -(-len(tokens) // ranks), load[r], r))
        shards[rank].append(index)
        load[rank] += tokens[index]
    return [sorted(shard) for shard in shards]


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int, first: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, first] if first else [seed, epoch]).permutation(rows)
