"""The section on who worked when: lanes of a few steps, how busy each role was, and which one limits the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context

from raft_ray.distill.elastic import Load, bottleneck
from raft_ray.report.charts import COLOUR, DARK, QUIET, SOFT, STYLE, Chart
from raft_ray.report.figures import Figure
from raft_ray.report.files import Run
from raft_ray.report.timing import phase_css, phase_label
from raft_ray.report.words import format_duration, format_number, format_percent
from raft_ray.runs.spans import Span, loads, step_starts, training_window

SHOWN = 8
"""Steps in the picture."""
LANES = 8
"""Lanes a role in the picture; more members than that are named in its note."""

WIDTH, LANE, GAP, BETWEEN = 1080, 20, 5, 9
"""Of the picture: its width, a lane's height, the space between lanes and between the roles' (besides)."""
CHARACTER = 6.5
"""About the width of a character of its text."""

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
    chart = _lanes(
        f"{title}: what {', '.join(drawn)} did when",
        groups,
        [span for span in inside if span.who in drawn],
        {f"step {step}": begun[step] for step in shown},
        (since, until),
    )
    return Figure(title, note, chart, [(phase_label(what), _css(what)) for what in ordered])


@rc_context(STYLE)
def _lanes(
    label: str, groups: list[list[str]], spans: list[Span], marks: dict[str, float], window: tuple[float, float]
) -> Markup:
    """Lanes in groups, the spans on them cut to the window, and named vertical marks through all lanes. As wide as the
    page, so that on a small screen it scrolls instead of shrinking its text."""
    middles: dict[str, float] = {}
    bottom = 0.0
    for group in groups:
        for lane in group:
            middles[lane] = bottom + LANE
            bottom += LANE + GAP
        bottom += BETWEEN
    since, until = window
    chart = Chart(label, "seconds since the pipeline began", WIDTH, bottom + 56, left=70)
    chart.limit("x", since, until, lambda value: format_number(value, 6), tight=True, count=12)
    axes, units = chart.axes, (WIDTH - 82) / (until - since)
    axes.set(ylim=(bottom, 0))
    axes.set_yticks(list(middles.values()), list(middles))
    axes.hlines(list(middles.values()), since, until, SOFT, linewidth=LANE, zorder=0)
    for (name, at), after in zip(marks.items(), [*marks.values(), until][1:], strict=True):
        axes.axvline(at, color=QUIET, alpha=0.45, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        if (after - at) * units > CHARACTER * len(name) + 4:
            axes.text(at + 4 / units, 0, name)
    for span in spans:
        start, end, waits = max(span.start, since), min(span.end, until), span.what == "wait"
        # Neighbours keep half a unit apart, and the shortest bar can still be seen.
        shown = end if waits else start + max(0.7, (end - start) * units - 0.5) / units
        bar = axes.plot([start, shown], [middles[span.who]] * 2, color=COLOUR, linewidth=4 if waits else LANE)
        when = f"{format_number(span.start, 6)} s to {format_number(span.end, 6)} s"
        note = (
            f"{span.who}: {phase_label(span.what)}, step {span.step}\n{when}: {format_duration(span.end - span.start)}"
        )
        chart.tell(bar, f"bar {_css(span.what)}", note)
        if not waits and (end - start) * units > CHARACTER * len(str(span.step)) + 6:
            place = ((start + end) / 2, middles[span.who])
            text = axes.text(*place, str(span.step), ha="center", va="center", color=DARK, size=10.5)
            chart.tell(text, f"inside {_css(span.what)}")
    return chart.markup()


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
