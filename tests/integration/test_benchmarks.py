"""The simulated pipeline: its waiting actors answer as the real ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_simulation_of_many_rollout_actors_runs(tmp_path: Path) -> None:
    arguments = ["scaling", "--rollouts", "3", "--row-seconds", "0.01", "--steps", "4", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "simulate.py"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    (point,) = json.loads((tmp_path / "benchmark-scaling.json").read_text())["points"]
    assert point["rollouts"] == 3
    assert point["rows_per_second"] > 0
    assert point["of_ideal"] > 0
