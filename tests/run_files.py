"""What a run leaves behind, as the tests compare it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what differs from run to run."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in records]


def outcome(run_dir: Path) -> dict[str, Any]:
    """All of a run that its seed decides, whoever died on the way."""
    return {
        "metrics": without_times(lines(run_dir / "metrics.jsonl")),
        "trace": lines(run_dir / "trace.jsonl"),
        "weights": (run_dir / "model" / "model.safetensors").read_bytes(),
    }
