"""Seconds of a learner's step by phase."""

from __future__ import annotations

import time


class Clock:
    """Seconds by phase; `lap(name)` ends a phase that began with the last lap. `checkpoint`: seconds that the
    checkpoint before the step took, which counts to it."""

    def __init__(self, checkpoint: float = 0.0) -> None:
        self._start = self._last = time.perf_counter()
        self._laps = {"checkpoint": checkpoint}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """All phases, and `total`."""
        return {**self._laps, "total": self._laps["checkpoint"] + time.perf_counter() - self._start}
