"""What a report keeps of a stream of any length: counts by bin, and a few items drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Counts:
    """How many values fell into each of `bins` bins of equal width over [low, high]. Values outside count in the first
    or the last bin; those that are not finite do not count."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.width = low, (high - low) / bins
        self.bins = [0] * bins

    def add(self, value: float | None) -> None:
        """Count a value; none is no value."""
        if value is not None and math.isfinite(value):
            # Rounded, so that 0.8 falls into the bin that begins at 0.8.
            place = math.floor(round((value - self.low) / self.width, 9))
            self.bins[min(len(self.bins) - 1, max(0, place))] += 1

    @property
    def total(self) -> int:
        return sum(self.bins)

    @property
    def middles(self) -> list[float]:
        """The value in the middle of each bin."""
        return [self.low + (place + 0.5) * self.width for place in range(len(self.bins))]


def used_range(many: Sequence[Counts], every: int = 1) -> slice:
    """The bins between the first and the last that any of `many` (alike in their bins) uses, in steps of `every`."""
    used = [place for counts in many for place, count in enumerate(counts.bins) if count]
    if not used:
        return slice(0, 0)
    end = math.ceil((max(used) + 1) / every) * every
    return slice(min(used) // every * every, min(len(many[0].bins), end))


class Reservoir(Generic[T]):
    """A uniform sample of at most `size` of the items offered, in the order in which they came. The same items and seed
    give the same sample."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._random = size, random.Random(seed)
        self._offered = 0
        self._kept: list[tuple[int, T]] = []

    def offer(self, item: T) -> None:
        """Take the item into the sample, or not."""
        if len(self._kept) < self._size:
            self._kept.append((self._offered, item))
        elif (place := self._random.randrange(self._offered + 1)) < self._size:
            self._kept[place] = (self._offered, item)
        self._offered += 1

    @property
    def items(self) -> list[T]:
        return [item for _, item in sorted(self._kept, key=lambda entry: entry[0])]
