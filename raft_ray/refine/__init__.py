"""Stage 1, offline data refinement: `(x, y)` to `(x, ŷ)`, Eqs. 1-4. Pure logic; `actors.refine` runs it on Ray Data."""

from raft_ray.refine.schema import read_summary

__all__ = ["read_summary"]
