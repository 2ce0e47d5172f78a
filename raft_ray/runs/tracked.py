"""What a method's training has on record as numbers: `metrics.jsonl` and `evaluations.jsonl`, as trackers show both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft_ray.json_files import read_lines

EVALUATIONS = "evaluations.jsonl"


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations that were made while a method trained, in their order; none without any. Raises `RaftError`."""
    return [line for _, line in read_lines(run_dir / EVALUATIONS, ["step"])]


def tracked_lines(run_dir: Path) -> list[dict[str, Any]]:
    """What trackers get: a line per step with its metrics and, under `evaluation`, that of the weights that it begins
    with; then one for the step that has not been made. Raises `RaftError`."""
    metrics = [line for _, line in read_lines(run_dir / "metrics.jsonl", ["step"])]
    evaluations = {line["step"]: {"evaluation": line} for line in read_evaluations(run_dir)}
    return [line | evaluations.get(line["step"], {}) for line in [*metrics, {"step": len(metrics)}]]
