"""Trackers show what metrics.jsonl has, in their own offline stores, which `make env` can read (`.venv/trackers`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raft_ray

LIBRARY = Path(sys.prefix) / "trackers"
ROOT = Path(raft_ray.__file__).parents[1]
KEY = "secret-that-nobody-may-read"
TRACKERS = ["tensorboard", "wandb", "mlflow", "trackio", "swanlab"]


def process(run: Path, tracker: str, what: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    assert (LIBRARY / "wandb").is_dir(), "run make env"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (LIBRARY, ROOT, ROOT / "tests"))),
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": KEY,
        "SWANLAB_MODE": "offline",
        "SWANLAB_API_KEY": KEY,
        "MLFLOW_TRACKING_URI": f"sqlite:///{run.parent}/mlflow.db",
        "TRACKIO_DIR": str(run.parent / "trackio"),
        "HOME": str(run.parent),
    }
    command = [sys.executable, "-m", "tracker_stores", what, tracker, str(run), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True, timeout=300)


def done(run: Path, tracker: str, what: str, *arguments: object) -> str:
    found = process(run, tracker, what, *arguments)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-3000:]
    return found.stdout


def stored(run: Path, tracker: str) -> tuple[dict[tuple[str, int], float], dict[str, Any]]:
    """`(key, step)` -> number, and what else the store says; no point may be there twice."""
    found = json.loads(done(run, tracker, "read").splitlines()[-1])
    counts = Counter((key, step) for key, step, _ in found["points"])
    assert [point for point, count in counts.items() if count > 1] == []
    return {(key, step): value for key, step, value in found["points"]}, found


def expected(run: Path, tracker: str) -> dict[tuple[str, int], float]:
    """The same of metrics.jsonl and evaluations.jsonl, by the rule that the documents give."""
    points: dict[tuple[str, int], float] = {}
    for file, prefix in (("metrics.jsonl", ""), ("evaluations.jsonl", "evaluation/")):
        for line in map(json.loads, (run / file).read_text().splitlines()):
            step = line.pop("step")
            for key, value in line.items():
                inner = value if isinstance(value, dict) else {"": value}
                named = {f"{prefix}{key}/{name}".rstrip("/"): each for name, each in inner.items()}
                points |= {(name, step): each for name, each in named.items() if not isinstance(each, str | None)}
    return {at: float(np.float32(value)) for at, value in points.items()} if tracker == "tensorboard" else points


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_store_has_the_numbers_of_metrics_jsonl_once_after_a_kill_and_a_resumption(
    tracker: str, tmp_path: Path
) -> None:
    run = tmp_path / "study"
    assert process(run, tracker, "write", 0, 5, "kill").returncode == -signal.SIGKILL
    done(run, tracker, "write", 3, 8, "close")
    points, found = stored(run, tracker)
    metrics = expected(run, tracker)
    assert {step for _, step in metrics} == set(range(10))
    assert {at: metrics[at] for at in metrics if at[0].startswith("evaluation/accuracy")}.keys() == {
        ("evaluation/accuracy", step) for step in (3, 6, 9)
    }
    assert metrics["seconds/wait", 8] == 2.0
    assert points == metrics
    assert str(found["config"]["run.seed"]) == "3"
    assert float(found["config"]["learner.lr"]) == 1e-5
    assert found.get("names", [["study-raft-seed3", "study"]]) == [["study-raft-seed3", "study"]]

    done(run, tracker, "evaluate")
    done(run, tracker, "evaluate")  # as a run does that is resumed after its end
    points, _ = stored(run, tracker)
    scores = {key: value for (key, _), value in points.items() if key.startswith("eval/")}
    assert scores == pytest.approx(
        {
            "eval/domain/accuracy": 0.75,
            "eval/mmlu/5-shot/accuracy": 1 / 3,
            "eval/base/domain/accuracy": 0.25,
            "eval/base/ifeval/prompt_strict": 0.5,
        }
    )
    assert {at: value for at, value in points.items() if at[0] not in scores} == metrics

    written = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert written == []


def test_a_tracker_that_is_new_to_a_run_gets_the_steps_before_it(tmp_path: Path) -> None:
    run = tmp_path / "study"
    done(run, "tensorboard", "write", 0, 2, "close")
    done(run, "mlflow", "write", 3, 4, "close")
    points, _ = stored(run, "mlflow")
    assert points == expected(run, "mlflow")
