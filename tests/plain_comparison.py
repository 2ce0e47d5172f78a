"""Comparisons without a grid, for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

from raft_ray.compare.comparison import compare as summarise
from raft_ray.compare.tuning import ONLY, choose, tune


def compare(methods: dict[str, list[dict[str, Any]]], main: str = "raft") -> dict[str, Any]:
    """The comparison of these evaluations by method."""
    grid = {name: {ONLY: blocks} for name, blocks in methods.items()}
    return summarise(tune(grid, choose(grid, 0.5, 0), 0.5, 0), main=main)
