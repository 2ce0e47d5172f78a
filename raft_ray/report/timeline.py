"""The section on who worked when: lanes of a few steps, how busy each role was, and which one limits the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from raft_ray.distill.elastic import Load, bottleneck
from raft_ray.report.charts import Bar, lane_chart
from raft_ray.report.figures import Figure
from raft_ray.report.files import Run
from raft_ray.report.timing import phase_css, phase_label
from raft_ray.report.words import format_duration, format_number, format_percent
from raft_ray.runs.spans import Span, loads, step_starts, training_window

SHOWN = 8
"""Steps in the picture."""
LANES = 8
"""Lanes a role in the picture; more members than that are named in its note."""

COLOURS = {"generate": "rollout", "score": "teacher", "learner": "forward_backward"}
"""The phase of the section on time that has the colour of a span's `what`, or of a role, where they differ."""
ORDER = ("generate", "score", "load", "wait", "forward_backward", "optimizer", "sync", "checkpoint", "start")


def timeline(run: Run) -> dict[str, Any]:
    """The section's values."""
    if not run.spans:
        return {"absent": "Left out: this run has no spans.jsonl."}
    if not step_starts(run.spans):
        return {"absent": "Left out: spans.jsonl has no step that was trained yet."}
    found = loads(run.spans, *training_window(run.spans))
    limit = bottleneck(found)
    return {
        "figure": timeline_figure(run.spans),
        "busy": [_busy(role, load) for role, load in found.items()],
        "advice": limit.advice if limit else None,
    }


def timeline_figure(spans: Sequence[Span]) -> Figure:
    """What everyone did during `SHOWN` steps from the middle of the run on (the last ones of a shorter run)."""
    begun = step_starts(spans)
    steps = sorted(begun)
    first = max(0, min(len(steps) // 2, len(steps) - SHOWN))
    shown, after = steps[first : first + SHOWN], steps[first + SHOWN :]
    since = begun[shown[0]]
    own = [span.end for span in spans if span.role == "learner" and span.step == shown[-1]]
    until = begun[after[0]] if after else max(own)
    inside = [span for span in spans if span.start < until and span.end > since]
    members = sorted({(span.order, span.role, span.who) for span in inside})
    by_role = {role: [who for _, _, who in group] for role, group in groupby(members, key=lambda member: member[1])}
    groups = [all_[:LANES] for all_ in by_role.values()]
    drawn = [who for group in groups for who in group]
    note = (
        "A lane an actor, with the number of the step that the work was for. Vertical lines: a step's training begins."
    )
    if more := [f"{len(all_) - LANES} more {role}s" for role, all_ in by_role.items() if len(all_) > LANES]:
        note += f" Not shown: {', '.join(more)}."
    whats = {span.what for span in inside if span.who in drawn}
    ordered = [what for what in ORDER if what in whats] + sorted(whats - set(ORDER))
    title = f"Steps {shown[0]} to {shown[-1]}" if len(shown) > 1 else f"Step {shown[0]}"
    chart = lane_chart(
        groups,
        [_bar(span) for span in inside if span.who in drawn],
        [(begun[step], f"step {step}") for step in shown],
        since=since,
        until=until,
        label=f"{title}: what {', '.join(drawn)} did when",
        x_label="seconds since the pipeline began",
    )
    return Figure(title, note, chart, [(phase_label(what), _css(what)) for what in ordered])


def _bar(span: Span) -> Bar:
    start, end = format_number(span.start, 6), format_number(span.end, 6)
    when = f"{start} s to {end} s: {format_duration(span.end - span.start)}"
    note = f"{span.who}: {phase_label(span.what)}, step {span.step}\n{when}"
    return Bar(span.who, _css(span.what), span.start, span.end, str(span.step), note, thin=span.what == "wait")


def _busy(role: str, load: Load) -> dict[str, Any]:
    return {
        "text": f"{role.capitalize()}s" + (f" ({load.members})" if load.members > 1 else ""),
        "css": _css(role),
        "share": load.busy,
        "value": format_percent(load.busy),
        "note": f"wait {format_percent(load.waiting)}" if load.waiting else "",
    }


def _css(what: str) -> str:
    return phase_css(COLOURS.get(what, what))
