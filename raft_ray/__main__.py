"""`python -m raft_ray` is `raft-ray`."""

from __future__ import annotations

from raft_ray.cli import app

app(prog_name="raft-ray")
