"""Charts as inline SVG: lines, points, stacked bars, histogram (and `lanes`). Knows nothing about runs or methods.

Colours are CSS classes (each sets `--c`), so that one drawing serves light, dark and paper; text stays text.
Elements are built with ElementTree, which escapes whatever is written into them. All charts share one width
(`WIDTH` user units, about the pixels of a column), so that their text has one size on a page and on a phone.

    line_chart([Series("SFT", "m-sft", steps, losses)], label="SFT loss") -> Markup("<svg ...>")

Ticks come from matplotlib's locators. Hovering works without a script: each chart has up to `BANDS` invisible
bands with a crosshair and a `<title>` that lists the values there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from markupsafe import Markup

from raft_ray.report.counts import Counts, used_range
from raft_ray.report.words import short, usable

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 184
BANDS = 60
POINTS = 300
"""Most points of a line; a longer series is drawn as means of neighbouring steps."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line: `y` may hold None or NaN, which leave a gap."""

    label: str
    css: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Point:
    """One labelled point; `low` and `high` are the ends of its vertical error bar."""

    label: str
    css: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


class Scale:
    """Maps values in [low, high] to pixels, linearly or by logarithm, and knows its ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False, count: int = 5) -> None:
        from matplotlib.ticker import Locator, LogLocator, MaxNLocator

        self.log, self.start, self.end = log, start, end
        locator: Locator
        if log:
            low, high = low / 1.25, high * 1.25
            decades = math.log10(high / low)
            locator = LogLocator(base=10, subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=count + 20)
        else:
            if low == high:
                pad = abs(low) / 10 or 1.0
                low, high = (low - pad, high + pad) if low else (0.0, pad)
            locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
        ticks = [float(tick) for tick in locator.tick_values(low, high)]
        self.low, self.high = (low, high) if log else (ticks[0], ticks[-1])
        tolerance = 1e-9 * abs(self.high - self.low)
        self.ticks = [tick for tick in ticks if self.low - tolerance <= tick <= self.high + tolerance]

    def tight(self, low: float, high: float) -> Scale:
        """The same ticks, but the axis ends at `low` and `high` (for steps, which should fill the width)."""
        self.low, self.high = low, high if high > low else low + 1
        self.ticks = [tick for tick in self.ticks if self.low <= tick <= self.high and tick == int(tick)]
        return self

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str = "step",
    log: bool = False,
    zero: bool = False,
    reference: float | None = None,
    smooth: bool = False,
    form: Format = short,
) -> Markup:
    """Lines over a shared x axis; `log` applies where every value is positive. `reference` is a dashed level."""
    drawn = [_binned(one) for one in series]
    values = [y for one in drawn for y in one.y if usable(y)]
    if reference is not None:
        values.append(reference)
    log = log and min(values) > 0
    xs = sorted({x for one in drawn for x in one.x})
    x_scale = Scale(xs[0], xs[-1], LEFT, RIGHT, count=6).tight(xs[0], xs[-1])
    low = 0.0 if zero and not log else min(values)
    y_scale = Scale(low, max(values), BOTTOM, TOP, log)
    root = canvas(label)
    _axes(root, x_scale, y_scale, x_label, short, form)
    if reference is not None:
        level = y_scale(reference)
        add(root, "line", "reference", x1=LEFT, x2=RIGHT, y1=level, y2=level)
    for one in drawn:
        if smooth and len(one.y) >= 20:
            _line(root, one, x_scale, y_scale, "line raw")
            one = Series(one.label, one.css, one.x, _moving_average(one.y))
        _line(root, one, x_scale, y_scale, "line")
    _bands(root, drawn, xs, x_scale, y_scale, x_label, form)
    return markup(root)


def scatter(
    points: Sequence[Point],
    *,
    label: str,
    x_label: str,
    x_form: Format,
    y_form: Format,
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Points with error bars, smaller ones where a point has no label; both axes start at zero.

    `front` is a dashed line through these places.
    """
    x_scale = Scale(0, max(point.x for point in points) * 1.05, LEFT, RIGHT, count=5)
    y_scale = Scale(0, max(max(point.y, point.high or 0) for point in points), BOTTOM, TOP)
    root = canvas(label)
    _axes(root, x_scale, y_scale, x_label, x_form, y_form)
    spots = [(x_scale(point.x), y_scale(point.y)) for point in points]
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    for point, (x, _) in zip(points, spots, strict=True):
        if point.low is not None and point.high is not None:
            boxes.append((x - 2, y_scale(point.high), x + 2, y_scale(point.low)))
    if len(front) > 1:
        path = "L".join(f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in front)
        add(root, "path", "front", d=f"M{path}")
    for point, (x, y) in zip(points, spots, strict=True):
        group = add(root, "g", f"point {point.css}")
        add(group, "title", text=point.note or f"{point.label}: {x_form(point.x)}, {y_form(point.y)}")
        if point.low is not None and point.high is not None:
            add(group, "line", "whisker", x1=x, x2=x, y1=y_scale(point.low), y2=y_scale(point.high))
        add(group, "circle", "dot", cx=x, cy=y, r=5 if point.label else 3)
        if not point.label:
            continue
        text_x, text_y, anchor, box = _free_place(point.label, x, y, boxes)
        boxes.append(box)
        add(group, "text", "name", text=point.label, x=text_x, y=text_y, **{"text-anchor": anchor})
    return markup(root)


def histogram(
    groups: Sequence[tuple[str, str, Counts]],
    *,
    label: str,
    x_label: str,
    marker: tuple[float, str] | None = None,
    every: int = 5,
) -> Markup:
    """Counts by bin, groups (label, css, counts, alike in their bins) stacked; the axis ends with a multiple of
    `every` bins around those in use. `marker` is a vertical line with its name."""
    first = groups[0][2]
    used = used_range([counts for _, _, counts in groups], every)
    edges = [first.low + place * first.width for place in range(used.start, used.stop + 1)]
    low, high = edges[0], edges[-1]
    if marker:
        low, high = min(low, marker[0]), max(high, marker[0])
    x_scale = Scale(low, high, LEFT, RIGHT, count=6)
    x_scale.low, x_scale.high = low, high
    x_scale.ticks = [tick for tick in x_scale.ticks if low - 1e-9 <= tick <= high + 1e-9]
    heights = [[counts.bins[place] for _, _, counts in groups] for place in range(used.start, used.stop)]
    y_scale = Scale(0, max(map(sum, heights)) * 1.08, BOTTOM, TOP)
    root = canvas(label)
    _axes(root, x_scale, y_scale, x_label, short, short)
    for (start, end), height in zip(pairwise(edges), heights, strict=True):
        parts = [(css, count) for (_, css, _), count in zip(groups, height, strict=True)]
        names = ", ".join(f"{count:,} {name}" for (name, _, _), count in zip(groups, height, strict=True))
        _stack(root, parts, x_scale(start) + 0.5, x_scale(end) - 0.5, y_scale, f"{start:.2f} to {end:.2f}: {names}")
    if marker:
        x = x_scale(marker[0])
        left = x > (LEFT + RIGHT) / 2
        add(root, "line", "marker", x1=x, x2=x, y1=TOP - 8, y2=BOTTOM)
        add(
            root,
            "text",
            "marker-name",
            text=marker[1],
            x=x - 5 if left else x + 5,
            y=TOP,
            **{"text-anchor": "end" if left else "start"},
        )
    return markup(root)


def stacked_bars(xs: Sequence[float], parts: Sequence[Series], *, label: str, x_label: str, form: Format) -> Markup:
    """A bar per x, the series stacked in their order; more than `BANDS` bars are drawn as means of neighbours."""
    binned = [_binned(part, BANDS) for part in parts]
    places = binned[0].x
    heights = [[max(0.0, part.y[i] or 0.0) for part in binned] for i in range(len(places))]
    y_scale = Scale(0, max(map(sum, heights)) or 1.0, BOTTOM, TOP)
    step = (RIGHT - LEFT) / len(places)
    x_scale = Scale(xs[0], xs[-1], LEFT + step / 2, RIGHT - step / 2, count=6).tight(xs[0], xs[-1])
    root = canvas(label)
    _axes(root, x_scale, y_scale, x_label, short, form)
    for i, place in enumerate(places):
        names = "\n".join(f"{part.label}: {form(value)}" for part, value in zip(binned, heights[i], strict=True))
        left = LEFT + i * step
        gap = min(1.0, step / 8)
        stack = [(part.css, value) for part, value in zip(binned, heights[i], strict=True)]
        title = f"{x_label} {short(place, 6)}\n{names}\ntogether: {form(sum(heights[i]))}"
        _stack(root, stack, left + gap, left + step - gap, y_scale, title)
    return markup(root)


def canvas(label: str, width: float = WIDTH, height: float = HEIGHT, css: str = "chart") -> ET.Element:
    """An empty drawing of so many units; `label` is what a screen reader says of it."""
    return ET.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label, "class": css})


def add(parent: ET.Element, tag: str, css: str = "", text: str = "", **attributes: float | str) -> ET.Element:
    """Append an element to `parent`; numbers are written with two decimals at most."""
    values = {
        key: f"{v:.2f}".rstrip("0").rstrip(".") if isinstance(v, float) else str(v) for key, v in attributes.items()
    }
    element = ET.SubElement(parent, tag, {"class": css, **values} if css else values)
    element.text = text or None
    return element


def markup(root: ET.Element) -> Markup:
    """The drawing as text for a page."""
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))


def _axes(root: ET.Element, x: Scale, y: Scale, x_label: str, x_form: Format, y_form: Format) -> None:
    axes = add(root, "g", "axes")
    for tick in y.ticks:
        level = y(tick)
        add(axes, "line", "grid", x1=LEFT, x2=RIGHT, y1=level, y2=level)
        add(axes, "text", "", text=y_form(tick), x=LEFT - 7, y=level + 3.5, **{"text-anchor": "end"})
    add(axes, "line", "base", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM)
    for tick in x.ticks:
        place = x(tick)
        add(axes, "line", "tick", x1=place, x2=place, y1=BOTTOM, y2=BOTTOM + 4)
        add(axes, "text", "", text=x_form(tick), x=place, y=BOTTOM + 16, **{"text-anchor": "middle"})
    add(axes, "text", "axis-name", text=x_label, x=RIGHT, y=HEIGHT - 3, **{"text-anchor": "end"})


def _line(root: ET.Element, series: Series, x: Scale, y: Scale, css: str) -> None:
    """A path with a gap where a value is missing; a value without neighbours is a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for place, value in zip(series.x, series.y, strict=True):
        if not usable(value):
            runs.append([])
        else:
            runs[-1].append((x(place), y(value)))
    group = add(root, "g", series.css)
    for points in filter(None, runs):
        if len(points) == 1:
            add(group, "circle", "dot", cx=points[0][0], cy=points[0][1], r=3)
        else:
            add(group, "path", css, d="M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points))


def _bands(
    root: ET.Element, series: Sequence[Series], xs: Sequence[float], x: Scale, y: Scale, x_label: str, form: Format
) -> None:
    lookup = [dict(zip(one.x, one.y, strict=True)) for one in series]
    chosen = xs if len(xs) <= BANDS else [xs[round(i * (len(xs) - 1) / (BANDS - 1))] for i in range(BANDS)]
    middles = [x(value) for value in chosen]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(middles)), RIGHT]
    for i, value in enumerate(chosen):
        band = add(root, "g", "band")
        lines = [f"{x_label} {short(value, 6)}"]
        add(band, "rect", "", x=edges[i], y=TOP, width=max(0.0, edges[i + 1] - edges[i]), height=BOTTOM - TOP)
        add(band, "line", "cross", x1=middles[i], x2=middles[i], y1=TOP, y2=BOTTOM)
        for one, values in zip(series, lookup, strict=True):
            level = values.get(value)
            if usable(level):
                add(band, "circle", f"dot {one.css}", cx=middles[i], cy=y(level), r=3)
                lines.append(f"{one.label}: {form(level)}")
        band.insert(0, title := ET.Element("title"))
        title.text = "\n".join(lines)


def _stack(
    root: ET.Element, parts: Sequence[tuple[str, float]], left: float, right: float, y: Scale, title: str
) -> None:
    group = add(root, "g", "bar")
    add(group, "title", text=title)
    add(group, "rect", "behind", x=left, y=TOP, width=right - left, height=BOTTOM - TOP)
    bottom = 0.0
    for css, value in parts:
        if value > 0:
            high, low = y(bottom + value), y(bottom)
            add(group, "rect", f"part {css}", x=left, y=high, width=right - left, height=low - high)
        bottom += value


def _binned(series: Series, most: int = POINTS) -> Series:
    """The series with at most `most` points, each the mean of an equal share of neighbours."""
    if len(series.x) <= most:
        return series
    size = math.ceil(len(series.x) / most)
    y: list[float | None] = []
    for start in range(0, len(series.x), size):
        values = [value for value in series.y[start : start + size] if usable(value)]
        y.append(sum(values) / len(values) if values else None)
    return Series(series.label, series.css, list(series.x[::size]), y)


def _moving_average(values: Sequence[float | None]) -> list[float | None]:
    """The mean over the values around each one (a tenth of the series)."""
    reach = max(1, len(values) // 20)
    averages: list[float | None] = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - reach) : i + reach + 1] if usable(v)]
        averages.append(sum(near) / len(near) if near and usable(value) else None)
    return averages


Box = tuple[float, float, float, float]


def _free_place(label: str, x: float, y: float, taken: list[Box]) -> tuple[float, float, str, Box]:
    """Where a point's name hides nothing: right, left, above or below it; the least covered place if none is free."""
    width = 7.0 * len(label)
    places = []
    for left, baseline, anchor, text_x in (
        (x + 9, y + 4, "start", x + 9),
        (x - 9 - width, y + 4, "end", x - 9),
        (x - width / 2, y - 9, "middle", x),
        (x - width / 2, y + 18, "middle", x),
        (x + 7, y - 8, "start", x + 7),
        (x + 7, y + 16, "start", x + 7),
    ):
        box = (left, baseline - 10, left + width, baseline + 2)
        outside = max(0.0, LEFT - box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, box[3] - BOTTOM) + max(0.0, -box[1])
        places.append((sum(_overlap(box, other) for other in taken) + 20 * outside, text_x, baseline, anchor, box))
    best = min(places, key=lambda place: place[0])
    return best[1:]


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
