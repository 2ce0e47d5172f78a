"""The Pareto front of methods: who is beaten by nobody in both domain accuracy and drift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a method stands."""

    gain: float
    """The more the better, such as domain accuracy."""
    loss: float
    """The less the better, such as drift or what was lost of a general score."""

    def dominates(self, other: Place) -> bool:
        """At least as good in both, and better in one."""
        return self.gain >= other.gain and self.loss <= other.loss and self != other


def places_of(points: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Place]]:
    """Where points of a grid stand that have both domain accuracy and drift, by method and point; `points` as in
    `compare.json`."""
    places: dict[str, dict[str, Place]] = {}
    for point in points:
        if point["scores"].get("domain") and point["drift"]:
            place = Place(point["scores"]["domain"]["mean"], point["drift"]["mean"])
            places.setdefault(point["method"], {})[point["point"]] = place
    return places


def pareto_front(places: Mapping[str, Place]) -> list[str]:
    """The methods that no other dominates, by falling gain; methods at the same place are all on it."""
    free = [name for name, place in places.items() if not any(one.dominates(place) for one in places.values())]
    return sorted(free, key=lambda name: (-places[name].gain, places[name].loss))


def dominated_by(name: str, places: Mapping[str, Place]) -> list[str]:
    """The methods that dominate `name`, in the order of `places`."""
    return [other for other, place in places.items() if place.dominates(places[name])]


def gain_at_loss(places: Mapping[str, Place], loss: float) -> float | None:
    """The best gain of the methods that lose no more than `loss`; none where all lose more.

    Compares two methods at equal drift, each tried at several learning rates: with the front of each.
    """
    return max((place.gain for place in places.values() if place.loss <= loss), default=None)
