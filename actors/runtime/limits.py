"""How long a call may take before it counts as hung: measured by those before it. Pure arithmetic.

The first call of a kind has the configured limit, hours long where a model may be large. Later ones have ten times the
longest that has come back, so that a process that hangs in the middle of a run costs minutes.
"""

from __future__ import annotations

from collections import defaultdict

FACTOR = 10.0
FLOOR = 60.0
"""Seconds that every call may take: a busy machine, a page fault, a pause of the garbage collector."""


class Limits:
    """The longest calls so far, by kind."""

    def __init__(self) -> None:
        self._longest: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 1))

    def took(self, kind: str, seconds: float, rows: int = 1) -> None:
        """A call of `rows` rows has come back."""
        if seconds > self._longest[kind][0]:
            self._longest[kind] = (seconds, rows)

    def of(self, kind: str, most: float, rows: int = 1) -> float:
        """Seconds that a call of `rows` rows may take. `most`: the configured limit, which is never exceeded."""
        if kind not in self._longest:
            return most
        seconds, known = self._longest[kind]
        # Never less for fewer rows: one long answer takes as long as a batch with one.
        return min(most, max(FLOOR, FACTOR * seconds * max(1.0, rows / known)))
