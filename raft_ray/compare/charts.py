"""The figures of a comparison: what was gained and what it cost, training curves, weight distance by layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from raft_ray.compare.front import ParetoPoint, pareto_front
from raft_ray.compare.verdict import score_label
from raft_ray.report.charts import Point, scatter
from raft_ray.report.figures import Figure, distance_figure, training_figures
from raft_ray.report.files import Record, Run, in_order
from raft_ray.report.words import format_number, format_percent, method_css, method_label

CURVES = (
    "SFT loss",
    "KL loss",
    "Rehearsal KL",
    "Rehearsal loss",
    "CE/KL ratio",
    "Weight λ of the KL",
    "Response length",
)
"""Of the report's training figures, those that set methods apart."""


@dataclass(frozen=True)
class Traces:
    """What one training of each method left: the first seed's, at the method's point of the grid."""

    run: Run
    """Its `metrics` are by method."""
    blocks: dict[str, Record] = field(default_factory=dict)
    """Evaluation by method, for the weight distance by layer and the samples of answers."""


def gain_figures(comparison: dict[str, Any]) -> list[Figure]:
    """Domain accuracy against drift and against what is left of each general score, with the front drawn."""
    methods, grid = comparison["methods"], comparison["points"]
    scores = list(dict.fromkeys(score for result in methods.values() for score in result["scores"]))
    figures = []
    for key in ["drift", *(score for score in scores if score != "domain")]:
        drift = key == "drift"
        x_label = "drift, nats per token" if drift else score_label(key)
        form = format_number if drift else format_percent
        points = []
        for name, result in [*methods.items(), *((None, one) for one in grid if not one["chosen"])]:
            domain, number = result["scores"].get("domain"), result["drift"] if drift else result["scores"].get(key)
            if not domain or number is None:
                continue
            point = Point("", method_css(name or result["method"]), number["mean"], domain["mean"])
            if name is not None:
                points.append(replace(point, label=method_label(name), low=domain["low"], high=domain["high"]))
            else:
                where = f"{method_label(result['method'])} at {result['point']}"
                points.append(replace(point, note=f"{where}: {form(point.x)}, {format_percent(point.y)}"))
        if points:
            title = f"Domain accuracy against {x_label}"
            note = f"Up and to the {'left' if drift else 'right'} is better. Dashed: the front, which no other point "
            note += "beats in both." + (" Small dots: the other points of the grid." if grid else "")
            places = {str(i): ParetoPoint(point.y, point.x if drift else -point.x) for i, point in enumerate(points)}
            front = sorted((points[int(i)].x, points[int(i)].y) for i in pareto_front(places))
            chart = scatter(points, label=title, x_label=x_label, x_form=form, y_form=format_percent, front=front)
            figures.append(Figure(title, note, chart))
    return figures


def course_figures(traces: Traces) -> list[Figure]:
    """Losses and balance over the steps, and the weight distance by layer, a line per method."""
    metrics = traces.run.metrics
    ordered = replace(traces.run, metrics={name: metrics[name] for name in in_order(metrics)})
    figures = [figure for figure in training_figures(ordered) if figure.title in CURVES]
    distance = distance_figure({name: traces.blocks[name] for name in in_order(traces.blocks)})
    return [*figures, distance] if distance else figures
