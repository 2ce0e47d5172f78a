"""The books of stage 2: which rows are dispatched, generated, scored, trained or set aside. No Ray, no tensors.

```
 order ─cut─> Chunk ──take──> dispatched ──generated──> lengths known ──scored──> ready ──done(step)──> released
                ▲                  │                         │                      │
                ├── returned ──────┤  (its actor went away before it touched the rows)
                ├── failed ────────┴─────────────────────────┘  (an engine died on it; alone after some deaths,
                │                                                then set aside)
                └── regenerate ─────────────────────────────────────────────────────┘  (a node took it along)
```

Sampling is seeded by chunk, and a row's tokens depend on the whole chunk that it is in. A sample that is lost is
therefore made again with the chunk that made it, and of the result only what is missing is taken: with the same
weights (`max_staleness=0`) it is the same sample, bit for bit. Rows that go on alone after deaths of engines have seeds
of their own, so their samples are others.

A chunk that comes back keeps its places in `Capacity`: they are given up only by `done`. So the order in which
steps are admitted, and with it the staleness bound (see `raft_ray.distill.order`), survives every death, and a row can
neither be lost nor trained twice. A row set aside keeps its place too, until its step is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from raft_ray.distill.order import Capacity, Place, RowOrder, balanced_shares
from raft_ray.distill.trajectory import Chunk, SampleInfo
from raft_ray.errors import RaftError


@dataclass
class StepBook:
    """What is known of one step's rows. Counts what is missing, so that no event costs more than its own rows."""

    places: list[Place]
    """In the order of the batch."""
    lengths: dict[Place, int] = field(default_factory=dict)
    """Response tokens, once generated; kept when a sample has to be made again, so that shares stay."""
    samples: dict[Place, tuple[SampleInfo, Any]] = field(default_factory=dict)
    """Scored rows, with whatever stands for the sample (a reference)."""
    made_by: dict[Place, Chunk] = field(default_factory=dict)
    """The chunk that made each scored sample."""
    aside: set[Place] = field(default_factory=set)
    shares: list[list[Place]] | None = None
    unknown: int = 0
    """Rows that are neither generated nor set aside."""
    _owner: dict[Place, int] = field(default_factory=dict)
    """The rank of a row."""
    _lacking: list[int] = field(default_factory=list)
    """By rank, the rows of its share that are neither scored nor set aside."""

    def missing(self, places: Iterable[Place]) -> list[Place]:
        """Those of `places` that are neither scored nor set aside."""
        return [place for place in places if place not in self.samples and place not in self.aside]

    def __post_init__(self) -> None:
        self.unknown = len(self.places)
        self.position = {place: index for index, place in enumerate(self.places)}

    def generated(self, place: Place, length: int) -> None:
        if place not in self.lengths:
            self.lengths[place] = length
            self.unknown -= 1

    def scored(self, info: SampleInfo, sample: Any) -> None:
        self._count(info.place, -1)
        self.samples[info.place] = (info, sample)

    def lost(self, place: Place) -> tuple[SampleInfo, Any]:
        self._count(place, 1)
        return self.samples.pop(place)

    def put_aside(self, place: Place) -> None:
        self._count(place, -1)
        self.unknown -= place not in self.lengths
        self.aside.add(place)

    def cut(self, ranks: int) -> None:
        """Share the rows out by length over `ranks`; all are generated or set aside."""
        alive = [place for place in self.places if place not in self.aside]
        tokens = [self.lengths[place] for place in alive]
        self.shares = [[alive[i] for i in share] for share in balanced_shares(tokens, ranks)]
        self._owner = {place: rank for rank, share in enumerate(self.shares) for place in share}
        self._lacking = [sum(place not in self.samples for place in share) for share in self.shares]

    def lacks(self, rank: int) -> bool:
        """Whether a row of the rank's share is neither scored nor set aside."""
        return self._lacking[rank] > 0

    def _count(self, place: Place, change: int) -> None:
        if place in self._owner:
            self._lacking[self._owner[place]] += change


class Ledger:
    """The way of every row, from step `step` on.

    Args:
        order: which rows each step trains on.
        max_staleness: S of the capacity rule.
        step: the first step that is not done yet.
        tries: deaths of engines after which a chunk's rows go on alone, one row a chunk; the next death of an engine
            on such a row sets it aside.
        aside: rows that were set aside before; no step dispatches them.
    """

    def __init__(
        self, order: RowOrder, max_staleness: int, *, step: int = 0, tries: int = 2, aside: Iterable[int] = ()
    ) -> None:
        self.order = order
        self.capacity = Capacity(order.batch, max_staleness)
        self.aside: set[int] = set(aside)
        """Row indices that are never dispatched again."""
        self.nbytes = 0
        """Of the scored samples that are held."""
        self._tries = tries
        self._next_step = step
        self._cut: deque[Chunk] = deque()
        self._back: deque[Chunk] = deque()
        self._remaking: set[tuple[int, int]] = set()
        """Step and number of the chunks that are made again and not yet scored."""
        self._books: dict[int, StepBook] = {}

    def take(self, parts: int) -> Chunk | None:
        """The next chunk to generate: one that came back, else the oldest undispatched rows if there are places.

        Args:
            parts: into how many chunks a step is cut when its first chunk is taken.
        """
        while (chunk := self._upcoming(parts)) is not None:
            if chunk.step not in self._books:
                continue  # Its rows came by another chunk, and the step is done.
            # Rows set aside since the chunk was cut.
            self._put_aside(chunk.step, [place for place in chunk.places if place.row in self.aside])
            rest = tuple(place for place in chunk.places if place.row not in self.aside)
            if self._books[chunk.step].missing(rest):
                return chunk if rest == chunk.places else replace(chunk, places=rest)
            self._remaking.discard((chunk.step, chunk.index))
        return None

    def returned(self, chunk: Chunk) -> None:
        """Nobody works on `chunk` any more, through no fault of its rows; it will be taken first."""
        self._back.appendleft(chunk)

    def failed(self, chunk: Chunk) -> list[int]:
        """An engine died on `chunk`: it will be taken again, as a whole or row by row.

        Returns the rows that are now set aside: a single one that an engine has died on alone, else none.
        """
        if chunk.step not in self._books:
            return []
        failures = chunk.failures + 1
        if failures < self._tries:
            self._back.appendleft(replace(chunk, failures=failures))
            return []
        self._remaking.discard((chunk.step, chunk.index))
        if len(chunk.places) > 1 or failures == self._tries:
            singles = [
                Chunk(chunk.step, self._single_index(chunk.step, place), (place,), failures)
                for place in self._books[chunk.step].missing(chunk.places)
            ]
            self._back.extendleft(reversed(singles))
            return []
        self._put_aside(chunk.step, chunk.places)
        self.aside.update(place.row for place in chunk.places)
        return [place.row for place in chunk.places]

    def generated(self, chunk: Chunk, lengths: Iterable[int]) -> None:
        """The chunk's responses have these lengths; they go to a teacher now."""
        book = self._books.get(chunk.step)
        if book is None:
            return
        for place, length in zip(chunk.places, lengths, strict=True):
            book.generated(place, length)

    def scored(self, chunk: Chunk, samples: Iterable[tuple[SampleInfo, Any]]) -> None:
        """The chunk's samples are ready for the learners; of a chunk made again, those that were missing."""
        book = self._books.get(chunk.step)
        if book is None:
            return
        missing = book.missing(chunk.places)
        for info, sample in samples:
            if info.place in missing:
                book.scored(info, sample)
                book.made_by[info.place] = chunk
                self.nbytes += _nbytes(info)
        self.capacity.scored(len(missing))
        self._remaking.discard((chunk.step, chunk.index))

    def regenerate(self, step: int, rows: Iterable[int]) -> None:
        """Samples of `rows` are lost (their node is gone): make the chunks that made them again. Ignores those that
        are on their way."""
        book = self._books[step]
        gone = set(rows)
        for place in [place for place in book.places if place.row in gone and place in book.samples]:
            info, _ = book.lost(place)
            self.nbytes -= _nbytes(info)
            self.capacity.unready(1)
            chunk = book.made_by.pop(place)
            if place.row in self.aside:
                self._put_aside(step, [place])
                continue
            if (step, chunk.index) not in self._remaking:
                self._remaking.add((step, chunk.index))
                self._back.append(replace(chunk, failures=0))

    def share(self, step: int, rank: int, ranks: int) -> list[tuple[SampleInfo, Any]] | None:
        """The samples that `rank` trains on at `step`, in the order of the batch; none while any is missing.

        Rows are shared out by length as soon as all of the step are generated, so a rank need not wait for the
        scoring of another rank's rows. Raises `RaftError` when every row of the step was set aside.
        """
        book = self._books.get(step)
        if book is None or book.unknown:
            return None
        if len(book.aside) == len(book.places):
            raise RaftError(f"step {step}: engines died on each of its {len(book.places)} rows; see set_aside.jsonl")
        if book.shares is None or len(book.shares) != ranks:
            book.cut(ranks)
        if book.shares is None or book.lacks(rank):
            return None
        return [book.samples[place] for place in book.shares[rank] if place in book.samples]

    def generated_whole(self, step: int) -> bool:
        """Whether all lengths of a step are known: before, no rank has a share."""
        book = self._books.get(step)
        return book is not None and not book.unknown

    def done(self, step: int) -> list[SampleInfo]:
        """`step` has been trained and its weights are published: free its places. Returns its samples' infos."""
        book = self._books.pop(step)
        self.capacity.release(len(book.places))
        self.nbytes -= sum(_nbytes(info) for info, _ in book.samples.values())
        return [book.samples[place][0] for place in book.places if place in book.samples]

    def aside_of(self, step: int) -> list[Place]:
        """Rows of an open step that are set aside."""
        book = self._books.get(step)
        return sorted(book.aside, key=book.position.__getitem__) if book else []

    @property
    def waiting(self) -> int:
        """Rows that came back and wait for an actor."""
        open_ = [chunk for chunk in self._back if chunk.step in self._books]
        return sum(len(self._books[chunk.step].missing(chunk.places)) for chunk in open_)

    def _upcoming(self, parts: int) -> Chunk | None:
        """What comes next, its places counted as in flight."""
        if self._back:
            return self._back.popleft()
        if not self._cut and self._next_step < self.order.steps:
            self._open(self._next_step, parts)
            self._next_step += 1
        if self._cut and self.capacity.admit(len(self._cut[0].places)):
            return self._cut.popleft()
        return None

    def _open(self, step: int, parts: int) -> None:
        places = self.order.batch_of(step)
        self._books[step] = StepBook(places)
        size = -(-len(places) // max(1, parts))
        self._cut.extend(
            Chunk(step, index, tuple(places[start : start + size]))
            for index, start in enumerate(range(0, len(places), size))
        )

    def _put_aside(self, step: int, places: Iterable[Place]) -> None:
        book = self._books[step]
        missing = book.missing(places)
        for place in missing:
            book.put_aside(place)
        self.capacity.scored(len(missing))

    def _single_index(self, step: int, place: Place) -> int:
        """A chunk number that no chunk cut from the batch has: it seeds the row's sampling."""
        book = self._books[step]
        return len(book.places) + book.position[place]


def _nbytes(info: SampleInfo) -> int:
    """Of a scored sample that is held: targets and token ids."""
    return info.target_bytes + 4 * info.length
