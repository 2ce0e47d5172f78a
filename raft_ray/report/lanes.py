"""One more chart as inline SVG: bars on lanes over time. Knows nothing about runs, like `svg`.

It is as wide as the page, so on a small screen it scrolls instead of shrinking its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from raft_ray.report.svg import Scale, add, canvas, markup
from raft_ray.report.words import short

WIDTH, LEFT, RIGHT = 1080, 70, 1074
TOP, LANE, GAP, BETWEEN, AXIS = 20, 20, 5, 9, 36
"""Heights: above the lanes, a lane, between lanes, between groups of lanes (besides), below the lanes."""

CHARACTER = 6.5
"""About the width of a character of a chart's text."""


@dataclass(frozen=True)
class Bar:
    """A bar on a lane from `start` to `end`. `text` is written on it if it has room, `thin` ones are a mere line."""

    lane: str
    css: str
    start: float
    end: float
    text: str
    note: str
    thin: bool = False


def lane_chart(
    groups: Sequence[Sequence[str]],
    bars: Sequence[Bar],
    marks: Sequence[tuple[float, str]],
    *,
    since: float,
    until: float,
    label: str,
    x_label: str,
) -> Markup:
    """Lanes in groups, their bars cut to [since, until], and named vertical marks through all lanes."""
    tops: dict[str, float] = {}
    bottom = TOP - BETWEEN
    for group in groups:
        bottom += BETWEEN
        for lane in group:
            tops[lane] = bottom
            bottom += LANE + GAP
    x = Scale(since, until, LEFT, RIGHT, count=12)
    x.low, x.high = since, until
    root = canvas(label, WIDTH, bottom + AXIS, "chart lanes")
    axes = add(root, "g", "axes")
    for lane, top in tops.items():
        add(axes, "text", "", text=lane, x=LEFT - 7, y=top + LANE / 2 + 4, **{"text-anchor": "end"})
        add(axes, "rect", "lane", x=LEFT, y=top, width=RIGHT - LEFT, height=LANE, rx=3)
    for (at, name), (after, _) in pairwise([*marks, (until, "")]):
        add(axes, "line", "mark", x1=x(at), x2=x(at), y1=4, y2=bottom)
        if x(after) - x(at) > CHARACTER * len(name) + 4:
            add(axes, "text", "", text=name, x=x(at) + 4, y=13)
    add(axes, "line", "base", x1=LEFT, x2=RIGHT, y1=bottom, y2=bottom)
    for tick in x.ticks:
        if since <= tick <= until:
            add(axes, "line", "tick", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4)
            add(axes, "text", "", text=short(tick, 6), x=x(tick), y=bottom + 16, **{"text-anchor": "middle"})
    add(axes, "text", "axis-name", text=x_label, x=RIGHT, y=bottom + 32, **{"text-anchor": "end"})
    for bar in bars:
        left, right, top = x(max(bar.start, since)), x(min(bar.end, until)), tops[bar.lane]
        shape = add(root, "g", f"bar {bar.css}")
        add(shape, "title", text=bar.note)
        if bar.thin:
            add(shape, "rect", "behind", x=left, y=top, width=right - left, height=LANE)
            add(shape, "rect", "part", x=left, y=top + LANE / 2 - 2, width=right - left, height=4)
            continue
        # Neighbours keep half a unit apart, and the shortest bar can still be seen.
        add(shape, "rect", "part", x=left, y=top, width=max(0.7, right - left - 0.5), height=LANE, rx=1.5)
        if right - left > CHARACTER * len(bar.text) + 6:
            middle = (left + right) / 2
            add(shape, "text", "inside", text=bar.text, x=middle, y=top + LANE / 2 + 4, **{"text-anchor": "middle"})
    return markup(root)
