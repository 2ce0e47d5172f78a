"""Charts as inline SVG, drawn by matplotlib: lines, points, stacked bars, histogram (`timeline.py`: lanes).

Colours are CSS: an artist carries a class (each sets `--c`), so that one drawing serves light, dark and paper; text
stays text. All charts but the lanes share one width (`WIDTH` units, about the pixels of a column), so that their text
has one size on a page and on a phone. Hovering works without a script: up to `BANDS` invisible bands of a chart have a
`<title>` that lists the values there.

    line_chart([Series("SFT", "m-sft", steps, losses)], label="SFT loss") -> Markup("<svg ...>")
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle
from matplotlib.ticker import Locator, LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from raft_ray.printable import one_line
from raft_ray.report.counts import Counts, used_range
from raft_ray.report.words import format_number, usable

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
"""Margins around the axes."""
BANDS = 60
POINTS = 300
"""Most points of a line; a longer series is drawn as means of neighbouring steps."""

COLOUR, INK, QUIET, GRID, CARD, SOFT, DARK = (f"#0a0b{number:02x}" for number in range(7))
PAINTS = {COLOUR: "c", INK: "ink", QUIET: "quiet", GRID: "grid", CARD: "card", SOFT: "soft", DARK: "inside"}
"""The page's CSS variable that takes the place of each of these colours."""
LEFT_OUT = ("metadata", "style", "clipPath")
"""Of matplotlib's SVG."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raft-ray",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": QUIET,
    "text.parse_math": False,
    "lines.solid_capstyle": "butt",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": QUIET,
    "axes.axisbelow": True,
    "axes.labelcolor": QUIET,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "ytick.major.size": 0,
    "ytick.major.pad": 7,
    "xaxis.labellocation": "right",
}

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
    """One point; `low` and `high` are the ends of its vertical error bar."""

    label: str
    css: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


class Chart:
    """A drawing under way: matplotlib's axes, and the CSS class and hover text of its artists."""

    def __init__(
        self, label: str, x_label: str, width: float = WIDTH, height: float = HEIGHT, left: int = LEFT
    ) -> None:
        self.label, self.width, self.height = label, width, height
        self.drawing = Drawing(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        box = (left / width, BOTTOM / height, (width - left - RIGHT) / width, (height - TOP - BOTTOM) / height)
        self.axes = self.drawing.add_axes(box)
        self.axes.set_xlabel(x_label, labelpad=3)
        self._told: list[tuple[str, str]] = []

    def tell(self, artists: Iterable[Artist] | Artist, css: str, note: str = "") -> None:
        """Give artists a class and a text for the pointer."""
        for artist in [artists] if isinstance(artists, Artist) else artists:
            artist.set_gid(f"told{len(self._told)}")
            self._told.append((css, note))

    def limit(
        self, axis: str, low: float, high: float, form: Format, tight: bool = False, log: bool = False, count: int = 5
    ) -> None:
        """Ticks of the axis `x` or `y`, and its range: from the first tick to the last, or `tight` as given."""
        locator: Locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
        if log:
            low, high = low / 1.25, high * 1.25
            locator = LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,), numticks=count + 20)
            self.axes.set_yscale("log")
        elif low == high:
            low, high = (low - (abs(low) / 10), high + abs(low) / 10) if low else (0.0, 1.0)
        ticks = [float(tick) for tick in locator.tick_values(low, high)]
        if not (tight or log):
            low, high = ticks[0], ticks[-1]
        tolerance = 1e-9 * abs(high - low)
        lines = self.axes.xaxis if axis == "x" else self.axes.yaxis
        lines.set_ticks([tick for tick in ticks if low - tolerance <= tick <= high + tolerance])
        lines.set_major_formatter(lambda value, _: form(value))
        lines.minorticks_off()
        self.axes.set(**{f"{axis}lim": (low, high)})
        self.axes.grid(visible=True, axis="y")

    def steps(self, xs: Sequence[float], pad: float = 0.0) -> None:
        """An x axis over steps, which fill its width, with ticks at whole ones."""
        low, high = xs[0] - pad, max(xs[-1], xs[0] + 1) + pad
        self.limit("x", low, high, format_number, tight=True, count=6)
        self.axes.set_xticks([tick for tick in self.axes.get_xticks() if tick == int(tick) and xs[0] <= tick <= high])

    def bands(self, edges: Sequence[float], notes: Sequence[str]) -> None:
        """Invisible bands between the edges that say `notes` to the pointer."""
        for (start, end), note in zip(pairwise(edges), notes, strict=True):
            over_all = self.axes.get_xaxis_transform()
            band = Rectangle((start, 0), end - start, 1, transform=over_all, color="none", zorder=5)
            self.tell(self.axes.add_artist(band), "band", note)

    def stacks(self, x: Sequence[float], width: float, parts: Sequence[tuple[str, Sequence[float]]]) -> None:
        """A bar at each x, `width` of the axis wide, of (class, heights) one upon the other."""
        units = width * (self.width - LEFT - RIGHT) / (self.axes.get_xlim()[1] - self.axes.get_xlim()[0])
        bottom = np.zeros(len(x))
        for css, heights in parts:
            top = bottom + heights
            there = top > bottom
            bars = self.axes.vlines(
                np.asarray(x)[there], bottom[there], top[there], COLOUR, linewidth=units - min(1.0, units / 8)
            )
            self.tell(bars, css)
            bottom = top

    def markup(self) -> Markup:
        """The drawing as text for a page: without namespaces, ids of groups and clipping, which pages do not need."""
        written = io.StringIO()
        self.drawing.savefig(written, format="svg")
        root = ET.fromstring(written.getvalue())
        told = {f"told{number}": entry for number, entry in enumerate(self._told)}
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            element[:] = [child for child in element if child.tag.rpartition("}")[2] not in LEFT_OUT]
            css, note = told.get(element.get("id", ""), ("", ""))
            if note:
                element.insert(0, title := ET.Element("title"))
                title.text = note
            kept = {key.rpartition("}")[2]: value.replace("\n", "") for key, value in element.items()}
            # Transforms turn texts, by 0 degrees; ids of groups are matplotlib's own.
            for key in ("clip-path", "transform", "id" if element.tag == "g" else ""):
                kept.pop(key, None)
            element.attrib = kept | ({"class": css} if css else {})
            element.text, element.tail = (element.text or "").strip(), None
        root.attrib = {"viewBox": f"0 0 {self.width:g} {self.height:g}", "role": "img"}
        root.attrib |= {"aria-label": self.label, "class": "chart"}
        text = ET.tostring(root, encoding="unicode", short_empty_elements=False)
        for colour, name in PAINTS.items():
            text = text.replace(colour, f"var(--{name})")
        return Markup(text)


@rc_context(STYLE)
def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str = "step",
    log: bool = False,
    zero: bool = False,
    reference: float | None = None,
    smooth: bool = False,
    form: Format = format_number,
) -> Markup:
    """Lines over a shared x axis; `log` applies where every value is positive. `reference` is a dashed level."""
    drawn = [(one, *_binned(one.x, one.y, POINTS)) for one in series]
    values = np.concatenate([y for _, _, y in drawn])
    values = values[np.isfinite(values)]
    if reference is not None:
        values = np.append(values, reference)
    log = log and values.min() > 0
    xs = sorted({float(x) for _, places, _ in drawn for x in places})
    chart = Chart(label, x_label)
    chart.steps(xs)
    chart.limit("y", 0.0 if zero and not log else values.min(), values.max(), form, log=log)
    if reference is not None:
        chart.tell(chart.axes.axhline(reference, color=INK, alpha=0.65, linewidth=1, linestyle="--"), "reference")
    for one, x, y in drawn:
        if smooth and len(y) >= 20:
            chart.tell(chart.axes.plot(x, y, color=COLOUR, linewidth=1, alpha=0.38), one.css)
            y = _moving_average(y)
        chart.tell(chart.axes.plot(x, y, color=COLOUR, linewidth=1.8, solid_capstyle="round"), one.css)
        there = np.pad(np.isfinite(y), 1)
        alone = there[1:-1] & ~there[:-2] & ~there[2:]
        if alone.any():  # A value without neighbours is a dot.
            chart.tell(chart.axes.plot(x[alone], y[alone], "o", color=COLOUR, markersize=6), one.css)
    chosen = xs if len(xs) <= BANDS else [xs[round(i * (len(xs) - 1) / (BANDS - 1))] for i in range(BANDS)]
    middles = [(a + b) / 2 for a, b in pairwise(chosen)]
    known = [(one.label, {a: b for a, b in zip(x, y, strict=True) if np.isfinite(b)}) for one, x, y in drawn]
    notes = [
        "\n".join(
            [f"{x_label} {format_number(x, 6)}", *(f"{name}: {form(found[x])}" for name, found in known if x in found)]
        )
        for x in chosen
    ]
    chart.bands([chart.axes.get_xlim()[0], *middles, chart.axes.get_xlim()[1]], notes)
    return chart.markup()


@rc_context(STYLE)
def scatter(
    points: Sequence[Point],
    *,
    label: str,
    x_label: str,
    x_form: Format,
    y_form: Format,
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Points with error bars, smaller ones where a point has no label; both axes start at zero. `front` is a dashed
    line through these places."""
    chart = Chart(label, x_label)
    chart.limit("x", 0.0, max(point.x for point in points) * 1.05, x_form)
    chart.limit("y", 0.0, max(max(point.y, point.high or 0) for point in points), y_form)
    if len(front) > 1:
        x, y = zip(*front, strict=True)
        chart.tell(chart.axes.plot(x, y, color=INK, alpha=0.75, linewidth=1, linestyle=(0, (3, 3))), "front")
    to_units = chart.axes.transData.transform
    taken = []
    for point in points:
        note = point.note or f"{point.label}: {x_form(point.x)}, {y_form(point.y)}"
        ends = (point.y, point.y) if point.low is None or point.high is None else (point.low, point.high)
        chart.tell(chart.axes.plot([point.x] * 2, ends, color=COLOUR, alpha=0.5, linewidth=1.5), point.css, note)
        dot = chart.axes.plot(
            [point.x], [point.y], "o", color=COLOUR, markersize=10 if point.label else 6, markeredgecolor=CARD
        )
        chart.tell(dot, point.css, note)
        x, y = to_units((point.x, point.y))
        taken += [Bbox([(x - 6, y - 6), (x + 6, y + 6)])]
        taken += [Bbox([(x - 2, to_units((0, ends[0]))[1]), (x + 2, to_units((0, ends[1]))[1])])]
    for point in points:
        if point.label:
            _name(chart, point, taken)
    return chart.markup()


PLACES = (
    ((9, 0), "left"),
    ((-9, 0), "right"),
    ((0, 13), "center"),
    ((0, -13), "center"),
    ((8, 12), "left"),
    ((8, -12), "left"),
)
"""Where a point's name may stand: its offset, and which of its sides is at the point."""


def _name(chart: Chart, point: Point, taken: list[Bbox]) -> None:
    """Write the name of a point where it covers nothing, or the least."""
    renderer = FigureCanvasAgg(chart.drawing).get_renderer()
    name = chart.axes.annotate(
        one_line(point.label),  # What an XML file cannot hold would stop matplotlib's from being read.
        (point.x, point.y),
        (0, 0),
        textcoords="offset points",
        va="center",
        weight="bold",
        color=COLOUR,
    )

    def covered(place: tuple[tuple[float, float], str]) -> float:
        name.set(position=place[0], horizontalalignment=place[1])
        box = name.get_window_extent(renderer)
        outside = box.x0 < LEFT or box.x1 > chart.width or box.y0 < BOTTOM
        cuts = [Bbox.intersection(box, other) for other in taken]
        return 1000 * outside + sum(cut.width * cut.height for cut in cuts if cut)

    best = min(PLACES, key=covered)
    covered(best)
    taken.append(name.get_window_extent(renderer))
    chart.tell(name, point.css)


@rc_context(STYLE)
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
    heights = np.array([counts.bins[used] for _, _, counts in groups])
    chart = Chart(label, x_label)
    chart.limit("x", low, high, format_number, tight=True, count=6)
    chart.limit("y", 0.0, heights.sum(0).max() * 1.08, format_number)
    middles = [(start + end) / 2 for start, end in pairwise(edges)]
    chart.stacks(middles, first.width, [(css, own) for (_, css, _), own in zip(groups, heights, strict=True)])
    notes = [
        f"{start:.2f} to {end:.2f}: "
        + ", ".join(f"{count:,} {name}" for (name, _, _), count in zip(groups, own, strict=True))
        for (start, end), own in zip(pairwise(edges), heights.T, strict=True)
    ]
    chart.bands(edges, notes)
    if marker:
        left = marker[0] > (low + high) / 2
        chart.axes.axvline(marker[0], color=INK, alpha=0.65, linewidth=1, linestyle="--")
        chart.axes.annotate(
            marker[1],
            (marker[0], 1),
            (-5 if left else 5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=INK,
            ha="right" if left else "left",
            va="center",
        )
    return chart.markup()


@rc_context(STYLE)
def stacked_bars(parts: Sequence[Series], *, label: str, x_label: str, form: Format) -> Markup:
    """A bar per x, the series stacked in their order; more than `BANDS` bars are drawn as means of neighbours."""
    binned = [_binned(part.x, part.y, BANDS) for part in parts]
    places = [float(place) for place in binned[0][0]]
    heights = np.array([np.clip(np.nan_to_num(y), 0, None) for _, y in binned])
    step = places[1] - places[0] if len(places) > 1 else 1.0
    chart = Chart(label, x_label)
    chart.steps(places, pad=step / 2)
    chart.limit("y", 0.0, heights.sum(0).max() or 1.0, form)
    chart.stacks(places, step, [(part.css, own) for part, own in zip(parts, heights, strict=True)])
    notes = []
    for place, own in zip(places, heights.T, strict=True):
        values = [f"{part.label}: {form(value)}" for part, value in zip(parts, own, strict=True)]
        notes.append("\n".join([f"{x_label} {format_number(place, 6)}", *values, f"together: {form(own.sum())}"]))
    chart.bands([places[0] - step / 2, *(place + step / 2 for place in places)], notes)
    return chart.markup()


def _binned(x: Sequence[float], y: Sequence[float | None], most: int) -> tuple[np.ndarray, np.ndarray]:
    """The series with at most `most` points, each the mean of an equal share of neighbours; NaN where there is none."""
    places, values = np.asarray(x, float), np.array([v if usable(v) else math.nan for v in y], float)
    starts = np.arange(0, len(places), max(1, math.ceil(len(places) / most)))
    known = np.add.reduceat(np.isfinite(values).astype(float), starts)
    sums = np.add.reduceat(np.nan_to_num(values), starts)
    return places[starts], np.where(known > 0, sums / np.maximum(known, 1), math.nan)


def _moving_average(values: np.ndarray) -> np.ndarray:
    """The mean over the values around each one (a tenth of the series)."""
    known = np.isfinite(values)
    window = np.ones(2 * max(1, len(values) // 20) + 1)
    sums, counts = (np.convolve(part, window, "same") for part in (np.where(known, values, 0.0), known.astype(float)))
    return np.where(known, sums / np.maximum(counts, 1), math.nan)
