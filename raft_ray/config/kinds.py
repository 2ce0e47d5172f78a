"""The kinds of numbers that keys take: each with its range, which pydantic holds, and that range in words."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, Predicate

PositiveInt = Annotated[int, Ge(1), "at least 1"]
NonNegativeInt = Annotated[int, Ge(0), "at least 0"]
ZeroStage = Annotated[int, Ge(0), Le(3), "0, 1, 2 or 3"]
PositiveFloat = Annotated[float, Gt(0), "greater than 0"]
NonNegativeFloat = Annotated[float, Ge(0), "at least 0"]
Fraction = Annotated[float, Ge(0), Le(1), "between 0 and 1"]
PositiveFraction = Annotated[float, Gt(0), Le(1), "greater than 0 and at most 1"]
OpenFraction = Annotated[float, Gt(0), Lt(1), "greater than 0 and less than 1"]
DecayRate = Annotated[float, Ge(0), Lt(1), "at least 0 and less than 1"]
# A fraction of a GPU shares one; more than one must be whole: Ray grants no other.
ResourceUnits = Annotated[
    float, Ge(0), Predicate(lambda value: value < 1 or value == int(value)), "at least 0, and whole if above 1"
]
EntryName = Annotated[str, Predicate(lambda name: name.isascii() and name.replace("-", "_").isidentifier())]
"""A name of one's own for a section, which is part of a key."""
