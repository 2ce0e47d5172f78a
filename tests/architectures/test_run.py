"""Whole runs on architectures with windows, caps and experts: engine, teacher and learner agree from the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.run import train
from raft_ray import models
from raft_ray.config import Config, Dtype, ModelConfig
from raft_ray.errors import RaftError

from .models import SHARING, write_model


@pytest.mark.parametrize("name", ["gemma2", "qwen3moe"])
def test_a_teacher_that_reads_what_the_student_reads_has_kl_0_at_step_0(
    name: str, ray_cluster: None, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    folder = write_model(name, tmp_path / "model")
    overrides = (f"model.path={folder}", "distill.method=opd", "learner.max_steps=2", "rollout.max_new_tokens=24")
    config = make_config(tmp_path / "run", *overrides)
    exported = train(config)
    first, second = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["kl_loss"] <= 1e-5
    assert second["kl_loss"] > 1e-5
    events = tmp_path / "run" / "events.jsonl"
    told = events.read_text() if events.exists() else ""
    assert ("prompts are not shared: " in told) is not SHARING[name]
    models.check_weights(str(exported), ModelConfig(dtype=Dtype.float32))
    if not SHARING[name]:
        with pytest.raises(RaftError, match=r"learner\.share_prompt=true: .* computes other hidden states"):
            train(make_config(tmp_path / "shared", *overrides, "learner.share_prompt=true", "learner.max_restarts=0"))
