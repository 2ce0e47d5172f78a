"""Where the time of training went: seconds a step by phase, as a figure and as totals.

A learner's step is `wait`, `forward_backward`, `optimizer`, `sync`, `checkpoint`. Rollout, teacher and the loading
of new weights (`BESIDE`) happen on other actors: while the learner waits, or hidden behind its work. So the stacks
split the wall time, in which work beside the learner counts as far as the learner waited for it, and the table
keeps the whole of it. Knows nothing about HTML.
"""

from __future__ import annotations

from collections.abc import Iterable

from raft_ray.report import svg
from raft_ray.report.figures import Figure
from raft_ray.report.files import Row, Run
from raft_ray.report.svg import Series
from raft_ray.report.words import method_label, short, usable

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


def recorded(row: Row) -> Seconds:
    """Seconds of a step by phase as its metrics have them."""
    seconds = {name: float(value) for name, value in (row.get("seconds") or {}).items() if usable(value)}
    return {name: seconds[name] for name in _ordered(seconds) if name not in LEFT_OUT}


def wall(row: Row) -> Seconds:
    """The step's wall time by phase: adds up to the recorded total, where there is one.

    If the phases together are longer than the total, work beside the learner and the learner's waiting for it are
    the same seconds: each of `BESIDE` gets its share of the wait, the rest of the wait stays `wait`.
    """
    seconds = recorded(row)
    total = (row.get("seconds") or {}).get("total")
    if not usable(total):
        return seconds
    beside = sum(seconds.get(name, 0.0) for name in BESIDE)
    if beside and sum(seconds.values()) > 1.02 * total:
        waited = min(seconds.get("wait", 0.0), beside)
        for name in BESIDE:
            seconds[name] = seconds.get(name, 0.0) * waited / beside
        seconds["wait"] = seconds.get("wait", 0.0) - waited
    rest = total - sum(seconds.values())
    if rest > 0:
        seconds[OTHER] = seconds.get(OTHER, 0.0) + rest
    return {name: seconds[name] for name in _ordered(seconds)}


def time_figure(run: Run) -> Figure | None:
    """Seconds a step by phase, stacked, of the main method (of the first trained one if the main has no metrics)."""
    name = run.main if run.main in run.metrics else next(iter(run.metrics), None)
    if name is None:
        return None
    steps = [float(row["step"]) for row in run.metrics[name]]
    by_step = [wall(row) for row in run.metrics[name]]
    parts = [
        Series(phase_label(phase), phase_css(phase), steps, [seconds.get(phase, 0.0) for seconds in by_step])
        for phase in _used(by_step)
    ]
    if not parts:
        return None
    title = f"Time per step, {method_label(name)}"
    chart = svg.stacked_bars(steps, parts, label=title, x_label="step", form=lambda value: f"{short(value)} s")
    return Figure(title, "Wall time by phase, stacked.", chart, [(part.label, part.css) for part in parts])


def totals(run: Run) -> list[Row]:
    """A row a method that has times: `method`, `wall` and `recorded` by phase, `seconds` (wall), `steps`, `tokens`.

    `hidden` is the share of the work beside the learner that it did not wait for, None without such work.
    """
    rows: list[Row] = []
    for name, steps in run.metrics.items():
        by_wall, by_record = _sums(map(wall, steps)), _sums(map(recorded, steps))
        if not sum(by_wall.values()):
            continue
        beside = sum(by_record.get(phase, 0.0) for phase in BESIDE)
        waited = sum(by_wall.get(phase, 0.0) for phase in BESIDE)
        rows.append(
            {
                "method": name,
                "wall": by_wall,
                "recorded": by_record,
                "seconds": sum(by_wall.values()),
                "hidden": 1 - waited / beside if beside else None,
                "steps": len(steps),
                "tokens": sum(step.get("tokens") or 0 for step in steps),
            }
        )
    return rows


def used_phases(rows: list[Row], kind: str) -> list[tuple[str, str, str]]:
    """(phase, label, class) of the phases that took time in any of `totals`' rows; `kind` is `wall` or `recorded`."""
    return [(phase, phase_label(phase), phase_css(phase)) for phase in _used([row[kind] for row in rows])]


def _sums(steps: Iterable[Seconds]) -> Seconds:
    sums: Seconds = {}
    for seconds in steps:
        for phase, value in seconds.items():
            sums[phase] = sums.get(phase, 0.0) + value
    return sums


def _used(many: list[Seconds]) -> list[str]:
    sums = _sums(many)
    return [phase for phase in _ordered(sums) if sums[phase] > 0]


def _ordered(names: Iterable[str]) -> list[str]:
    """Known phases in the order of a step, then unknown ones, then the remainder."""
    given = list(names)
    known = [name for name in PHASES if name in given]
    return known + [n for n in given if n not in PHASES and n != OTHER] + [OTHER] * (OTHER in given)
