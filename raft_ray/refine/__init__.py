"""Stage 1, offline data refinement: `(x, y)` to `(x, ŷ)`, Eqs. 1-4. Pure logic; `actors.refine` runs it on Ray Data."""

from __future__ import annotations

from raft_ray.refine.embed import semantic_filter
from raft_ray.refine.generation import Completion
from raft_ray.refine.key_facts import key_facts, missing_facts
from raft_ray.refine.refiner import Refiner, unrefined
from raft_ray.refine.roles import check_refine
from raft_ray.refine.schema import read_refined, read_summary

__all__ = [
    "Completion",
    "Refiner",
    "check_refine",
    "key_facts",
    "missing_facts",
    "read_refined",
    "read_summary",
    "semantic_filter",
    "unrefined",
]
