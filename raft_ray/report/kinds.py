"""What was lost of following instructions: a row per kind of IFEval's, a column per method, beside the base's.

Knows nothing about intervals: the test against the base is of whole prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raft_ray.evaluate.ifeval import KINDS, Kinds
from raft_ray.report.words import ABSENT, format_percent


@dataclass(frozen=True)
class KindsTable:
    """Its columns are `methods`; there are no rows where no kinds were counted."""

    methods: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]
    """What a kind is called, and by method the share followed and, for small print, the counts and the difference."""


def kinds_table(methods: Mapping[str, Kinds | None]) -> KindsTable:
    """The table of `kinds` by method, in their order; a method without has no column."""
    counted = {name: kinds for name, kinds in methods.items() if kinds}
    found = {kind for kinds in counted.values() for kind in kinds}
    order = [*(kind for kind in KINDS if kind in found), *sorted(found - KINDS.keys())]
    rows = [(KINDS.get(kind, kind), [_cell(name, kind, counted) for name in counted]) for kind in order]
    return KindsTable(list(counted), rows)


def _cell(name: str, kind: str, counted: Mapping[str, Kinds]) -> tuple[str, str]:
    one, base = counted[name].get(kind), counted.get("base", {}).get(kind)
    if one is None:
        return ABSENT, ""
    text = f"{one['followed']:,.0f} of {one['n']:,.0f}"
    if base is not None and name != "base":
        text += f", {round(100 * (one['share'] - base['share'])):+d} points"
    return format_percent(one["share"], 0), text
