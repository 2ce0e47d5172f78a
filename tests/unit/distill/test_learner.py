"""How a rank ends when it is refused something; no Ray started."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.distill import learner, probes
from raft_ray.config import settings
from raft_ray.errors import ModelError
from raft_ray.models.prompts import EncodedRow


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
    learner.train_loop({"task": SimpleNamespace(config=config, run_dir=str(Path("run")), pipeline=pipeline)})
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


@pytest.mark.parametrize(
    ("error", "keys", "message"),
    [
        # The forward pass was left half-way, and ZeRO-3 holds parameters until its end.
        (math.inf, ["learner.zero_stage=3"], "learner.zero_stage=3: .* set learner.share_prompt=false"),
        (0.5, ["learner.zero_stage=3"], None),
        (math.inf, ["learner.zero_stage=1"], None),
        (math.nan, ["learner.zero_stage=1"], None),
        (0.5, ["learner.share_prompt=true"], "learner.share_prompt=true: .* leave learner.share_prompt out"),
    ],
)
def test_rows_share_their_prompts_only_where_that_was_measured_to_be_right(
    error: float, keys: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.load("smoke", ["data.train=train.jsonl", *keys])
    engine = SimpleNamespace(eval=lambda: None, train=lambda: None, module=SimpleNamespace(model=None))
    monkeypatch.setattr(probes, "sharing_error", lambda *_: error)
    table = {0: EncodedRow(0, [1, 2], [3], [])}

    def decide() -> tuple[bool, str | None]:
        return probes.may_share_prompts(engine, config, table, None, lambda found: found)

    if message is not None:
        with pytest.raises(ModelError, match=message):
            decide()
    else:
        may, notice = decide()
        assert may is False
        assert (notice or "").startswith("prompts are not shared: ")
