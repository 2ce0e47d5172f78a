"""How a rank ends when it is refused something; no Ray started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors import learner
from raft_ray import settings
from raft_ray.errors import ModelError


class Pipeline:
    """Answers as the pipeline actor does."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        self.stopped = SimpleNamespace(remote=lambda: self.reason)
        self.stop = SimpleNamespace(remote=self._stop)

    def _stop(self, reason: str) -> None:
        self.reason = reason


def run_rank(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, ranks: int, error: Exception | None) -> int:
    """Run a rank whose work raises `error`; returns how often it began to work."""
    begun = []

    class Rank:
        def __init__(self, *_: Any) -> None:
            begun.append(1)

        def run(self) -> None:
            if error:
                raise error

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: ranks)
    monkeypatch.setattr(learner, "Rank", Rank)
    monkeypatch.setattr(learner, "log_to_file", lambda *_: None)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    config = settings.load("smoke", ["data.train=train.jsonl"])
    learner._train_loop({"task": SimpleNamespace(config=config, run_dir=str(Path("run")), pipeline=pipeline)})
    return len(begun)


def refused() -> Exception:
    return ray.exceptions.RayTaskError("export_model", "a traceback", ModelError("model/: cannot be written"))


def test_what_a_task_refuses_is_the_runs_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline()
    assert run_rank(monkeypatch, pipeline, 1, refused()) == 1
    assert pipeline.reason == "model/: cannot be written"


def test_a_rank_that_others_may_wait_for_takes_its_group_with_it_and_the_next_group_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Pipeline()
    with pytest.raises(ray.exceptions.RayTaskError):
        run_rank(monkeypatch, pipeline, 2, refused())
    assert pipeline.reason == "model/: cannot be written"
    assert run_rank(monkeypatch, pipeline, 2, None) == 0


def test_a_defect_is_left_to_ray_trains_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline()
    for error in (ValueError("defect"), ray.exceptions.RayTaskError("publish", "a traceback", KeyError("defect"))):
        with pytest.raises(type(error)):
            run_rank(monkeypatch, pipeline, 1, error)
    assert pipeline.reason is None
