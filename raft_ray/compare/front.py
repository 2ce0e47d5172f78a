"""The Pareto front of methods: who is beaten by nobody in both domain accuracy and drift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ParetoPoint:
    """Where a method stands."""

    gain: float
    """The more the better, such as domain accuracy."""
    loss: float
    """The less the better, such as drift or what was lost of a general score."""

    def dominates(self, other: ParetoPoint) -> bool:
        """At least as good in both, and better in one."""
        return self.gain >= other.gain and self.loss <= other.loss and self != other


def pareto_point(result: Mapping[str, Any]) -> ParetoPoint | None:
    """Where a method or point of `compare.json` stands; none without both domain accuracy and drift."""
    if not (result["scores"].get("domain") and result["drift"]):
        return None
    return ParetoPoint(result["scores"]["domain"]["mean"], result["drift"]["mean"])


def points_by_method(points: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, ParetoPoint]]:
    """Where the points of a grid stand, by method and point; `points` as in `compare.json`."""
    found: dict[str, dict[str, ParetoPoint]] = {}
    for point in points:
        if place := pareto_point(point):
            found.setdefault(point["method"], {})[point["point"]] = place
    return found


def pareto_front(points: Mapping[str, ParetoPoint]) -> list[str]:
    """The methods that no other dominates, by falling gain; methods at the same point are all on it."""
    free = [name for name, point in points.items() if not any(one.dominates(point) for one in points.values())]
    return sorted(free, key=lambda name: (-points[name].gain, points[name].loss))


def dominated_by(name: str, points: Mapping[str, ParetoPoint]) -> list[str]:
    """The methods that dominate `name`, in the order of `points`."""
    return [other for other, point in points.items() if point.dominates(points[name])]


def gain_at_loss(points: Mapping[str, ParetoPoint], loss: float) -> float | None:
    """The best gain of the methods that lose no more than `loss`; none where all lose more.

    Compares two methods at equal drift, each tried at several learning rates: with the front of each.
    """
    return max((point.gain for point in points.values() if point.loss <= loss), default=None)
