"""Who of a run does what, and for how long: spans for the records, seconds by phase for a step's metrics, and rates.

Knows nothing about rows or calls; `actors.distill.pipeline` tells it what begins and ends.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from actors.distill.actor_group import ActorState, State
from actors.runtime.limits import Limits
from raft_ray.distill.elastic import Load, bottleneck
from raft_ray.runs.records import RunRecords
from raft_ray.runs.spans import Span, loads

RECENT = 20
"""Steps that rates and advice look back on."""
_LEARNER = {
    "checkpoint": "checkpoint",
    "wait": "wait",
    "teacher": State.SCORING.value,
    **{phase: phase for phase in ("forward_backward", "optimizer", "sync")},
}
"""Phase -> what its span is called, in their order."""


class Metrics:
    """Times of one process, in seconds since it began. `records`: get every span."""

    def __init__(self, records: RunRecords) -> None:
        self.limits = Limits()
        """How long calls may take, by how long they have taken."""
        self._records = records
        self._zero = time.perf_counter()
        self._spans: deque[Span] = deque(maxlen=20_000)
        self._steps: deque[tuple[float, dict[str, Any]]] = deque(maxlen=RECENT)
        self._seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def now(self) -> float:
        """Seconds since this process began."""
        return time.perf_counter() - self._zero

    @contextmanager
    def doing(self, actor: ActorState, what: State, step: int) -> Iterator[Callable[[], float]]:
        """An actor's state and span while the block runs. Yields a clock: seconds since it began."""
        actor.now(what)
        start = self.now()
        yield lambda: self.now() - start
        self._note(Span(actor.name, what.value, step, start, self.now()))

    def learned(self, step: int, seconds: dict[str, float]) -> None:
        """The learners' phases of a step, which end now."""
        at = self.now() - seconds.get("total", 0.0)
        for phase, what in _LEARNER.items():
            if phase in seconds:
                self._note(Span("learner", what, step, at, at + seconds[phase]))
                at += seconds[phase]

    def add(self, step: int, phase: str, seconds: float) -> None:
        """Work for a step that adds up."""
        self._seconds[step][phase] += seconds

    def longest(self, step: int, phase: str, seconds: float) -> None:
        """Work for a step that goes on side by side: the longest counts."""
        self._seconds[step][phase] = max(self._seconds[step][phase], seconds)

    def take(self, step: int) -> dict[str, float]:
        """Seconds of a step by phase; they are forgotten."""
        return self._seconds.pop(step, {})

    def forget(self) -> None:
        """What was noted of steps that are not done will be done again."""
        self._seconds.clear()

    def step_done(self, metrics: dict[str, Any]) -> None:
        """A step has ended, with these metrics."""
        self._steps.append((self.now(), metrics))

    def rates(self) -> dict[str, float]:
        """`steps_per_minute`, `rows_per_second` and `tokens_per_second` of the last steps; empty before the second."""
        if len(self._steps) < 2:
            return {}
        seconds = max(1e-9, self._steps[-1][0] - self._steps[0][0])
        done = [metrics for _, metrics in self._steps][1:]
        return {
            "steps_per_minute": 60 * len(done) / seconds,
            "rows_per_second": sum(metrics["rows"] for metrics in done) / seconds,
            "tokens_per_second": sum(metrics["tokens"] for metrics in done) / seconds,
        }

    def advice(self) -> str | None:
        """Which role limits the last steps, and what to do about it; none before the first."""
        if not self._steps:
            return None
        found = bottleneck(self.loads(self._steps[0][0]))
        return None if found is None else found.advice

    def loads(self, since: float) -> dict[str, Load]:
        """How busy each role has been since then."""
        return loads(self._spans, since, self.now())

    def _note(self, span: Span) -> None:
        self._spans.append(span)
        self._records.span(span)
