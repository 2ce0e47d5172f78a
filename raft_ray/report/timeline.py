"""The section on who worked when: lanes of a few steps, how busy each role was, and which one limits the run.

Turns the spans of the main method into a chart of `lanes`, and bars. Knows nothing about HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from raft_ray.distill.elastic import Load, bottleneck
from raft_ray.report.figures import Figure
from raft_ray.report.files import Run
from raft_ray.report.lanes import Bar, lane_chart
from raft_ray.report.timing import phase_css, phase_label
from raft_ray.report.words import about, duration, short
from raft_ray.runs.spans import Span, loads, step_starts, training_window

SHOWN = 8
"""Steps in the picture."""
LANES = 8
"""Lanes a role in the picture; more members than that are named in its note."""

PHASES = {"generate": "rollout", "score": "teacher"}
"""Which phase of the section on time has the colour of a span's `what`, where they differ."""
ORDER = ("generate", "score", "load", "wait", "forward_backward", "optimizer", "sync", "checkpoint", "start")
COLOURS = {"rollout": "rollout", "teacher": "teacher", "learner": "forward_backward"}


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
    groups, hidden = _lanes(inside)
    drawn = {who for group in groups for who in group}
    whats = sorted({s.what for s in inside if s.who in drawn}, key=lambda what: (_place(what), what))
    title = f"Steps {shown[0]} to {shown[-1]}" if len(shown) > 1 else f"Step {shown[0]}"
    chart = lane_chart(
        groups,
        [_bar(span) for span in inside if span.who in drawn],
        [(begun[step], f"step {step}") for step in shown],
        since=since,
        until=until,
        label=f"{title}: what {', '.join(who for group in groups for who in group)} did when",
        x_label="seconds since the pipeline began",
    )
    note = (
        "A lane an actor, with the number of the step that the work was for. Vertical lines: a step's training begins."
    )
    return Figure(title, note + hidden, chart, [(phase_label(what), _css(what)) for what in whats])


def _lanes(spans: Sequence[Span]) -> tuple[list[list[str]], str]:
    """The lanes by role, and a sentence about those that are left out."""
    members = sorted({(span.order, span.role, span.who) for span in spans})
    by_role = {role: [who for _, _, who in group] for role, group in groupby(members, key=lambda member: member[1])}
    more = [f"{len(all_) - LANES} more {role}s" for role, all_ in by_role.items() if len(all_) > LANES]
    hidden = f" Not shown: {', '.join(more)}." if more else ""
    return [all_[:LANES] for all_ in by_role.values()], hidden


def _bar(span: Span) -> Bar:
    when = f"{short(span.start, 6)} s to {short(span.end, 6)} s: {duration(span.end - span.start)}"
    note = f"{span.who}: {phase_label(span.what)}, step {span.step}\n{when}"
    return Bar(span.who, _css(span.what), span.start, span.end, str(span.step), note, thin=span.what == "wait")


def _busy(role: str, load: Load) -> dict[str, Any]:
    members = f" ({load.members})" if load.members > 1 else ""
    return {
        "text": f"{role.capitalize()}s{members}",
        "css": phase_css(COLOURS[role]),
        "share": load.busy,
        "value": about(load.busy),
        "note": f"wait {about(load.waiting)}" if load.waiting else "",
    }


def _css(what: str) -> str:
    return phase_css(PHASES.get(what, what))


def _place(what: str) -> int:
    return ORDER.index(what) if what in ORDER else len(ORDER)
