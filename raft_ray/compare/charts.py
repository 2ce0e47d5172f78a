"""The figures of a comparison: what was gained and what it cost, training curves, weight distance by layer.

Drawn with the report's own figures (`raft_ray.report.figures`). Knows nothing about how anything was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raft_ray.compare.front import Place, pareto_front
from raft_ray.report.figures import Figure, distance_figure, method_css, training_figures
from raft_ray.report.files import Row, Run, in_order
from raft_ray.report.svg import Point, scatter
from raft_ray.report.words import about, method_label, short

CURVES = ("SFT loss", "KL loss", "CE/KL ratio", "Weight λ of the KL", "Response length")
"""Of the report's training figures, those that set methods apart."""


@dataclass(frozen=True)
class Traces:
    """What one training of each method left: the first seed's, at the method's point of the grid."""

    run: Run
    """Its `metrics` are by method."""
    blocks: dict[str, Row] = field(default_factory=dict)
    """Evaluation by method, for the weight distance by layer and the samples of answers."""


def gain_figures(comparison: dict[str, Any], labels: dict[str, str]) -> list[Figure]:
    """Domain accuracy against drift and against what is left of each general score, with the front drawn.

    Args:
        labels: what a score is called, by its key.
    """
    methods = comparison["methods"]
    scores = list(dict.fromkeys(score for result in methods.values() for score in result["scores"]))
    figures = []
    for key in ["drift", *(score for score in scores if score != "domain")]:
        x_label = "drift, nats a token" if key == "drift" else labels[key]
        points = _method_points(methods, key) + _grid_points(comparison["points"], key)
        if points:
            title = f"Domain accuracy against {x_label}"
            form = short if key == "drift" else about
            front = _front(points, sign=1 if key == "drift" else -1)
            better = "left" if key == "drift" else "right"
            note = f"Up and to the {better} is better. Dashed: the front, which no other point beats in both."
            if comparison["points"]:
                note += " Small dots: the other points of the grid."
            chart = scatter(points, label=title, x_label=x_label, x_form=form, y_form=about, front=front)
            figures.append(Figure(title, note, chart))
    return figures


def course_figures(traces: Traces) -> list[Figure]:
    """Losses and balance over the steps, and the weight distance by layer, a line a method."""
    run = traces.run
    ordered = Run(run.folder, run.main, run.config, {name: run.metrics[name] for name in in_order(run.metrics)})
    figures = [figure for figure in training_figures(ordered) if figure.title in CURVES]
    distance = distance_figure({name: traces.blocks[name] for name in in_order(traces.blocks)})
    return [*figures, distance] if distance else figures


def _method_points(methods: dict[str, Any], key: str) -> list[Point]:
    points = []
    for name, result in methods.items():
        domain, x = result["scores"].get("domain"), _value(result, key)
        if domain and x is not None:
            css = method_css(name)
            points.append(Point(method_label(name), css, x, domain["mean"], domain["low"], domain["high"]))
    return points


def _grid_points(found: list[dict[str, Any]], key: str) -> list[Point]:
    """The points that stand for no method."""
    points = []
    for one in found:
        domain, x = one["scores"].get("domain"), _value(one, key)
        if domain and x is not None and not one["chosen"]:
            form = short if key == "drift" else about
            note = f"{method_label(one['method'])} at {one['point']}: {form(x)}, {about(domain['mean'])}"
            points.append(Point("", method_css(one["method"]), x, domain["mean"], note=note))
    return points


def _value(result: dict[str, Any], key: str) -> float | None:
    number = result["drift"] if key == "drift" else result["scores"].get(key)
    return number["mean"] if number else None


def _front(points: list[Point], sign: int) -> list[tuple[float, float]]:
    """Places of the front, from left to right; `sign` is -1 where a larger x is better."""
    places = {str(place): Place(point.y, sign * point.x) for place, point in enumerate(points)}
    return sorted((points[int(name)].x, points[int(name)].y) for name in pareto_front(places))
