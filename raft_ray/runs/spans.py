"""What each role of a training run did when, and how much of its time each worked.

A span is one piece of one actor's time: `rollout-0` generated for step 7 from second 12.3 to second 13.9. Pure
arithmetic on spans and their file, `spans.jsonl`; knows nothing about Ray, nor about how a report draws them.

    spans = read_spans(run / "spans.jsonl")
    loads(spans, *training_window(spans))   -> {"rollout": Load(...), "teacher": Load(...), "learner": Load(...)}
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from raft_ray.distill.elastic import Load
from raft_ray.errors import RaftError
from raft_ray.json_files import read_lines

ROLES = ("rollout", "teacher", "learner")
"""In the order that data passes them."""

IDLE = ("start", "wait")
"""What is no work; everything else is."""

_WHO = re.compile(rf"({'|'.join(ROLES)})(?:-(\d+))?")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """A line of `spans.jsonl`; see `docs/design.md`. `start` and `end` are seconds since the run's pipeline began;
    `step` is the optimizer step that it was for."""

    who: str
    what: str
    step: int
    start: float
    end: float

    @property
    def role(self) -> str:
        """`rollout` of `rollout-3`."""
        return self.who.partition("-")[0]

    @property
    def order(self) -> tuple[int, int]:
        """Sorts by role, then by number: `rollout-2` before `rollout-10` before `teacher-0`."""
        role, _, number = self.who.partition("-")
        return ROLES.index(role), int(number or 0)

    def to_json(self) -> dict[str, Any]:
        """Its fields, times to a tenth of a millisecond."""
        return asdict(self) | {"start": round(self.start, 4), "end": round(self.end, 4)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Span:
        """The span of a JSON object. Raises `ValueError`, saying what is wrong with it; other keys are ignored."""
        who, what, step, start, end = (value.get(key) for key in ("who", "what", "step", "start", "end"))
        if not isinstance(who, str) or not _WHO.fullmatch(who):
            raise ValueError(f"`who` must be one of {', '.join(f'{role}-N' for role in ROLES)}, found {who!r}")
        if not isinstance(what, str) or not what:
            raise ValueError(f"`what` must say what it did, found {what!r}")
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"`step` must be a whole number from 0 on, found {step!r}")
        if not (_is_time(start) and _is_time(end) and start <= end):
            raise ValueError(f"`start` and `end` must be seconds, one after the other, found {start!r} and {end!r}")
        return cls(who, what, step, float(start), float(end))


def read_spans(path: Path) -> list[Span]:
    """The spans of a file in its order, none if it is not there. A last line that a killed run left unfinished is
    dropped. Raises `RaftError` that names file and line for any other line that is no span."""
    spans = []
    for where, value in read_lines(path):
        try:
            spans.append(Span.from_json(value))
        except ValueError as error:
            raise RaftError(f"{where}: {error}; repair or delete it") from error
    return spans


def loads(spans: Sequence[Span], since: float, until: float) -> dict[str, Load]:
    """The `Load` of each role that was there between `since` and `until` (seconds), in the order of `ROLES`. A member
    is there from its first span after its start on, and gone after its last one if its role went on to later steps
    without it: an actor that joined late or left early is no less busy for it."""
    found: dict[str, Load] = {}
    for role in ROLES:
        there, busy, waiting, scoring, members = 0.0, 0.0, 0.0, 0.0, 0
        by_member: dict[str, list[Span]] = defaultdict(list)
        for span in spans:
            if span.role == role and span.what != "start" and span.start < until:
                by_member[span.who].append(span)
        final = max((span.step for own in by_member.values() for span in own), default=0)
        for own in by_member.values():
            gone = max(span.step for span in own) < final - 1
            first = max(since, min(span.start for span in own))
            last = min(until, max(span.end for span in own)) if gone else until
            if first < last:
                members += not gone
                there += last - first
                busy += _covered([(s.start, s.end) for s in own if s.what not in IDLE], first, last)
                waiting += _covered([(s.start, s.end) for s in own if s.what == "wait"], first, last)
                scoring += _covered([(s.start, s.end) for s in own if s.what == "score"], first, last)
        if there:
            found[role] = Load(members, _share(busy, there), _share(waiting, there), _share(scoring, there))
    return found


def training_window(spans: Sequence[Span]) -> Interval:
    """(since, until) from where the first step's training began to where the last one's did. Leaves out the start-up
    and holds whole rounds of all roles, so that shares compare. Without two trained steps it is everything but
    starting. `(0.0, 0.0)` without spans."""
    begun = step_starts(spans)
    if len(begun) > 1:
        return begun[min(begun)], begun[max(begun)]
    rest = [span for span in spans if span.what != "start"]
    return min((s.start for s in rest), default=0.0), max((s.end for s in rest), default=0.0)


def step_starts(spans: Iterable[Span]) -> dict[int, float]:
    """When the learners began to compute each step: seconds by step."""
    begun: dict[int, float] = {}
    for span in spans:
        if span.what == "forward_backward":
            begun[span.step] = min(span.start, begun.get(span.step, math.inf))
    return begun


def _covered(intervals: Iterable[Interval], since: float, until: float) -> float:
    """Seconds between `since` and `until` that any of the intervals covers."""
    covered, reached = 0.0, since
    for start, end in sorted(intervals):
        start, end = max(start, reached), min(end, until)
        if start < end:
            covered += end - start
            reached = end
    return covered


def _share(part: float, whole: float) -> float:
    """Sums of floats can pass the whole by a rounding error."""
    return min(1.0, part / whole)


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
