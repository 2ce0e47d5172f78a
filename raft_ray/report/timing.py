"""Where the time of training went: seconds per step by phase, as a figure and as totals.

A learner's step is `wait`, `forward_backward`, `optimizer`, `sync`, `checkpoint`. Rollout, teacher and the loading
of new weights (`BESIDE`) happen on other actors: while the learner waits, or hidden behind its work. So the stacks
split the wall time, in which work beside the learner counts as far as the learner waited for it, and the table
keeps the whole of it. With `teacher.place=learner` the teacher's work is part of the learner's step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from raft_ray.report.charts import Series, stacked_bars
from raft_ray.report.figures import Figure
from raft_ray.report.files import Record, Run
from raft_ray.report.words import format_number, method_label, usable

BESIDE = ("rollout", "teacher", "load")
PHASES = (*BESIDE, "wait", "forward_backward", "optimizer", "sync", "checkpoint")
LEFT_OUT = ("total", "dispatch")
"""No phases: the whole, and the pipeline actor's own milliseconds within the work of others."""
OTHER = "other"
"""What a step's total holds beyond its phases."""

LABELS = {"load": "load weights", "forward_backward": "forward + backward"}

Seconds = dict[str, float]


def phase_css(name: str) -> str:
    """The class that colours a phase."""
    return f"p-{name}" if name in PHASES else "p-other"


def phase_label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def recorded(row: Record) -> Seconds:
    """Seconds of a step by phase as its metrics have them."""
    seconds = (row.get("seconds") or {}).items()
    return {name: float(value) for name, value in seconds if usable(value) and name not in LEFT_OUT}


def beside(run: Run, method: str) -> tuple[str, ...]:
    """Phases of a method that happen on other actors than the learners."""
    place = run.setting(f"run.overrides.{method}.teacher.place") or run.setting("teacher.place")
    return tuple(phase for phase in BESIDE if phase != "teacher" or place != "learner")


def wall(row: Record, others: Sequence[str] = BESIDE) -> Seconds:
    """The step's wall time by phase: adds up to the recorded total, where there is one. If the phases together are
    longer than the total, work beside the learner and the learner's waiting for it are the same seconds: each of
    `others` gets its share of the wait, the rest of the wait stays `wait`."""
    seconds = recorded(row)
    total = (row.get("seconds") or {}).get("total")
    if not usable(total):
        return seconds
    worked = sum(seconds.get(name, 0.0) for name in others)
    if worked and sum(seconds.values()) > 1.02 * total:
        waited = min(seconds.get("wait", 0.0), worked)
        for name in others:
            seconds[name] = seconds.get(name, 0.0) * waited / worked
        seconds["wait"] = seconds.get("wait", 0.0) - waited
    rest = total - sum(seconds.values())
    if rest > 0:
        seconds[OTHER] = seconds.get(OTHER, 0.0) + rest
    return seconds


def time_figure(run: Run) -> Figure | None:
    """Seconds per step by phase, stacked, of the main method (of the first trained one if the main has no metrics)."""
    name = run.main if run.main in run.metrics else next(iter(run.metrics), None)
    if name is None:
        return None
    steps = [float(row["step"]) for row in run.metrics[name]]
    by_step = [wall(row, beside(run, name)) for row in run.metrics[name]]
    phases = used_phases(by_step)
    if not phases:
        return None
    parts = [Series(label, css, steps, [one.get(phase, 0.0) for one in by_step]) for phase, label, css in phases]
    title = f"Time per step, {method_label(name)}"
    chart = stacked_bars(parts, label=title, x_label="step", form=lambda value: f"{format_number(value)} s")
    return Figure(title, "Wall time by phase, stacked.", chart, [(part.label, part.css) for part in parts])


def totals(run: Run) -> list[Record]:
    """A row per method that has times: `method`, `wall` and `recorded` by phase, `seconds` (wall), `steps`, `tokens`.
    `hidden` is the share of the work beside the learner that it did not wait for, None without such work."""
    rows: list[Record] = []
    for name, steps in run.metrics.items():
        others = beside(run, name)
        by_wall, by_record = _sums(wall(step, others) for step in steps), _sums(map(recorded, steps))
        if not sum(by_wall.values()):
            continue
        worked = sum(by_record.get(phase, 0.0) for phase in others)
        waited = sum(by_wall.get(phase, 0.0) for phase in others)
        rows.append(
            {
                "method": name,
                "wall": by_wall,
                "recorded": by_record,
                "seconds": sum(by_wall.values()),
                "hidden": 1 - waited / worked if worked else None,
                "steps": len(steps),
                "tokens": sum(step.get("tokens") or 0 for step in steps),
            }
        )
    return rows


def used_phases(many: Iterable[Seconds]) -> list[tuple[str, str, str]]:
    """(phase, label, class) of the phases that took time: known ones in the order of a step, others, the remainder."""
    used = [name for name, seconds in _sums(many).items() if seconds > 0]
    order = (*PHASES, *(name for name in used if name not in (*PHASES, OTHER)), OTHER)
    return [(name, phase_label(name), phase_css(name)) for name in order if name in used]


def _sums(steps: Iterable[Seconds]) -> Seconds:
    sums: Counter[str] = Counter()
    for seconds in steps:
        sums.update(seconds)
    return dict(sums)
